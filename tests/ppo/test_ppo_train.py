import copy
import inspect
import math

import pytest
import torch
from torch import nn

import minigpt.seeding
from minigpt import EOS, SEP, encode, generate
from minigpt.checkpoint import load_state
from minigpt.errors import UserError
from minigpt.examples import NoRoomError, tokenize_prompt
from minigpt.kl import kl_k3
from minigpt.options import parse
from minigpt.run_folder import read_history
from ppo import gae, ppo_training
from ppo.advantages import whiten
from ppo.train import PPOConfig, adaptive_factor, first_value_model, prompt_batches
from reward import RewardModel

FEW = {"num_episodes": 6, "lr": 1.5e-5, "kl_coeff": 0.02, "batch_size": 12, "minibatch_size": 5,
       "max_new_tokens": 8}


class ByteReward(RewardModel):
    """A reward whose truth is known: the number of 'o's in a row, less half that of other bytes."""

    def rewards(self, batch):
        real = batch.segments >= 0
        o = ((batch.token_ids == ord("o")) & real).sum(1, keepdim=True)
        bytes_of_text = ((batch.token_ids < 0xF8) & real).sum(1, keepdim=True)
        return o - 0.5 * (bytes_of_text - o) + 0.0 * self.head.bias


def score_over_the_mean(rollout):
    """An advantage without a value model: a response's score less its KL, over the mean of all."""
    totals = rollout.rewards.sum(1)
    return whiten((totals - totals.mean())[:, None] * rollout.mask, rollout.mask)


@pytest.fixture
def prompts(recited):
    return [row["prompt"] for row in recited]


def run(policy, reference, reward, prompts, **options):
    return ppo_training(policy, reference, reward, prompts, **{**FEW, **options})


# --- the first episode ----------------------------------------------------------------------------


def test_first_ratio_is_1_and_first_kl_0(reciter, copy_of, make_reward, prompts, tmp_path):
    policy, rewards, kls = run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3,
                               out=str(tmp_path))
    history = read_history(tmp_path)
    ratios = history["val/first_ratio"]  # of every rollout, not only the first
    assert ratios == pytest.approx([1.0] * 6, abs=1e-5)
    assert kls[0] == pytest.approx(0, abs=1e-5)
    assert history["objective/kl"][0] == pytest.approx(0, abs=1e-5)
    assert kls[-1] > 1e-3
    assert rewards == history["objective/scores"] and kls == history["objective/kl_exact"]
    assert len(rewards) == len(kls) == 6 and not policy.training


def test_logged_metrics_carry_trls_names_and_add_up(reciter, copy_of, make_reward, prompts,
                                                    tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, kl_coeff=0.3, max_approxkl=1e9,
        out=str(tmp_path))
    history = read_history(tmp_path)
    names = {"objective/kl", "objective/entropy", "objective/non_score_reward",
             "objective/rlhf_reward", "objective/scores", "policy/approxkl_avg",
             "policy/clipfrac_avg", "loss/policy_avg", "loss/value_avg", "val/clipfrac_avg",
             "val/ratio", "val/num_eos_tokens"}
    assert names <= history.keys()
    columns = [history["objective/" + name]
               for name in ("kl", "scores", "non_score_reward", "rlhf_reward")]
    for kl, score, non_score, total in zip(*columns, strict=True):
        assert non_score == pytest.approx(-0.3 * kl, abs=1e-6)
        assert total == pytest.approx(score + non_score, abs=1e-6)
    assert history["val/updates"] == [2 * math.ceil(12 / 5)] * 6
    assert history["objective/kl_coeff"] == [0.3] * 6


def test_advantages_are_whitened_over_the_rollout(reciter, copy_of, make_reward, prompts, tmp_path):
    """At ratio 1 the loss is minus the mean advantage of the rollout, which whitening makes 0."""
    run(copy_of(reciter), reciter, make_reward(), prompts, minibatch_size=12, ppo_epochs=1,
        out=str(tmp_path))
    assert read_history(tmp_path)["loss/policy_avg"] == pytest.approx([0.0] * 6, abs=1e-4)


