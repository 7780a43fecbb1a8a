import math

import pytest
import torch

from minigpt import generate
from minigpt.batching import NoRoomError, tokenize_prompt
from minigpt.run_folder import read_history
from ppo import ppo_training
from ppo.train import PPOConfig, adaptive_factor, explained_variance
from reward import RewardModel

FEW = {"num_episodes": 6, "batch_size": 12, "minibatch_size": 5, "max_new_tokens": 8}


class ByteReward(RewardModel):
    """A reward whose truth is known: the number of 'o's in a row, less a half for each other byte of the response."""

    def forward(self, token_ids, lengths=None):
        real = torch.arange(token_ids.shape[1]) < lengths[:, None]
        o = ((token_ids == ord("o")) & real).sum(1)
        return o - 0.5 * (((token_ids < 0xF8) & real).sum(1) - o) + 0.0 * self.head.bias


@pytest.fixture
def prompts(recited):
    return [row["prompt"] for row in recited]


def run(policy, reference, reward, prompts, **options):
    return ppo_training(policy, reference, reward, prompts, **{**FEW, **options})


# --- the first episode ------------------------------------------------------------------------------------------------


def test_first_ratio_is_1_and_first_kl_0(reciter, copy_of, make_reward, prompts, tmp_path):
    policy, rewards, kls = run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, out=str(tmp_path))
    history = read_history(tmp_path)
    assert history["val/first_ratio"] == pytest.approx([1.0] * 6, abs=1e-5)  # of every rollout, not only the first
    assert kls[0] == pytest.approx(0, abs=1e-5) and history["objective/kl"][0] == pytest.approx(0, abs=1e-5)
    assert kls[-1] > 1e-3
    assert rewards == history["objective/scores"] and kls == history["objective/kl_exact"]
    assert len(rewards) == len(kls) == 6 and not policy.training


def test_logged_metrics_carry_trls_names_and_add_up(reciter, copy_of, make_reward, prompts, tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, kl_coeff=0.3, max_approxkl=1e9, out=str(tmp_path))
    history = read_history(tmp_path)
    assert {"objective/kl", "objective/entropy", "objective/non_score_reward", "objective/rlhf_reward",
            "objective/scores", "policy/approxkl_avg", "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg",
            "val/clipfrac_avg", "val/ratio", "val/num_eos_tokens"} <= history.keys()
    for kl, score, non_score, total in zip(*(history["objective/" + name] for name in (
            "kl", "scores", "non_score_reward", "rlhf_reward")), strict=True):
        assert non_score == pytest.approx(-0.3 * kl, abs=1e-6) and total == pytest.approx(score + non_score, abs=1e-6)
    assert history["val/updates"] == [2 * math.ceil(12 / 5)] * 6
    assert history["objective/kl_coeff"] == [0.3] * 6


def test_advantages_are_whitened_over_the_rollout(reciter, copy_of, make_reward, prompts, tmp_path):
    """At ratio 1 the loss is minus the mean advantage of the rollout, which whitening makes 0."""
    run(copy_of(reciter), reciter, make_reward(), prompts, minibatch_size=12, ppo_epochs=1, out=str(tmp_path))
    assert read_history(tmp_path)["loss/policy_avg"] == pytest.approx([0.0] * 6, abs=1e-4)


def test_reference_and_reward_model_are_left_as_they_were(reciter, copy_of, make_reward, prompts, weights_of,
                                                          weights_equal):
    reference, reward = copy_of(reciter), make_reward()
    kept = weights_of(reference), weights_of(reward)
    policy, _, _ = run(copy_of(reciter), reference, reward, prompts, lr=1e-3)
    assert weights_equal(reference, kept[0]) and weights_equal(reward, kept[1])
    assert not weights_equal(policy, kept[0])


# --- learning ---------------------------------------------------------------------------------------------------------


def test_training_raises_a_known_reward_well_above_its_start(reciter, copy_of, small, prompts):
    policy, rewards, _ = run(copy_of(reciter), reciter, ByteReward(**small), prompts, num_episodes=80, lr=2e-3,
                             kl_coeff=0.02, batch_size=64, minibatch_size=12, max_new_tokens=24)
    assert sum(rewards[-5:]) / 5 > rewards[0] + 1.5
    share_of_o = []
    for model in (reciter, policy):
        text = "".join(response.text for response in generate(model, prompts * 5, 24, seed=0))
        share_of_o.append(text.count("o") / len(text))
    assert share_of_o[1] > share_of_o[0] + 0.5




