"""PPO's loop with groups of responses (RLOO, GRPO, one's own function), and with any reward."""

import argparse
import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.task import Task
from minigpt import EOS, MiniGPT, encode, generate
from minigpt.batching import collate
from minigpt.checkpoint import load_state
from minigpt.command import run_command
from minigpt.distributed import rank, start
from minigpt.errors import UserError
from minigpt.kl import kl_k3
from minigpt.run_folder import read_history
from ppo import ppo_training
from ppo.main import signs_in_training
from ppo.train import PPOConfig
from reward import Ensemble

K = 4
FEW = {"num_episodes": 3, "lr": 1e-3, "kl_coeff": 0.02, "batch_size": 12, "minibatch_size": 4,
       "samples_per_prompt": K, "max_new_tokens": 8}
GROUPS = pytest.mark.parametrize("advantage", ["rloo", "grpo"])
WITHOUT_GROUPS = {"advantage": "gae", "samples_per_prompt": 1}


def os_in(prompts, responses):
    """The number of 'o's, less half that of other letters."""
    return [1.5 * text.count("o") - 0.5 * len(text) for text in responses]


def longer(prompts, responses):
    return [float(len(text)) for text in responses]


def flat(prompts, responses):
    return [0.1] * len(responses)


@pytest.fixture
def prompts(recited):
    return [row["prompt"] for row in recited]


@pytest.fixture
def train(reciter, copy_of, prompts):
    """train(reward, ...) -> what `ppo_training` returns for a copy of the reciter."""
    def run(reward=os_in, policy=None, reference=reciter, prompts=prompts, **options):
        policy = copy_of(reciter) if policy is None else policy
        return ppo_training(policy, reference, reward, prompts,
                            **{**FEW, "advantage": "rloo", **options})
    return run


def counted(policy, prompt_ids, max_new_tokens, *, generator):
    """A response that depends on the prompt and on how often it occurred before."""
    seen, responses = {}, []
    for ids in prompt_ids:
        key = bytes(ids)
        seen[key] = seen.get(key, 0) + 1
        text = encode("o" * (ids[0] % 4) + "xyzw"[:seen[key]])
        responses.append([*text, *[EOS] * (seen[key] % 2)])
    return responses


def backwards(policy, prompt_ids, max_new_tokens, *, generator):
    """The same, each group in reverse."""
    responses = counted(policy, prompt_ids, max_new_tokens, generator=generator)
    return [responses[n - n % K + K - 1 - n % K] for n in range(len(responses))]


def assert_close(policy, other, atol):
    for found, expected in zip(policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)


# --- learning -------------------------------------------------------------------------------------


@GROUPS
def test_training_raises_a_known_reward_without_a_value_model(train, reciter, prompts, tmp_path,
                                                              advantage):
    policy, rewards, _ = train(advantage=advantage, num_episodes=30, lr=2e-3, batch_size=32,
                               minibatch_size=16, missing_eos_penalty=0.0, out=str(tmp_path))
    assert sum(rewards[-5:]) / 5 > rewards[0] + 3
    share_of_o = []
    for model in (reciter, policy):
        text = "".join(response.text for response in generate(model, prompts * 5, 8, seed=0))
        share_of_o.append(text.count("o") / len(text))
    assert share_of_o[1] > share_of_o[0] + 0.4
    assert load_state(tmp_path / "state.pt")["models"].keys() == {"policy"}
    history = read_history(tmp_path)
    assert not {"loss/value_avg", "val/clipfrac_avg", "val/explained_variance"} & history.keys()
    assert ("loss/kl_avg" in history) == (advantage == "grpo")  # as its recipe says