def test_reference_and_reward_model_are_left_as_they_were(reciter, copy_of, make_reward, prompts,
                                                          weights_of, weights_equal):
    reference, reward = copy_of(reciter), make_reward()
    kept = weights_of(reference), weights_of(reward)
    policy, _, _ = run(copy_of(reciter), reference, reward, prompts, lr=1e-3)
    assert weights_equal(reference, kept[0]) and weights_equal(reward, kept[1])
    assert not weights_equal(policy, kept[0])


# --- learning -------------------------------------------------------------------------------------


@pytest.mark.parametrize("advantage", ["gae", score_over_the_mean], ids=["gae", "a function"])
def test_training_raises_a_known_reward_well_above_its_start(reciter, copy_of, small, prompts,
                                                             advantage):
    policy, rewards, _ = run(copy_of(reciter), reciter, ByteReward(**small), prompts,
                             num_episodes=80, lr=2e-3, batch_size=64, minibatch_size=12,
                             max_new_tokens=24, advantage=advantage, samples_per_prompt=1)
    assert sum(rewards[-5:]) / 5 > rewards[0] + 1.5
    share_of_o = []
    for model in (reciter, policy):
        text = "".join(response.text for response in generate(model, prompts * 5, 24, seed=0))
        share_of_o.append(text.count("o") / len(text))
    assert share_of_o[1] > share_of_o[0] + 0.5


def test_ppo_training_reaches_the_closed_form_optimum_of_one_token_answers(make_model, copy_of,
                                                                           make_reward):
    """All 256 answers can be enumerated.

    At least 85 % of what r - beta KL can gain is gained, and none is invented.
    """
    reference, reward, beta, penalty = make_model(1, spread=3), make_reward(2, spread=4), 0.3, 0.0
    with torch.no_grad():
        ids = torch.tensor([[*tokenize_prompt("?", 64), token] for token in range(256)])
        r = reward(ids, torch.full((256,), 3)).double()
        start = reference(ids[:1, :2])[0, -1].double().log_softmax(-1)
    optimum = (start + r / beta).log_softmax(-1)

    def objective(logps):
        return float((logps.exp() * (r - beta * (logps - start))).sum())
    policy, _, kls = ppo_training(copy_of(reference), reference, reward, ["?"] * 256,
                                  num_episodes=60, lr=3e-3, kl_coeff=beta, batch_size=256,
                                  minibatch_size=64, max_new_tokens=1,
                                  missing_eos_penalty=penalty, value_lr=3e-3)
    with torch.no_grad():
        reached = policy(ids[:1, :2])[0, -1].double().log_softmax(-1)
    possible = objective(optimum) - objective(start)
    assert possible > 0.3
    assert 0.85 < (objective(reached) - objective(start)) / possible <= 1.0
    expected = float((optimum.exp() * (optimum - start)).sum())
    assert kls[-1] == pytest.approx(expected, rel=0.4)


def test_an_answer_that_does_not_end_pays_the_penalty(make_model, copy_of, make_reward):
    """With nothing but the penalty to gain, the policy learns to end at once."""
    reference = make_model(1, spread=2)
    reward = make_reward()
    torch.nn.init.zeros_(reward.head.weight)
    _, rewards, _ = ppo_training(copy_of(reference), reference, reward, ["?"] * 128,
                                 num_episodes=60, lr=5e-3, kl_coeff=0.0, batch_size=128,
                                 max_new_tokens=4, missing_eos_penalty=2.0)
    assert rewards[0] < -1.8
    assert sum(rewards[-5:]) / 5 > -0.5


def test_a_higher_price_of_kl_holds_the_policy_closer(reciter, copy_of, small, prompts):
    gone = []
    for kl_coeff in (0.0, 5.0):
        _, _, kls = run(copy_of(reciter), reciter, ByteReward(**small), prompts, num_episodes=20,
                        lr=2e-3, kl_coeff=kl_coeff, batch_size=64, minibatch_size=12)
        gone.append(sum(kls[-5:]) / 5)
    assert gone[0] > 1.5 * gone[1] > 0


# --- the coefficient, the early stop --------------------------------------------------------------