def test_ppo_training_reaches_the_closed_form_optimum_of_one_token_answers(make_model, copy_of, make_reward):
    """All 256 answers can be enumerated: at least 85 % of what r - beta KL can gain is gained, and none is invented."""
    reference, reward, beta, penalty = make_model(1, spread=3), make_reward(2, spread=4), 0.3, 0.0
    with torch.no_grad():
        ids = torch.tensor([[*tokenize_prompt("?", 64), token] for token in range(256)])
        r = reward(ids, torch.full((256,), 3)).double()
        start = reference(ids[:1, :2])[0, -1].double().log_softmax(-1)
    optimum = (start + r / beta).log_softmax(-1)

    def objective(logps):
        return float((logps.exp() * (r - beta * (logps - start))).sum())
    policy, _, kls = ppo_training(copy_of(reference), reference, reward, ["?"] * 256, num_episodes=60, lr=3e-3,
                                  kl_coeff=beta, batch_size=256, minibatch_size=64, max_new_tokens=1,
                                  missing_eos_penalty=penalty, value_lr=3e-3)
    with torch.no_grad():
        reached = policy(ids[:1, :2])[0, -1].double().log_softmax(-1)
    possible = objective(optimum) - objective(start)
    assert possible > 0.3
    assert 0.85 < (objective(reached) - objective(start)) / possible <= 1.0
    assert kls[-1] == pytest.approx(float((optimum.exp() * (optimum - start)).sum()), rel=0.4)


def test_an_answer_that_does_not_end_pays_the_penalty(make_model, copy_of, make_reward):
    """With nothing but the penalty to gain, the policy learns to end at once."""
    reference = make_model(1, spread=2)
    reward = make_reward()
    torch.nn.init.zeros_(reward.head.weight)
    _, rewards, _ = ppo_training(copy_of(reference), reference, reward, ["?"] * 128, num_episodes=60, lr=5e-3,
                                 kl_coeff=0.0, batch_size=128, max_new_tokens=4, missing_eos_penalty=2.0)
    assert rewards[0] < -1.8
    assert sum(rewards[-5:]) / 5 > -0.5


def test_a_higher_price_of_kl_holds_the_policy_closer(reciter, copy_of, small, prompts):
    gone = []
    for kl_coeff in (0.0, 5.0):
        _, _, kls = run(copy_of(reciter), reciter, ByteReward(**small), prompts, num_episodes=20, lr=2e-3,
                        kl_coeff=kl_coeff, batch_size=64, minibatch_size=12)
        gone.append(sum(kls[-5:]) / 5)
    assert gone[0] > 1.5 * gone[1] > 0


# --- the coefficient, the early stop ----------------------------------------------------------------------------------


def test_adaptive_factor_by_hand():
    config = PPOConfig(target_kl=6.0, kl_horizon=1000)
    assert adaptive_factor(6.0, config, 100) == 1.0
    assert adaptive_factor(6.6, config, 100) == pytest.approx(1 + 0.1 * 100 / 1000)
    assert adaptive_factor(60.0, config, 100) == pytest.approx(1 + 0.2 * 100 / 1000)
    assert adaptive_factor(0.0, config, 100) == pytest.approx(1 - 0.2 * 100 / 1000)


def test_adaptive_coefficient_follows_the_sampled_kl(reciter, copy_of, make_reward, prompts, tmp_path):
    options = {"target_kl": 0.5, "kl_horizon": 50}
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=3e-3, kl_coeff=0.4, out=str(tmp_path), **options)
    history = read_history(tmp_path)
    expected = [0.4]
    for kl in history["objective/kl"][:-1]:
        expected.append(expected[-1] * adaptive_factor(kl, PPOConfig(**options), 12))
    assert history["objective/kl_coeff"] == pytest.approx(expected)
    assert expected[1] == pytest.approx(0.4 * (1 - 0.2 * 12 / 50))


def test_a_rollout_that_is_spent_is_updated_on_no_more(reciter, copy_of, make_reward, prompts, tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-2, warmup=0.0, max_approxkl=1e-3, out=str(tmp_path))
    history = read_history(tmp_path)
    assert min(history["val/updates"]) < 6


def test_a_limit_of_zero_still_logs_every_metric_of_every_episode(reciter, copy_of, make_reward, prompts, tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-2, max_approxkl=0.0, out=str(tmp_path))
    history = read_history(tmp_path)  # a KeyError where a line lacks a metric
    assert {len(values) for values in history.values()} == {6}