def by_hand(rollout, advantage, k=K):
    """Advantages response by response."""
    found = torch.zeros_like(rollout.rewards)
    for row, segments in enumerate(rollout.batch.segments):
        places = [segments == j for j in range(1, k + 1)]
        returns = torch.stack([rollout.rewards[row][place].sum() for place in places])
        for j, place in enumerate(places):
            if advantage == "rloo":
                others = torch.cat([returns[:j], returns[j + 1:]])
                found[row][place] = returns[j] - others.mean()
            else:
                found[row][place] = (returns[j] - returns.mean()) / (returns.std() + 1e-4)
    return found


def exact_by_hand(rollout, kl_coeff, k=K):
    """RLOO with the exact KL, token by token."""
    found = torch.zeros_like(rollout.rewards)
    for row, segments in enumerate(rollout.batch.segments):
        places = [(segments == j).nonzero()[:, 0] for j in range(1, k + 1)]
        for j, place in enumerate(places):
            others = [i for i in range(k) if i != j]
            score = rollout.scores[row, j] - rollout.scores[row, others].mean()
            for t, column in enumerate(place):
                later = [rollout.token_kl[row, of[t + 1:]].sum() for of in places]
                log_ratio = rollout.logps[row, column] - rollout.ref_logps[row, column]
                paid = log_ratio - rollout.token_kl[row, column] + later[j] \
                    - sum(later[i] for i in others) / (k - 1)
                found[row, column] = score - kl_coeff * paid
    return found


def test_rloo_with_the_exact_kl_is_what_it_is_by_hand_at_the_coefficient_of_the_episode(
        train, make_model, tmp_path):
    def function(rollout):
        used.append(0.3 if not used else 0.8 * used[-1])  # the answers are not its own: KL < 0
        return exact_by_hand(rollout, used[-1])
    options = {"reference": make_model(3, spread=4), "kl_coeff": 0.3, "target_kl": 1e-3,
               "kl_horizon": 12, "num_episodes": 2, "ppo_epochs": 1, "sample": counted}
    used = []
    found = train(out=str(tmp_path), **options)[0]
    expected = train(advantage=function, **options)[0]
    assert read_history(tmp_path)["objective/kl_coeff"] == pytest.approx(used)
    assert_close(found, expected, 1e-5)


@GROUPS
def test_an_advantage_stands_on_all_tokens_of_its_response_and_is_that_of_score_less_kl(
        train, make_model, advantage):
    """A policy that is not its reference, or nothing would be paid.

    And responses that differ: GRPO makes much of the rounding by which equal ones do.
    """
    seen = []

    def function(rollout):
        seen.append(rollout)
        return by_hand(rollout, advantage)
    options = {"reference": make_model(3, spread=4), "kl_in": "reward", "kl_penalty": "sampled",
               "kl_coeff": 0.3, "num_episodes": 1, "ppo_epochs": 1, "sample": counted}
    found, expected = (train(advantage=one, **options)[0] for one in (advantage, function))
    assert_close(found, expected, 1e-5)
    assert seen[0].scores.shape == seen[0].finished.shape == (3, K)  # a function gets groups, too
    paid = seen[0].scores - seen[0].batch.response_sums(seen[0].rewards)
    assert paid.abs().min() > 0.1
    assert seen[0].batch.token_ids.shape[0] == 3


def test_where_every_group_is_flat_not_one_bit_is_changed(train, reciter, prompts, tmp_path,
                                                          weights_equal):
    for advantage in ("rloo", "grpo"):
        policy, rewards, _ = train(flat, advantage=advantage, lr=1e-2, kl_coeff=0.0,
                                   missing_eos_penalty=0.0, batch_size=14, minibatch_size=7,
                                   samples_per_prompt=7, out=str(tmp_path / advantage))
        assert weights_equal(policy, reciter)
        assert rewards == pytest.approx([0.1] * 3)
        history = read_history(tmp_path / advantage)
        assert history["val/flat_groups"] == [2.0] * 3 and history["loss/policy_avg"] == [0.0] * 3


# --- the first update, and what is counted --------------------------------------------------------