def test_adaptive_factor_by_hand():
    config = PPOConfig(target_kl=6.0, kl_horizon=1000)
    assert adaptive_factor(6.0, config, 100) == 1.0
    assert adaptive_factor(6.6, config, 100) == pytest.approx(1 + 0.1 * 100 / 1000)
    assert adaptive_factor(60.0, config, 100) == pytest.approx(1 + 0.2 * 100 / 1000)
    assert adaptive_factor(0.0, config, 100) == pytest.approx(1 - 0.2 * 100 / 1000)
    assert adaptive_factor(60.0, PPOConfig(target_kl=None), 100) == 1.0


def test_adaptive_coefficient_follows_the_sampled_kl(reciter, copy_of, make_reward, prompts,
                                                     tmp_path):
    options = {"target_kl": 0.5, "kl_horizon": 50}
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=3e-3, kl_coeff=0.4,
        out=str(tmp_path), **options)
    history = read_history(tmp_path)
    expected = [0.4]
    for kl in history["objective/kl"][:-1]:
        expected.append(expected[-1] * adaptive_factor(kl, PPOConfig(**options), 12))
    assert history["objective/kl_coeff"] == pytest.approx(expected)
    assert expected[1] == pytest.approx(0.4 * (1 - 0.2 * 12 / 50))


def test_a_rollout_that_is_used_up_is_updated_on_no_more(reciter, copy_of, make_reward, prompts,
                                                         tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-2, warmup=0.0, max_approxkl=1e-3,
        out=str(tmp_path))
    history = read_history(tmp_path)
    assert min(history["val/updates"]) < 6


def test_a_limit_near_zero_still_logs_every_metric_of_every_episode(reciter, copy_of, make_reward,
                                                                  prompts, tmp_path):
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-2, max_approxkl=1e-12,
        out=str(tmp_path))
    history = read_history(tmp_path)  # a KeyError where a line lacks a metric
    assert {len(values) for values in history.values()} == {6}


# --- bookkeeping ----------------------------------------------------------------------------------


def test_measured_figures_are_logged_and_change_nothing(reciter, copy_of, make_reward, prompts,
                                                        tmp_path, weights_equal):
    seen = []

    def measure(asked, texts):
        seen.append((asked, texts))
        return {"length": sum(map(len, texts)) / len(texts)}
    with_it, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts, measure=measure,
                        out=str(tmp_path))
    without, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts)
    assert weights_equal(with_it, without)
    expected = [sum(map(len, texts)) / len(texts) for _, texts in seen]
    assert read_history(tmp_path)["length"] == expected
    assert all(len(asked) == 12 and set(asked) <= set(prompts) for asked, _ in seen)


@pytest.mark.parametrize("batch_size", [3, 12, 50])
def test_every_rollout_is_a_full_one_however_many_prompts_there_are(
        reciter, copy_of, make_reward, prompts, batch_size, monkeypatch):
    # most_tokens is for what has a backward pass
    monkeypatch.setattr("minigpt.training.most_tokens", lambda device: 1)
    asked = []
    run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=3, batch_size=batch_size,
        measure=lambda batch, _: asked.append(batch) or {})
    assert [len(batch) for batch in asked] == [min(batch_size, len(prompts))] * 3
    assert {prompt for batch in asked for prompt in batch} <= set(prompts)
    assert len(set(map(tuple, asked))) == 3


def test_an_update_in_parts_is_the_update(reciter, copy_of, make_reward, prompts, monkeypatch):
    policies = []
    for rows in (3, 1000):
        monkeypatch.setattr("ppo.rollout.RESPONSES_AT_ONCE", rows)
        policy, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=1,
                           lr=1e-3)
        policies.append(policy)
    for parts, whole in zip(*(policy.parameters() for policy in policies), strict=True):
        torch.testing.assert_close(parts, whole, rtol=0, atol=1e-5)


def test_same_seed_same_bits_and_another_seed_others(reciter, copy_of, make_reward, prompts,
                                                     weights_equal):
    policies = [run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, seed=seed)[0]
                for seed in (0, 0, 1)]
    assert weights_equal(policies[0], policies[1])
    assert not weights_equal(policies[0], policies[2])


