import json

import pytest
import torch

from minigpt import sequence_logps
from minigpt.batching import collate
from minigpt.checkpoint import save_checkpoint
from minigpt.errors import UserError
from minigpt.examples import tokenize_example
from minigpt.logprobs import response_logps
from minigpt.optimizer import Optimizer
from minigpt.options import flag_of
from minigpt.run_folder import read_history
from minigpt.settings import TrainingConfig
from ppo import ppo_training
from ppo.main import main
from ppo.plain_text import PlainText

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


def optimizer_of(model):
    return Optimizer({"policy": model}, TrainingConfig(max_grad_norm=0), num_steps=1)


def drawn(policy, texts=TEXTS, episode=0, seed=0, **settings):
    """The metrics of three minibatches of one episode."""
    settings = {"minibatch_size": 8, "coeff": 1.0, **settings}
    plain = PlainText(texts, policy.max_seq_len, seed=seed, **settings)
    plain.begin_episode(episode)
    return [plain.backward(policy, optimizer_of(policy)) for _ in range(3)]


@pytest.mark.parametrize(("coeff", "factor"), [(None, 1.0), (0.25, 0.25)])
def test_the_gradient_is_that_of_the_texts_drawn(reciter, copy_of, coeff, factor):
    policy, by_hand = copy_of(reciter), copy_of(reciter)
    text = TEXTS[:1]
    metrics = PlainText(text, 64, 8, 0, coeff).backward(policy, optimizer_of(policy))
    assert float(metrics["loss/ptx_avg"]) == pytest.approx(loss_on(reciter, text), abs=1e-5)
    assert int(metrics["val/ptx_tokens"]) == 2 * (len(text[0]) + 2)  # two rows; EOS before, after
    example = tokenize_example("", text, 64)
    logps = response_logps(by_hand, collate([example]))
    (-factor * logps.sum() / (len(text[0]) + 1)).backward()
    for own, expected in zip(policy.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(own.grad, expected.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("minibatch_size", "rows"), [(1, 1), (4, 1), (32, 8), (512, 16)])
def test_a_row_of_text_for_every_four_responses(reciter, minibatch_size, rows):
    texts = PlainText(TEXTS, reciter.max_seq_len, minibatch_size, 0, None)
    assert texts.batches.batch_size == rows


def test_an_episode_draws_the_same_texts_again_and_another_others(reciter, copy_of):
    def losses(seed, episode, rank=0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("minigpt.distributed.rank", lambda: rank)
            return [float(metrics["loss/ptx_avg"]) for metrics in
                    drawn(copy_of(reciter), [f"number {i}" for i in range(50)], episode, seed)]

    first = losses(0, 5)
    assert len(set(first)) == 3 and losses(0, 5) == first
    assert first not in (losses(0, 6), losses(1, 5), losses(0, 5, rank=1))


def test_a_rollout_that_is_used_up_at_once_logs_its_texts(reciter, copy_of, make_reward, prompts,
                                                          tmp_path, monkeypatch,
                                                          weights_equal):
    monkeypatch.setattr("ppo.metrics.UpdateMetrics.approxkl", lambda metrics: 1e10)
    policy, _, _ = ppo_training(copy_of(reciter), reciter, make_reward(), prompts,
                                plain_text=TEXTS, **FEW, out=str(tmp_path))
    history = read_history(tmp_path)
    assert history["val/updates"] == [0] * FEW["num_episodes"]
    assert len(history["loss/ptx_avg"]) == FEW["num_episodes"]
    assert weights_equal(policy, reciter)


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
    with pytest.raises(UserError, match="not with plain_text=None"):
        train([], True)


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


def test_the_command_imitates_the_worlds_texts_and_counts_their_tokens(make_model, make_reward,
                                                                       tmp_path):
    save_checkpoint(make_model(max_seq_len=128), tmp_path / "start.pt")
    save_checkpoint(make_reward(max_seq_len=128), tmp_path / "reward.pt")

    def run(name, *options):
        small = {"facts": 8, "plain_rows": 50, "sft_rows": 60, "preference_rows": 60,
                 "heldout_rows": 60, "num_episodes": 2, "batch_size": 8, "minibatch_size": 8,
                 "max_new_tokens": 8, "samples": 1}
        main(["--init", str(tmp_path / "start.pt"), "--reward", str(tmp_path / "reward.pt"),
              "--out", str(tmp_path / name), *options,
              *(part for key, value in small.items() for part in (flag_of(key), str(value)))])
        return read_history(tmp_path / name), json.loads(
            (tmp_path / name / "summary.json").read_text())

    history, summary = run("with")
    without, alone = run("without", "--ptx-coeff", "0")
    assert len(history["loss/ptx_avg"]) == 2 and "loss/ptx_avg" not in without
    rollouts = [history["num_tokens"][0], history["num_tokens"][1] - history["num_tokens"][0]]
    texts = [tokens * updates for tokens, updates
             in zip(history["val/ptx_tokens"], history["val/updates"], strict=True)]
    assert min(texts) > 0 and history["val/updates"] == [2.0, 2.0]  # one minibatch, two passes
    assert summary["tokens_trained"] == round(sum(2 * tokens for tokens in rollouts) + sum(texts))
    assert alone["tokens_trained"] == round(2 * without["num_tokens"][-1])