@GROUPS
def test_at_a_rate_near_0_the_ratio_stays_1_and_flat_groups_are_counted(train, tmp_path, advantage,
                                                                        reciter, weights_equal):
    """A response pays no penalty here, so that a group is flat if its texts are equally long."""
    counts = []

    def measure(asked, texts):
        assert len(texts) == 24
        groups = [(set(asked[n:n + K]), longer(asked[n:n + K], texts[n:n + K]))
                  for n in range(0, 24, K)]
        assert all(len(prompt) == 1 for prompt, _ in groups)
        counts.append(sum(len(set(scores)) == 1 for _, scores in groups))
        return {}
    policy, _, kls = train(longer, advantage=advantage, lr=1e-300, batch_size=24, kl_coeff=0.5,
                           missing_eos_penalty=0.0, measure=measure, out=str(tmp_path))
    history = read_history(tmp_path)
    assert weights_equal(policy, reciter)
    assert history["val/first_ratio"] == pytest.approx([1.0] * 3, abs=1e-5)
    assert history["val/ratio"] == pytest.approx([1.0] * 3, abs=1e-5)
    assert kls == pytest.approx([0.0] * 3, abs=1e-5)
    assert history["val/flat_groups"] == counts
    assert 0 < sum(counts) < 18  # or this would test little
    assert history["val/updates"] == [2 * 24 / 4] * 3  # ppo_epochs, and groups stay whole


def test_a_warning_says_so_once_most_groups_are_flat(train, capsys):
    train(flat, lr=1e-300, missing_eos_penalty=0.0)
    assert capsys.readouterr().out.count("in 100% of the groups all responses score the same") == 1
    train(flat, lr=1e-300, missing_eos_penalty=0.0, advantage=lambda rollout: rollout.rewards)
    assert capsys.readouterr().out.count("in 100% of the groups all responses score the same") == 1
    train(longer, lr=1e-300, advantage="gae", samples_per_prompt=1)
    train(flat, lr=1e-300, missing_eos_penalty=0.0, advantage="gae")  # its value model still learns
    assert "of the groups" not in capsys.readouterr().out


def test_the_report_warns_of_the_episode_that_training_warned_of():
    task = Task(64, prompt_rows=[{"prompt": str(number)} for number in range(4)])
    config = PPOConfig(batch_size=8, minibatch_size=4, advantage="rloo", samples_per_prompt=2)
    history = {"objective/kl_exact": [1.0, 30.0, 40.0], "val/num_eos_tokens": [8.0, 3.0, 8.0],
               "val/flat_groups": [2.0, 4.0, 0.0]}
    kl, ends, groups = signs_in_training(history, task, config)
    assert kl.startswith("episode 2: the policy is 30 nats per response away")
    assert ends.startswith("episode 2: only 38% of the responses end by themselves")
    assert groups.startswith("episode 2: in 100% of the groups")
    well = {name: values[:1] for name, values in history.items()}
    assert signs_in_training(well, task, config) == []


def test_without_groups_none_are_counted(train, tmp_path):
    train(**WITHOUT_GROUPS, num_episodes=1, out=str(tmp_path))
    assert "val/flat_groups" not in read_history(tmp_path)


# --- the KL ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_kl_enters_either_the_rewards_or_the_loss(train, make_model, tmp_path, kl_in):
    rollouts = []

    def advantage(rollout):
        rollouts.append(rollout)
        return by_hand(rollout, "rloo")
    train(reference=make_model(3, spread=4), advantage=advantage, kl_in=kl_in, kl_coeff=0.3,
          out=str(tmp_path))
    history = read_history(tmp_path)
    assert ("loss/kl_avg" in history) == (kl_in == "loss")
    assert len(rollouts) == 3
    for rollout in rollouts:
        sums = rollout.batch.response_sums
        paid = 0.3 * sums(rollout.kl)
        assert paid.abs().min() > 0.1
        if kl_in == "loss":
            assert torch.equal(sums(rollout.rewards), rollout.scores)
        else:
            torch.testing.assert_close(sums(rollout.rewards), rollout.scores - paid)
    if kl_in == "loss":
        assert len(history["loss/kl_avg"]) == 3 and min(history["loss/kl_avg"]) > 0  # k3
    assert history["objective/non_score_reward"] == pytest.approx(  # reported in both cases
        [-0.3 * kl for kl in history["objective/kl"]])