@pytest.mark.parametrize("options", [{"target_kl": None}, {"target_kl": 0.5},
                                     {"advantage": score_over_the_mean}],
                         ids=["fixed", "adaptive", "without a value model"])
def test_resumed_ppo_repeats_the_unbroken_run_bit_for_bit(reciter, copy_of, make_reward, prompts,
                                                          check_resume, options):
    def train(out, resume):
        return run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=8, lr=1e-3,
                   kl_horizon=50, save_every=2, out=out, resume=resume, **options)[0]
    check_resume(train)


def test_bfloat16_trains(reciter, copy_of, small, prompts):
    _, rewards, kls = run(copy_of(reciter), reciter, ByteReward(**small), prompts, num_episodes=20,
                          lr=2e-3, batch_size=64, minibatch_size=12, precision="bfloat16")
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.3
    assert kls[0] == pytest.approx(0, abs=1e-3)


# --- another advantage, value model, KL, sampler --------------------------------------------------


def test_a_function_as_advantage_trains_without_a_value_model(reciter, copy_of, make_reward,
                                                              prompts, tmp_path):
    rollouts = []

    def advantage(rollout):
        rollouts.append(rollout)
        return score_over_the_mean(rollout)
    run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3, advantage=advantage,
        max_approxkl=1e9, out=str(tmp_path))
    assert len(rollouts) == 6
    assert load_state(tmp_path / "state.pt")["models"].keys() == {"policy"}
    history = read_history(tmp_path)
    assert not {"loss/value_avg", "val/clipfrac_avg", "val/explained_variance"} & history.keys()
    assert history["objective/scores"] == pytest.approx(
        [float(rollout.scores.mean()) for rollout in rollouts])
    assert history["val/updates"] == [2 * math.ceil(12 / 5)] * 6