def test_explained_variance_is_1_for_perfect_values_and_0_for_a_constant():
    returns, mask = torch.randn(4, 6), torch.rand(4, 6) < 0.6
    assert explained_variance(returns, returns, mask) == pytest.approx(1.0)
    assert explained_variance(torch.full_like(returns, 3.0), returns, mask) == pytest.approx(0.0, abs=1e-5)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3.0, abs=1e-4)


def test_explained_variance_of_a_single_token_is_a_number():
    assert not math.isnan(explained_variance(torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)))


# --- bookkeeping ------------------------------------------------------------------------------------------------------


def test_measured_figures_are_logged_and_change_nothing(reciter, copy_of, make_reward, prompts, tmp_path,
                                                        weights_equal):
    seen = []

    def measure(asked, texts):
        seen.append((asked, texts))
        return {"length": sum(map(len, texts)) / len(texts)}
    with_it, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts, measure=measure, out=str(tmp_path))
    without, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts)
    assert weights_equal(with_it, without)
    assert read_history(tmp_path)["length"] == [sum(map(len, texts)) / len(texts) for _, texts in seen]
    assert all(len(asked) == 12 and set(asked) <= set(prompts) for asked, _ in seen)


@pytest.mark.parametrize("batch_size", [3, 12, 50])
def test_every_rollout_is_a_full_one_however_many_prompts_there_are(reciter, copy_of, make_reward, prompts, batch_size,
                                                                    monkeypatch):
    monkeypatch.setattr("minigpt.training.most_tokens", lambda device: 1)  # is for what has a backward pass
    asked = []
    run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=3, batch_size=batch_size,
        measure=lambda batch, _: asked.append(batch) or {})
    assert [len(batch) for batch in asked] == [min(batch_size, len(prompts))] * 3
    assert {prompt for batch in asked for prompt in batch} <= set(prompts)
    assert len(set(map(tuple, asked))) == 3


def test_an_update_in_parts_is_the_update(reciter, copy_of, make_reward, prompts, monkeypatch):
    policies = []
    for rows in (3, 1000):
        monkeypatch.setattr("ppo.train.ROWS_AT_A_TIME", rows)
        policies.append(run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=1, lr=1e-3)[0])
    for parts, whole in zip(*(policy.parameters() for policy in policies), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_same_seed_same_bits_and_another_seed_others(reciter, copy_of, make_reward, prompts, weights_equal):
    policies = [run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, seed=seed)[0] for seed in (0, 0, 1)]
    assert weights_equal(policies[0], policies[1]) and not weights_equal(policies[0], policies[2])


@pytest.mark.parametrize("target_kl", [None, 0.5])
def test_resumed_ppo_repeats_the_unbroken_run_bit_for_bit(reciter, copy_of, make_reward, prompts, check_resume,
                                                          target_kl):
    def train(out, resume):
        return run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=8, lr=1e-3, target_kl=target_kl,
                   kl_horizon=50, save_every=2, out=out, resume=resume)[0]
    check_resume(train)


def test_bfloat16_trains(reciter, copy_of, small, prompts):
    _, rewards, kls = run(copy_of(reciter), reciter, ByteReward(**small), prompts, num_episodes=20, lr=2e-3,
                          batch_size=64, minibatch_size=12, precision="bfloat16")
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.3
    assert kls[0] == pytest.approx(0, abs=1e-3)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_the_same_object_as_policy_and_reference_raises(reciter, make_reward):
    with pytest.raises(ValueError, match="same object"):
        run(reciter, reciter, make_reward(), ["a"])


def test_shapes_that_differ_raise(reciter, make_model, make_reward):
    with pytest.raises(ValueError, match="differ in shape"):
        run(make_model(ff_dim=128), reciter, make_reward(), ["a"])


def test_no_prompts_no_room_and_no_episodes_raise(reciter, copy_of, make_reward):
    with pytest.raises(ValueError, match="prompts is empty"):
        run(copy_of(reciter), reciter, make_reward(), [])
    with pytest.raises(NoRoomError, match="max_seq_len=64"):
        run(copy_of(reciter), reciter, make_reward(), ["a", "b" * 63])
    with pytest.raises(ValueError, match="num_episodes"):
        run(copy_of(reciter), reciter, make_reward(), ["a"], num_episodes=0)


def test_a_reward_that_is_not_finite_raises_naming_the_step(reciter, copy_of, make_reward, prompts, weights_equal):
    reward, policy = make_reward(), copy_of(reciter)
    torch.nn.init.constant_(reward.head.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        run(policy, reciter, reward, prompts)
    assert weights_equal(policy, reciter)