def test_kl_in_the_loss_alone_draws_the_policy_back_to_its_reference(train, reciter, copy_of):
    """All groups are flat, so nothing else moves it."""
    away = copy_of(reciter)
    with torch.no_grad():
        for weight in away.parameters():
            weight += 0.03 * torch.randn(weight.shape)
    _, _, kls = train(flat, policy=away, kl_in="loss", kl_coeff=1.0, num_episodes=20,
                      batch_size=32, minibatch_size=16, missing_eos_penalty=0.0)
    assert sum(kls[-5:]) / 5 < 0.5 * kls[0]


def test_the_loss_pays_beta_times_k3_for_each_token(train, make_model, tmp_path):
    """A step along the gradient of beta k3, by hand, where all groups are flat."""
    reference, seen = make_model(3, spread=4), []

    def advantage(rollout):
        seen.append(rollout)
        return torch.zeros_like(rollout.rewards)
    train(reference=reference, advantage=advantage, kl_in="loss", kl_coeff=2.0, num_episodes=1,
          ppo_epochs=1, minibatch_size=12, out=str(tmp_path))
    log_ratio = (seen[0].ref_logps - seen[0].logps)[seen[0].mask]
    expected = float((log_ratio.exp() - 1 - log_ratio).mean())
    history = read_history(tmp_path)
    assert history["loss/kl_avg"] == pytest.approx([expected], rel=1e-4)
    assert history["grad_norm"][0] > 0 and history["loss/policy_avg"] == [0.0]


# --- how it is batched changes nothing ------------------------------------------------------------


@GROUPS
def test_an_update_in_parts_is_the_update(train, advantage, monkeypatch):
    policies = []
    for responses in (1, 9, 1000):  # one group at once, two, all
        monkeypatch.setattr("ppo.rollout.RESPONSES_AT_ONCE", responses)
        policies.append(train(advantage=advantage, num_episodes=1, batch_size=24,
                              minibatch_size=16)[0])
    assert_close(policies[0], policies[2], 1e-5)
    assert_close(policies[1], policies[2], 1e-5)


@GROUPS
def test_padding_changes_nothing(train, advantage, monkeypatch):
    policies, shapes = [], []

    def padded(examples, multiple_of):
        shapes.append(max(example.num_tokens for example in examples))
        return collate(examples, (), 200)
    for wide in (False, True):
        if wide:
            monkeypatch.setattr("ppo.rollout.collate", padded)
        policies.append(train(advantage=advantage, num_episodes=2)[0])
    assert max(shapes) < 64
    assert_close(*policies, 1e-5)


@GROUPS
def test_the_order_of_prompts_and_of_the_responses_to_one_changes_nothing(train, prompts,
                                                                          advantage):
    """In one minibatch, since the order decides what a minibatch holds."""
    options = {"advantage": advantage, "batch_size": 48, "minibatch_size": 48, "num_episodes": 1,
               "ppo_epochs": 2}
    policy = train(sample=counted, **options)[0]
    assert_close(policy, train(sample=counted, prompts=prompts[::-1], **options)[0], 1e-6)
    assert_close(policy, train(sample=backwards, **options)[0], 1e-6)


# --- settings -------------------------------------------------------------------------------------


@GROUPS
def test_without_settings_four_responses_to_each_prompt_are_drawn(train, advantage):
    """And batch_size counts responses."""
    asked = []
    train(advantage=advantage, samples_per_prompt=None, num_episodes=1, batch_size=24,
          measure=lambda prompts, _: asked.extend(prompts) or {})
    assert len(asked) == 24 and len(set(asked)) == 6
    assert asked == [prompt for prompt in asked[::4] for _ in range(4)]


