import pytest
import torch

from minigpt import sequence_logps
from minigpt.errors import UserError
from minigpt.run_folder import read_history
from ppo import ppo_training
from ppo.main import main
from ppo.plain_text import PlainText
from ppo.train import PPOConfig

TEXTS = ["the sea is blue", "a bee can fly", "cats sleep"]
FEW = {"num_episodes": 4, "lr": 1e-3, "kl_coeff": 0.02, "batch_size": 12, "minibatch_size": 6,
       "max_new_tokens": 8, "max_approxkl": 1e9}


@pytest.fixture
def prompts(recited):
    return [row["prompt"] for row in recited]


def loss_on(model, texts):
    """In nats per token, EOS included, by hand."""
    logps = sequence_logps(model, [""] * len(texts), texts)
    return -float(logps.sum()) / sum(len(text) + 1 for text in texts)


def test_the_loss_is_that_of_the_texts_drawn(reciter):
    texts = PlainText(TEXTS[:1], reciter.max_seq_len, minibatch_size=8, seed=0)
    with torch.no_grad():
        loss, metrics = texts.loss(reciter)
    assert float(loss) == pytest.approx(loss_on(reciter, TEXTS[:1]), abs=1e-5)
    assert float(metrics["loss/ptx_avg"]) == float(loss)
    assert int(metrics["val/ptx_tokens"]) == 2 * (len(TEXTS[0]) + 2)  # two rows; EOS before, after


@pytest.mark.parametrize(("minibatch_size", "rows"), [(1, 1), (4, 1), (32, 8)])
def test_a_row_of_text_for_every_four_responses(reciter, minibatch_size, rows):
    texts = PlainText(TEXTS, reciter.max_seq_len, minibatch_size, seed=0)
    assert texts.batches.batch_size == rows


def test_an_episode_draws_the_same_texts_again_and_another_others(reciter):
    def drawn(seed, episode, rank=0):
        with pytest.MonkeyPatch.context() as patch, torch.no_grad():
            patch.setattr("minigpt.distributed.rank", lambda: rank)
            texts = PlainText([f"number {i}" for i in range(50)], reciter.max_seq_len, 8, seed)
            texts.begin_episode(episode)
            return [float(texts.loss(reciter)[0]) for _ in range(3)]

    first = drawn(0, 5)
    assert len(set(first)) == 3 and drawn(0, 5) == first
    assert first not in (drawn(0, 6), drawn(1, 5), drawn(0, 5, rank=1))


def test_texts_become_more_likely_the_more_they_weigh(reciter, copy_of, make_reward, prompts,
                                                      tmp_path):
    def trained(name, **options):
        policy, _, _ = ppo_training(copy_of(reciter), reciter, make_reward(), prompts,
                                    **FEW, out=str(tmp_path / name), **options)
        return loss_on(policy, TEXTS)

    alone = trained("alone")
    little = trained("little", plain_text=TEXTS, ptx_coeff=0.1)
    much = trained("much", plain_text=TEXTS, ptx_coeff=3.0)
    assert much < little < alone
    logged = read_history(tmp_path / "much")
    assert logged["loss/ptx_avg"][-1] < logged["loss/ptx_avg"][0]
    assert "loss/ptx_avg" not in read_history(tmp_path / "alone")


def test_no_text_or_no_weight_is_ppo_alone(reciter, copy_of, make_reward, prompts, weights_equal):
    def trained(**options):
        return ppo_training(copy_of(reciter), reciter, make_reward(), prompts, **FEW, **options)[0]

    alone = trained()
    assert weights_equal(trained(plain_text=TEXTS, ptx_coeff=0.0), alone)
    assert weights_equal(trained(ptx_coeff=0.0), alone)
    assert not weights_equal(trained(plain_text=TEXTS), alone)


def test_resumed_it_repeats_the_unbroken_run_bit_for_bit(reciter, copy_of, make_reward, prompts,
                                                         check_resume):
    def train(out, resume):
        return ppo_training(copy_of(reciter), reciter, make_reward(), prompts, plain_text=TEXTS,
                            **FEW | {"num_episodes": 8}, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


def test_other_texts_do_not_resume_a_run(reciter, copy_of, make_reward, prompts, tmp_path):
    def train(texts, resume):
        ppo_training(copy_of(reciter), reciter, make_reward(), prompts, plain_text=texts, **FEW,
                     out=str(tmp_path), resume=resume)
    train(TEXTS, False)
    with pytest.raises(UserError, match="was begun with plain_text="):
        train(TEXTS[1:], True)


def test_a_weight_without_text_is_refused_before_anything_is_trained(reciter, copy_of, make_reward,
                                                                     prompts, tmp_path):
    with pytest.raises(UserError, match=r"ptx_coeff=2\.0 \(--ptx-coeff\) would change nothing"):
        ppo_training(copy_of(reciter), reciter, make_reward(), prompts, **FEW, ptx_coeff=2.0)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(f'{{"prompt": "p{i}", "chosen": "yes {i}", "rejected": "no"}}\n'
                            for i in range(20)))
    with pytest.raises(UserError, match="no plain text to imitate"):
        main(["--data", str(rows), "--ptx-coeff", "2", "--out", str(tmp_path / "out")])
    assert not list((tmp_path / "out").rglob("*.pt"))


def test_the_default_has_a_weight():
    assert PPOConfig.ptx_coeff > 0