@pytest.mark.parametrize("whitened", [True, False])
def test_gae_as_a_function_of_the_rollout_is_the_first_step_of_gae(reciter, copy_of, make_reward,
                                                                   prompts, whitened):
    """The policy's part of an update does not depend on whether a value model learns beside it."""
    reward = make_reward()

    def advantage(rollout):
        advantages, _ = gae(rollout.rewards, reward.values(rollout.batch), rollout.mask)
        return whiten(advantages, rollout.mask) if whitened else advantages
    options = {"num_episodes": 1, "ppo_epochs": 1, "minibatch_size": 12, "lr": 1e-3,
               "samples_per_prompt": 1}
    policy, _, _ = run(copy_of(reciter), reciter, reward, prompts, whiten=whitened, **options)
    by_hand, _, _ = run(copy_of(reciter), reciter, reward, prompts, advantage=advantage, **options)
    for found, expected in zip(policy.parameters(), by_hand.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_advantages_are_whitened_only_if_asked_for(reciter, copy_of, make_reward, prompts,
                                                   tmp_path):
    """At ratio 1 the loss is minus the mean advantage of the rollout."""
    means = []

    def measured_by(reward):
        def advantage(rollout):
            advantages, _ = gae(rollout.rewards, reward.values(rollout.batch), rollout.mask)
            means.append(float(advantages[rollout.mask].mean()))
            return advantages
        return advantage
    options = {"num_episodes": 1, "ppo_epochs": 1, "minibatch_size": 12, "samples_per_prompt": 1}
    run(copy_of(reciter), reciter, make_reward(), prompts, advantage=measured_by(make_reward()),
        **options)
    run(copy_of(reciter), reciter, make_reward(), prompts, whiten=False, out=str(tmp_path),
        **options)
    assert abs(means[0]) > 0.1
    assert read_history(tmp_path)["loss/policy_avg"] == pytest.approx([-means[0]], abs=1e-4)


def test_the_value_model_starts_as_a_copy_of_the_reward_model(reciter, copy_of, make_reward,
                                                              prompts, tmp_path, weights_equal):
    run(copy_of(reciter), reciter, make_reward(), prompts, value_lr=1e-300, out=str(tmp_path))
    assert weights_equal(make_reward(), load_state(tmp_path / "state.pt")["models"]["value"])


def test_a_value_model_of_fewer_layers_starts_as_the_lower_ones_of_the_reward_model(
        reciter, copy_of, make_reward, prompts, tmp_path):
    reward = make_reward()
    nn.init.constant_(reward.head.bias, 3.0)  # as `center` does
    run(copy_of(reciter), reciter, reward, prompts, value_lr=1e-300, value_layers=1,
        out=str(tmp_path))
    kept, whole = load_state(tmp_path / "state.pt")["models"]["value"], reward.state_dict()
    dropped = {name for name in whole if name not in kept}
    assert kept.keys() < whole.keys() and all(".blocks.0." not in name for name in dropped)
    assert {name.split(".")[2] for name in dropped} == {"1"}  # of two layers
    changed = {name for name in kept if not torch.equal(kept[name], whole[name])}
    assert changed == {"head.weight", "head.bias"}
    assert not kept["head.weight"].any() and not kept["head.bias"].any()


@pytest.mark.parametrize("layers", [None, 2, 9])
def test_a_value_model_of_all_layers_keeps_its_head(make_reward, reciter, layers, weights_equal):
    reward = make_reward()
    value_model = first_value_model(reward, reciter, layers)
    assert value_model is not reward and weights_equal(value_model, reward.state_dict())
    assert value_model.settings == reward.settings


def test_layers_of_a_value_model_that_is_there_already_raise(reciter, copy_of, make_reward,
                                                             prompts):
    with pytest.raises(ValueError, match=r"value_layers=1 would change nothing: there is a value_"):
        run(copy_of(reciter), reciter, make_reward(), prompts, value_model=make_reward(),
            value_layers=1)


def test_a_value_model_of_ones_own_is_used_and_trained_in_place(reciter, copy_of, make_reward,
                                                                prompts, weights_equal,
                                                                weights_of, tmp_path):
    def policy_with(value_model, **options):
        return run(copy_of(reciter), reciter, make_reward(), prompts, lr=1e-3,
                   value_model=value_model, **options)[0]
    copied, other = copy.deepcopy(make_reward()), make_reward(7)
    kept = weights_of(other)
    default, same = policy_with(None), policy_with(copied)
    assert weights_equal(default, same)
    assert not weights_equal(copied, make_reward())
    assert not weights_equal(policy_with(other, out=str(tmp_path)), default)
    assert not weights_equal(other, kept)
    assert weights_equal(other, load_state(tmp_path / "state.pt")["models"]["value"])


@pytest.mark.parametrize("advantage", ["GAE", "reinforce", "", None])
def test_an_unknown_advantage_raises(reciter, copy_of, make_reward, prompts, advantage):
    with pytest.raises(ValueError, match=r"^advantage=.* must be one of gae, rloo, grpo"):
        run(copy_of(reciter), reciter, make_reward(), prompts, advantage=advantage)


def test_a_value_model_beside_a_function_raises(reciter, copy_of, make_reward, prompts):
    with pytest.raises(ValueError, match="no use for a value_model: only 'gae' has"):
        run(copy_of(reciter), reciter, make_reward(), prompts, advantage=score_over_the_mean,
            value_model=make_reward())


def test_another_kl_estimator_is_what_is_paid_and_logged(reciter, copy_of, make_reward, prompts,
                                                         tmp_path, weights_equal):
    estimates = []

    def estimator(logps, ref_logps):
        estimates.append(kl_k3(logps, ref_logps))
        return estimates[-1]
    options = {"lr": 1e-3, "kl_coeff": 1.0}
    policy, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts, kl_estimator=estimator,
                       out=str(tmp_path), **options)
    default, _, _ = run(copy_of(reciter), reciter, make_reward(), prompts, **options)
    expected = [float(estimate.sum(1).mean()) for estimate in estimates]
    assert len(expected) == 6 and min(expected) >= 0 and expected[-1] > 0
    assert read_history(tmp_path)["objective/kl"] == pytest.approx(expected)
    assert not weights_equal(policy, default)