def test_fewer_prompts_than_a_batch_asks_for_make_a_smaller_one(train):
    sizes = []
    train(prompts=["a?", "b?"], batch_size=48,
          measure=lambda prompts, _: sizes.append(len(prompts)) or {})
    assert sizes == [8, 8, 8]


@pytest.mark.parametrize(("options", "message"), [
    ({"samples_per_prompt": 1}, r"rloo compares .* must be at least 2"),
    ({"advantage": "grpo", "samples_per_prompt": 1}, r"grpo compares .* must be at least 2"),
    ({"batch_size": 10}, r"batch_size=10 .* multiple of samples_per_prompt=4"),
    ({"batch_size": 2}, r"batch_size=2 .* multiple of samples_per_prompt=4"),
    ({"minibatch_size": 6}, r"minibatch_size=6 .* multiple of samples_per_prompt=4"),
    ({"advantage": longer, "minibatch_size": 6}, r"minibatch_size=6 .* multiple"),
    ({"advantage": "ppo"}, r"advantage='ppo' must be one of gae, rloo, grpo"),
    ({"lam": 0.9}, r"lam=0\.9 would change nothing: it is for gae"),
    ({"advantage": "grpo", "value_lr": 1e-4}, r"value_lr=0\.0001 would change nothing"),
    ({"kl_in": "both"}, r"kl_in='both' must be one of reward, loss")])
def test_settings_that_do_not_fit_together_are_refused_with_the_reason(train, options, message,
                                                                       tmp_path):
    with pytest.raises(UserError, match=message):
        train(out=str(tmp_path / "run"), **options)
    assert not (tmp_path / "run").exists()  # before anything was done


@pytest.mark.parametrize("shape", [(3, K), (3,), ()])
def test_an_advantage_that_is_not_one_for_each_token_is_refused(train, shape):
    with pytest.raises(ValueError, match=r"returned .*but \(B, T\) = \(3, \d+\) is needed"):
        train(advantage=lambda rollout: torch.zeros(shape))


@pytest.mark.parametrize(("options", "reason"), [
    ({"kl_in": "loss"}, "kl_in=loss takes k3"), ({"kl_estimator": kl_k3}, "takes its place"),
    ({"advantage": "gae"}, "it is for rloo"), ({"advantage": "grpo"}, "it is for rloo"),
    ({"advantage": lambda rollout: rollout.rewards}, "it is for rloo")])
def test_the_exact_kl_is_refused_where_it_would_change_nothing(train, options, reason):
    with pytest.raises(UserError, match=rf"kl_penalty=exact .* would change nothing: .*{reason}"):
        train(kl_penalty="exact", **options)


def test_rloo_pays_the_exact_kl_unless_told_otherwise(train, weights_equal):
    by_default, exact, sampled, estimated = (train(**options)[0] for options in (
        {}, {"kl_penalty": "exact"}, {"kl_penalty": "sampled"},
        {"kl_estimator": lambda logps, ref_logps: logps - ref_logps}))
    assert weights_equal(by_default, exact) and weights_equal(sampled, estimated)
    assert not weights_equal(exact, sampled)


def test_a_kl_estimator_is_refused_where_the_loss_takes_k3(train):
    with pytest.raises(ValueError, match="kl_in='loss' uses k3"):
        train(kl_in="loss", kl_estimator=kl_k3)


def test_a_function_of_ones_own_may_be_named_like_an_advantage(train):
    """It gets what its caller asks for, and not the recipe of that name."""
    def rloo(rollout):
        shapes.append(rollout.scores.shape)
        return torch.zeros_like(rollout.rewards)
    shapes = []
    rloo.__qualname__ = "rloo"  # as if it stood at the top of a module
    train(advantage=rloo, samples_per_prompt=None, num_episodes=1)
    assert shapes == [(12, 1)]


@GROUPS
def test_a_value_model_beside_groups_is_refused(train, make_reward, advantage):
    with pytest.raises(ValueError, match=f"advantage='{advantage}' has no use for a value_model"):
        train(advantage=advantage, value_model=make_reward())


def test_an_adaptive_coefficient_counts_the_responses_of_an_episode(train, make_model, tmp_path):
    """As many as batch_size says, not as many as there are rows."""
    train(reference=make_model(3, spread=4), target_kl=0.1, kl_horizon=50, out=str(tmp_path))
    history = read_history(tmp_path)
    assert min(history["objective/kl"]) > 0.12  # so that the error is at its limit, 0.2
    assert history["objective/kl_coeff"] == pytest.approx(
        [0.02 * (1 + 0.2 * 12 / 50) ** n for n in range(3)])


# --- resuming, and several processes --------------------------------------------------------------


@pytest.mark.parametrize("options", [{"advantage": "rloo"}, {"advantage": "grpo", "kl_in": "loss"}],
                         ids=["rloo", "grpo"])
def test_a_resumed_run_repeats_the_unbroken_one_bit_for_bit(train, check_resume, options):
    check_resume(lambda out, resume: train(num_episodes=7, save_every=2, out=out, resume=resume,
                                           **options)[0])


def test_a_run_is_resumed_only_with_the_same_groups(train, tmp_path):
    options = {"num_episodes": 2, "save_every": 1, "out": str(tmp_path)}
    train(**options)
    for other in ({"samples_per_prompt": 2}, {"advantage": "grpo"}, {"kl_in": "loss"}):
        name, = other
        with pytest.raises(UserError, match=f"begun with {name}="):
            train(**{**options, **other}, resume=True)