def test_another_sampler_draws_the_responses(reciter, copy_of, make_reward, prompts, tmp_path):
    answers, asked, seeds = [], [], []

    def sample(policy, prompt_ids, max_new_tokens, *, generator):
        assert max_new_tokens == 8
        asked.append(prompt_ids)
        seeds.append(generator.initial_seed())
        return [[*encode("no"), EOS] for _ in prompt_ids]

    def measure(prompts, texts):
        answers.extend(texts)
        return {}
    run(copy_of(reciter), reciter, make_reward(), prompts, sample=sample, measure=measure,
        out=str(tmp_path))
    assert answers == ["no"] * 6 * 12
    history = read_history(tmp_path)
    assert history["val/num_eos_tokens"] == [12] * 6 and history["val/response_tokens"] == [3] * 6
    expected = sorted([*encode(prompt), SEP] for prompt in prompts)
    assert [sorted(prompt_ids) for prompt_ids in asked] == [expected] * 6
    assert len(set(seeds)) == 6  # the numbers of an episode are its own


# --- defaults and prompts -------------------------------------------------------------------------


def test_without_settings_it_does_what_the_command_does(reciter, copy_of, make_reward, prompts,
                                                        weights_equal):
    (command,) = parse("", [], PPOConfig)
    prompts = prompts[:2]  # for the many episodes
    policy, rewards, kls = ppo_training(copy_of(reciter), reciter, make_reward(), prompts)
    as_commanded, *expected = ppo_training(copy_of(reciter), reciter, make_reward(), prompts,
                                           **vars(command))
    assert weights_equal(policy, as_commanded) and [rewards, kls] == expected
    assert len(rewards) == command.num_episodes


def test_defaults_are_those_of_the_config():
    parameters = inspect.signature(ppo_training).parameters
    for name in ("num_episodes", "lr", "kl_coeff"):
        assert parameters[name].default in (None, getattr(PPOConfig(), name))  # None: the recipe's
    assert parameters["advantage"].default == "gae"


def test_prompts_are_rows_without_a_response():
    batches = prompt_batches(["hi"], 64, PPOConfig())
    assert batches.examples == [(bytes([*encode("hi"), SEP]), (), False)]


# --- bad input ------------------------------------------------------------------------------------


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


def test_a_reward_that_is_not_finite_raises_naming_the_step(reciter, copy_of, make_reward, prompts,
                                                            weights_equal):
    reward, policy = make_reward(), copy_of(reciter)
    torch.nn.init.constant_(reward.head.bias, float("nan"))
    with pytest.raises(FloatingPointError, match="step 1"):
        run(policy, reciter, reward, prompts)
    assert weights_equal(policy, reciter)


def test_sampling_and_shuffling_draw_from_seeds_of_their_own_in_every_episode(
        reciter, copy_of, make_reward, prompts, monkeypatch):
    seeds, seeded = [], minigpt.seeding.seeded

    def recorded(*arguments, **more):
        generator = seeded(*arguments, **more)
        seeds.append(generator.initial_seed())
        return generator
    monkeypatch.setattr("ppo.train.seeded", recorded)
    for seed, rank in ((0, 0), (1, 0), (0, 1)):
        monkeypatch.setattr("minigpt.distributed.rank", lambda rank=rank: rank)
        run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=3, seed=seed)
    assert len(seeds) == 18
    of_rank_1 = seeds[12:]
    assert len(set(seeds[:12])) == 12
    assert of_rank_1[1::2] == seeds[1:6:2]  # every process shuffles alike
    assert not set(of_rank_1[::2]) & set(seeds[:12])  # and samples in its own way


@pytest.mark.parametrize(("minibatch", "k"), [(5, 1), (6, 2), (4, 4)])
def test_gae_takes_as_many_responses_to_a_prompt_as_divide_the_batch_sizes(
        reciter, copy_of, make_reward, prompts, minibatch, k):
    asked = []
    run(copy_of(reciter), reciter, make_reward(), prompts, num_episodes=1, minibatch_size=minibatch,
        measure=lambda texts, _: asked.extend(texts) or {})
    assert len(asked) == 12 and asked == [prompt for prompt in asked[::k] for _ in range(k)]


def test_a_number_of_responses_that_was_chosen_must_divide_them(reciter, copy_of, make_reward,
                                                                prompts):
    with pytest.raises(UserError, match=r"minibatch_size=5 .* multiple of samples_per_prompt=4"):
        run(copy_of(reciter), reciter, make_reward(), prompts, samples_per_prompt=4)