def one_or_each_of_two_processes(out):
    """What each process of `torchrun` does in the test below; alone, it does it all."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start("cpu")
    policy = MiniGPT(embed_dim=32, num_heads=2, num_layers=2, max_seq_len=64, ff_dim=64)
    reference, processes = copy.deepcopy(policy), int(os.environ.get("WORLD_SIZE", 1))
    asked = []

    def measure(prompts, texts):
        asked.append(prompts)
        return {}

    def first_letters(prompts, responses):  # flat for every third prompt
        return [float(text == "xy") if ord(prompt[0]) % 3 else 1.0
                for prompt, text in zip(prompts, responses, strict=True)]

    def sample(policy, prompt_ids, max_new_tokens, *, generator):
        return [[*encode("xyz"[n % K % 2:][:2]), EOS] for n in range(len(prompt_ids))]
    size = 32 // processes
    ppo_training(policy, reference, first_letters, list("abcdefghij"), 4, 1e-3, advantage="rloo",
                 samples_per_prompt=K, sample=sample, batch_size=size, minibatch_size=size,
                 kl_coeff=0.1, measure=measure, out=out)
    torch.save({"asked": asked, "weights": policy.state_dict()}, f"{out}/rank{rank()}.pt")


def test_two_processes_keep_groups_whole_and_learn_what_one_does(tmp_path):
    """Where each answers with as many tokens, in one minibatch, the two do exactly what one does.
    """
    one_or_each_of_two_processes(str(tmp_path / "one"))
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         __file__, str(tmp_path / "two")], cwd=root, timeout=120, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    alone, first, second = (torch.load(tmp_path / name, weights_only=True) for name in
                            ("one/rank0.pt", "two/rank0.pt", "two/rank1.pt"))
    for episode in range(4):
        asked, *parts = (ranks["asked"][episode] for ranks in (alone, first, second))
        for part in parts:
            assert len(part) == 16 and part == [p for p in part[::K] for _ in range(K)]
        assert sorted(parts[0] + parts[1]) == sorted(asked)
    for name, weight in first["weights"].items():
        assert torch.equal(weight, second["weights"][name])
        torch.testing.assert_close(weight, alone["weights"][name], rtol=0, atol=1e-5)
    logs = [[json.loads(line) for line in (tmp_path / name / "metrics.jsonl").open()]
            for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5)  # val/flat_groups among them
    assert sum(line["val/flat_groups"] for line in logs[1]) > 0


# --- any reward -----------------------------------------------------------------------------------


def test_a_function_is_called_once_an_episode_with_the_texts_of_the_rollout(train):
    calls, measured = [], []

    def function(prompts, responses):
        calls.append((prompts, responses))
        return longer(prompts, responses)
    _, rewards, _ = train(function, missing_eos_penalty=0.0,
                          measure=lambda *texts: measured.append(texts) or {})
    assert calls == measured and len(calls) == 3
    assert rewards == pytest.approx([sum(longer(*texts)) / 12 for texts in calls])


@pytest.mark.parametrize("options", [{}, WITHOUT_GROUPS], ids=["rloo", "gae"])
def test_what_a_function_fails_on_is_named_with_its_prompt_and_answer(train, options):
    def fails(prompts, responses):
        return [1 / (text != "a rose") for text in responses]

    def sample(policy, prompt_ids, max_new_tokens, *, generator):
        return [[*encode("a rose" if bytes(ids[:1]) == b"c" else "no"), EOS] for ids in prompt_ids]
    with pytest.raises(ValueError, match=r"reward function .*fails failed on the prompt 'c\?' and "
                                         r"the response 'a rose': ZeroDivisionError"):
        train(fails, sample=sample, **options, num_episodes=12)


def test_a_score_that_is_no_number_is_refused(train, reciter, weights_equal, copy_of):
    policy = copy_of(reciter)
    with pytest.raises(ValueError, match=r"gave nan, which is not a finite number, for the prompt "
                                         r"'.\?' and the response '.*'"):
        train(lambda prompts, _: [float("nan")] * len(prompts), policy)
    assert weights_equal(policy, reciter)


@pytest.mark.parametrize("options", [{}, WITHOUT_GROUPS | {"value_lr": 1e-300}],
                         ids=["rloo", "gae"])
def test_an_ensemble_is_a_reward_and_values_start_from_its_first_model(
        train, make_reward, tmp_path, options, weights_equal, weights_of):
    members = [longer, make_reward(1), make_reward(2)]
    kept = [weights_of(member) for member in members[1:]]
    ensemble = Ensemble(members, weights=[0.1, 0.6, 0.4])
    train(ensemble, out=str(tmp_path), **options)
    assert all(map(weights_equal, members[1:], kept))
    models = load_state(tmp_path / "state.pt")["models"]
    assert ("value" in models) == bool(options)
    if options:
        assert weights_equal(members[1], models["value"])


def test_beside_a_function_gaes_value_model_is_the_start_with_a_head_of_zeros(
        train, reciter, tmp_path):
    train(**WITHOUT_GROUPS, value_lr=1e-300, out=str(tmp_path), num_episodes=1)
    value = load_state(tmp_path / "state.pt")["models"]["value"]
    assert (value["head.weight"] == 0).all() and (value["head.bias"] == 0).all()
    for name, weight in reciter.state_dict().items():
        assert torch.equal(value[f"trunk.{name}"], weight)


def test_beside_a_function_gaes_value_model_learns(train, tmp_path):
    train(longer, **WITHOUT_GROUPS, lr=1e-300, value_lr=3e-3, num_episodes=30, out=str(tmp_path))
    explained = read_history(tmp_path)["val/explained_variance"]
    assert explained[0] == pytest.approx(0, abs=1e-5)  # all its values are 0
    assert sum(explained[-5:]) / 5 > 0.2


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out")
    one_or_each_of_two_processes(parser.parse_args().out)


if __name__ == "__main__":
    run_command(main)
