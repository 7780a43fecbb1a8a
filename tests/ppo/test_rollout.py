import copy

import pytest
import torch

from minigpt import EOS, SEP, decode, encode
from minigpt.kl import exact_kl, kl_k3
from minigpt.sampling import sample_ids
from ppo import ppo_loss
from ppo.rollout import Experience, RolloutMaker, token_rewards
from ppo.train import PPOConfig, gae_by_response, prompt_batches
from reward import Ensemble
from reward.combine import as_reward

PROMPTS = ["", "a?", "b?", "how are you?", "g?", "é", "xyz", "k?"] * 2
KL_COEFF, PENALTY = 0.3, 1.7


@pytest.fixture(scope="module")
def models(reciter, make_model, make_reward):
    """The policy's answers end, some by EOS and some not; no two of the four models agree."""
    return reciter, make_model(3, spread=4), make_reward(4), make_reward(5)


def prompt_batch(prompts):
    batches = prompt_batches(prompts, 64, PPOConfig(batch_size=64))
    return batches.collate(list(range(len(prompts))))


def roll_out(models, prompts, max_new_tokens, kl_coeff, **how):
    policy, reference, reward, _ = models
    maker = RolloutMaker(reference, reward, max_new_tokens, PENALTY, **how)
    return maker(policy, prompt_batch(prompts), kl_coeff, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def rollout(models):
    return roll_out(models, PROMPTS, 9, KL_COEFF)


def real_rows(rollout):
    """(row number, its ids without padding, the columns of its response)"""
    for b, (ids, mask) in enumerate(zip(rollout.batch.token_ids, rollout.mask, strict=True)):
        columns = mask.nonzero()[:, 0].tolist()
        yield b, ids[:columns[-1] + 1], columns


# --- a rollout ------------------------------------------------------------------------------------


def test_rows_hold_prompts_and_responses(rollout):
    prompts, responses = rollout.texts()
    assert prompts == PROMPTS
    for b, ids, columns in real_rows(rollout):
        assert columns == list(range(columns[0], len(ids))) and len(columns) <= 9
        assert decode(ids[columns].tolist()) == responses[b]
        assert EOS not in ids[columns][:-1].tolist()


def test_rollout_has_answers_that_end_and_answers_that_do_not(rollout):
    ended = torch.tensor([bool(ids[-1] == EOS) for _, ids, _ in real_rows(rollout)])
    assert torch.equal(rollout.finished[:, 0], ended)
    assert ended.any() and not ended.all()


@torch.no_grad()
def test_log_probs_and_values_are_aligned_to_tokens(rollout, models):
    policy, reference, _, value_model = models
    values = value_model.values(rollout.batch)
    for b, ids, columns in real_rows(rollout):
        for t in columns:
            before = ids[None, :t]
            for model, logps in ((policy, rollout.logps), (reference, rollout.ref_logps)):
                logp = float(model(before)[0, -1].log_softmax(-1)[ids[t]])
                assert float(logps[b, t]) == pytest.approx(logp, abs=1e-3)
            assert float(values[b, t]) == pytest.approx(float(value_model(before)[0]), abs=1e-3)
    for tensor in (rollout.logps, rollout.ref_logps, values):
        assert (tensor[~rollout.mask] == 0).all()


@torch.no_grad()
def test_scores_are_those_of_the_reward_model_less_the_penalty_for_a_missing_eos(rollout, models):
    reward = models[2]
    for b, ids, _ in real_rows(rollout):
        expected = float(reward(ids[None])[0]) - (0 if ids[-1] == EOS else PENALTY)
        assert float(rollout.scores[b]) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_kl_is_the_sum_of_log_ratios_and_exact_kl_the_sum_of_kls(rollout, models):
    policy, reference, _, _ = models
    for b, ids, columns in real_rows(rollout):
        logits, ref_logits = policy(ids[None])[0], reference(ids[None])[0]
        before = [t - 1 for t in columns]
        ratios = logits[before].log_softmax(-1) - ref_logits[before].log_softmax(-1)
        sampled = ratios.gather(1, ids[columns][:, None]).sum()
        assert float(rollout.kl[b].sum()) == pytest.approx(float(sampled), abs=1e-3)
        exact = float(exact_kl(logits[before], ref_logits[before]).sum())
        assert float(rollout.exact_kl[b]) == pytest.approx(exact, abs=1e-3)
    assert (rollout.exact_kl > 0).all()


def test_rewards_sum_to_score_minus_beta_kl(rollout):
    torch.testing.assert_close(rollout.rewards.sum(1),
                               rollout.scores[:, 0] - KL_COEFF * rollout.kl.sum(1), rtol=1e-4,
                               atol=1e-4)
    assert (rollout.rewards[~rollout.mask] == 0).all()


@torch.no_grad()
def test_each_token_pays_its_own_kl_and_the_last_gets_the_score(rollout, models):
    reference = models[1]
    for b, ids, columns in real_rows(rollout):
        for t in columns:
            ref = float(reference(ids[None, :t])[0, -1].log_softmax(-1)[ids[t]])
            score = float(rollout.scores[b]) if t == columns[-1] else 0.0
            expected = -KL_COEFF * (float(rollout.logps[b, t]) - ref) + score
            assert float(rollout.rewards[b, t]) == pytest.approx(expected, abs=1e-3)


def test_token_rewards_by_hand():
    kl = torch.tensor([[0.0, 1.0, -2.0, 0.0], [0.0, 0.0, 3.0, 4.0]])
    found = token_rewards(torch.tensor([[5.0], [-1.0]]), kl, 0.5, last=torch.tensor([[2], [3]]))
    expected = torch.tensor([[0.0, -0.5, 1.0 + 5.0, 0.0], [0.0, 0.0, -1.5, -2.0 - 1.0]])
    assert torch.equal(found, expected)


def test_rollout_carries_no_gradient(rollout):
    parts = {**vars(rollout), **vars(rollout.batch)}
    tensors = [part for part in parts.values() if isinstance(part, torch.Tensor)]
    assert len(tensors) == 8 + 3
    assert not any(tensor.requires_grad for tensor in tensors)


def test_max_seq_len_ends_an_answer_and_it_pays_for_it(models):
    found = roll_out(models, ["a" * 61], 50, 0.0)
    assert found.batch.token_ids.shape[1] <= 64 and int(found.mask.sum()) <= 2


def test_another_kl_estimator_is_what_each_token_pays(rollout, models):
    found = roll_out(models, PROMPTS, 9, KL_COEFF, kl_estimator=kl_k3)
    assert torch.equal(found.logps, rollout.logps)
    assert torch.equal(found.kl, kl_k3(rollout.logps, rollout.ref_logps))
    assert not torch.equal(found.kl, rollout.kl) and (found.kl >= 0).all()
    torch.testing.assert_close(found.rewards.sum(1),
                               found.scores[:, 0] - KL_COEFF * found.kl.sum(1), rtol=1e-4,
                               atol=1e-4)
    assert torch.equal(found.exact_kl, rollout.exact_kl)  # a measurement, which is not paid


def test_another_sampler_draws_the_responses(models):
    calls = []

    def sample(policy, prompt_ids, max_new_tokens, *, generator):
        calls.append((policy, prompt_ids, max_new_tokens, generator.initial_seed()))
        return [[*encode("no"), EOS] for _ in prompt_ids]
    found = roll_out(models, ["a?", "bcd?"], 9, KL_COEFF, sample=sample)
    asked = [[*encode("a?"), SEP], [*encode("bcd?"), SEP]]
    assert calls == [(models[0], asked, 9, 0)]
    assert found.texts() == (["a?", "bcd?"], ["no", "no"])
    assert found.finished.all()


# --- groups ---------------------------------------------------------------------------------------

K, FEW_PROMPTS = 3, ["a?", "", "how are you?", "é", "g?"]


def lengths_of_texts(prompts, responses):
    return [len(prompt) - 0.1 * len(response)
            for prompt, response in zip(prompts, responses, strict=True)]


def in_float64(models):
    return [copy.deepcopy(model).double() for model in models]


def varied(policy, prompt_ids, max_new_tokens, *, generator):
    """Responses of many lengths, some of them unlikely."""
    return sample_ids(policy, prompt_ids, max_new_tokens, temperature=2.0, generator=generator)


@pytest.fixture(scope="module", params=["model", "mean of response", "ensemble"])
def of_groups(request, models, make_reward):
    """The models in float64 with one of several rewards, and a rollout of groups."""
    reads_response = make_reward(6, pooling="mean", reads="response")
    reward = {"model": models[2], "mean of response": reads_response,
              "ensemble": Ensemble([models[2], reads_response, lengths_of_texts], "min")}
    doubled = in_float64([*models[:2], reward[request.param], models[3]])
    return doubled, roll_out(doubled, FEW_PROMPTS, 9, KL_COEFF, samples_per_prompt=K, sample=varied)


def as_rows(models, group, kl_coeff=KL_COEFF):
    """The rollout of one response a row, with the responses of these groups."""
    batch = group.batch
    sampled = [ids[mask].tolist() for ids, masks
               in zip(batch.token_ids, batch.response_masks, strict=True) for mask in masks]
    repeated = [prompt for prompt in FEW_PROMPTS for _ in range(K)]
    return roll_out(models, repeated, 9, kl_coeff, sample=lambda *_, generator: sampled)


def test_a_row_of_k_responses_is_k_separate_rows(of_groups):
    """Each response as if it stood alone behind the prompt: to 1e-9 in float64."""
    models, group = of_groups
    rows = as_rows(models, group)
    assert group.batch.token_ids.shape[0] == 5 and rows.batch.token_ids.shape[0] == 15
    assert group.texts() == rows.texts()
    assert torch.equal(group.batch.token_ids[group.mask], rows.batch.token_ids[rows.mask])
    exactly = {"rtol": 0, "atol": 1e-9}
    for name in ("logps", "ref_logps", "kl", "rewards"):  # token by token, in the same order
        torch.testing.assert_close(getattr(group, name)[group.mask],
                                   getattr(rows, name)[rows.mask], **exactly)
        assert (getattr(group, name)[~group.mask] == 0).all()
    for name in ("exact_kl", "scores", "finished"):
        found = getattr(group, name)
        assert found.shape == (5, K)
        torch.testing.assert_close(found.flatten(), getattr(rows, name)[:, 0], **exactly)
    torch.testing.assert_close(group.entropy, rows.entropy, **exactly)
    assert group.logps[group.mask].std() > 1 and group.exact_kl.min() > 0.1
    assert len(group.batch.response_lengths.unique()) >= 4
    assert group.finished.any() and not group.finished.all()


def test_values_and_gae_of_a_row_of_k_responses_are_those_of_k_rows(of_groups):
    models, group = of_groups
    rows = as_rows(models, group)
    *_, value_model = models
    with torch.no_grad():
        found, expected = (gae_by_response(rollout, value_model.values(rollout.batch), 0.9, 0.7)
                           for rollout in (group, rows))
    for of_group, of_rows in zip(found, expected, strict=True):
        torch.testing.assert_close(of_group[group.mask], of_rows[rows.mask], rtol=0, atol=1e-9)
        assert (of_group[~group.mask] == 0).all()
        assert of_rows[rows.mask].std() > 0.1


def test_float32_too_agrees_where_logits_are_not_extreme(make_model, make_reward):
    models = make_model(1, spread=2), make_model(3, spread=2), make_reward(4, spread=2), None
    group = roll_out(models, FEW_PROMPTS, 9, KL_COEFF, samples_per_prompt=K)
    rows = as_rows(models, group)
    for name in ("logps", "ref_logps"):
        torch.testing.assert_close(getattr(group, name)[group.mask],
                                   getattr(rows, name)[rows.mask], rtol=0, atol=1e-5)
    for name in ("exact_kl", "scores"):
        torch.testing.assert_close(getattr(group, name).flatten(), getattr(rows, name)[:, 0],
                                   rtol=0, atol=1e-5)


def test_the_rewards_of_each_response_sum_to_its_score_less_beta_times_its_kl(of_groups):
    models, group = of_groups
    sums = group.batch.response_sums
    torch.testing.assert_close(sums(group.rewards), group.scores - KL_COEFF * sums(group.kl),
                               rtol=0, atol=1e-9)
    free = roll_out(models, FEW_PROMPTS, 9, 0.0, samples_per_prompt=K)
    assert torch.equal(free.batch.response_sums(free.rewards), free.scores)  # not one bit is lost


def test_scores_of_groups_are_those_of_their_texts_less_the_penalty(models):
    models = [*models[:2], as_reward(lengths_of_texts), None]
    group = roll_out(models, FEW_PROMPTS, 9, KL_COEFF, samples_per_prompt=K, sample=varied)
    given = torch.tensor(lengths_of_texts(*group.texts())).view(5, K)
    torch.testing.assert_close(group.scores, given - PENALTY * ~group.finished)
    prompts, responses = group.texts()
    assert prompts == [prompt for prompt in FEW_PROMPTS for _ in range(K)]
    groups = [responses[n:n + K] for n in range(0, len(responses), K)]
    assert all(len(set(texts)) > 1 for texts in groups)  # each response is drawn for itself


def test_every_response_stands_behind_its_own_prompt_and_ends_for_itself(models):
    def sample(policy, prompt_ids, max_new_tokens, *, generator):
        asked.extend(prompt_ids)
        return [[*ids[:-1], *encode(str(n)), *[EOS] * ends[n]] for n, ids in enumerate(prompt_ids)]
    asked, ends = [], [True, True, False, False, True, False]
    found = roll_out(models, ["a?", "bcd?"], 9, 0.0, samples_per_prompt=3, sample=sample)
    repeated = ["a?"] * 3 + ["bcd?"] * 3
    assert asked == [[*encode(prompt), SEP] for prompt in repeated]
    assert found.texts() == (repeated, ["a?0", "a?1", "a?2", "bcd?3", "bcd?4", "bcd?5"])
    assert found.finished.tolist() == [ends[:3], ends[3:]]
    row = 1, slice(int(found.batch.lengths[1]))
    ids, segments = found.batch.token_ids[row].tolist(), found.batch.segments[row].tolist()
    assert bytes(ids) == bytes([*encode("bcd?"), SEP, *encode("bcd?3"), *encode("bcd?4"), EOS,
                                *encode("bcd?5")])
    assert segments == [0] * 5 + [1] * 5 + [2] * 6 + [3] * 5


def test_a_group_may_be_longer_than_the_model_reads_since_each_response_fits(models):
    group = roll_out(models, ["a" * 55], 50, 0.0, samples_per_prompt=4)
    assert int(group.batch.lengths[0]) == 56 + int(group.batch.response_lengths.sum())
    assert int(group.batch.response_lengths.max()) <= 64 - 56
    assert group.batch.token_ids.shape[1] > 64


# --- what an update learns from -------------------------------------------------------------------


@pytest.fixture
def experience(rollout):
    def noise(seed):
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(rollout.mask.shape, generator=generator) * rollout.mask
    return Experience(rollout.batch, rollout.logps, rollout.ref_logps, advantages=noise(1),
                      values=noise(2), returns=noise(3))


def minibatches(experience, size, epochs=1, seed=0):
    return list(experience.minibatches(size, epochs, torch.Generator().manual_seed(seed)))


def tensors_of(experience):
    tensors = {name: value for name, value in vars(experience).items()
               if isinstance(value, torch.Tensor) and value.dim() == 2}
    return {**tensors, "token_ids": experience.batch.token_ids,
            "segments": experience.batch.segments, "mask": experience.mask}


@pytest.mark.parametrize("size", [1, 5, 16, 99])
def test_each_epoch_goes_once_over_every_row_in_minibatches_of_the_size(experience, size):
    found = [[i for part in minibatch for i in part.batch.indices.tolist()]
             for minibatch in minibatches(experience, size, epochs=2)]
    epochs = found[:len(found) // 2], found[len(found) // 2:]
    for epoch in epochs:
        assert sorted(i for rows in epoch for i in rows) == list(range(16))
        assert all(len(rows) == min(size, 16) for rows in epoch[:-1])
    if 1 < size < 16:
        assert list(map(sorted, epochs[0])) != list(map(sorted, epochs[1]))


def test_the_generator_alone_decides_which_rows_make_a_minibatch(experience):
    def rows(seed):
        return [[i for part in minibatch for i in part.batch.indices.tolist()]
                for minibatch in minibatches(experience, 5, seed=seed)]
    assert rows(0) == rows(0) != rows(1)


@pytest.mark.parametrize("rows_at_once", [1, 3, 32])
def test_a_part_has_the_same_rows_of_everything_and_loses_nothing_but_padding(
        experience, rows_at_once, monkeypatch):
    monkeypatch.setattr("ppo.rollout.RESPONSES_AT_ONCE", rows_at_once)
    whole, lengths = tensors_of(experience), experience.batch.lengths
    narrower = 0
    for parts in minibatches(experience, 5):
        for part in parts:
            rows = part.batch.indices
            columns = -(-int(lengths[rows].max()) // 8) * 8
            for name, tensor in tensors_of(part).items():
                assert torch.equal(tensor, whole[name][rows, :columns]), name
            assert (experience.batch.segments[rows, columns:] == -1).all()
            narrower += columns < experience.batch.token_ids.shape[1]
    assert narrower > 0


@pytest.mark.parametrize("rows_at_once", [1, 3, 32])
@pytest.mark.parametrize("size", [1, 5, 16])
def test_the_parts_of_a_minibatch_sum_to_its_mean_loss(experience, size, rows_at_once,
                                                       monkeypatch):
    monkeypatch.setattr("ppo.rollout.RESPONSES_AT_ONCE", rows_at_once)
    logps = experience.logps + 0.3 * experience.returns  # of a policy that has moved on
    for parts in minibatches(experience, size):
        rows = torch.cat([part.batch.indices for part in parts])
        assert len(parts) == -(-len(rows) // rows_at_once)
        whole, whole_metrics = ppo_loss(logps[rows], experience.logps[rows],
                                        experience.advantages[rows], experience.mask[rows])
        summed, summed_metrics = torch.zeros(()), {}
        for part in parts:
            columns = part.logps.shape[1]
            loss, metrics = ppo_loss(logps[part.batch.indices, :columns], part.logps,
                                     part.advantages, part.mask)
            summed += part.weight * loss
            for name, value in metrics.items():
                summed_metrics[name] = summed_metrics.get(name, 0.0) + part.weight * value
        torch.testing.assert_close(summed, whole)
        assert sum(float(part.weight) for part in parts) == pytest.approx(1)
        for name, value in whole_metrics.items():
            torch.testing.assert_close(summed_metrics[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("responses_at_once", [1, 7, 1000])
def test_a_minibatch_and_a_part_hold_whole_groups(models, responses_at_once, monkeypatch):
    monkeypatch.setattr("ppo.rollout.RESPONSES_AT_ONCE", responses_at_once)
    group = roll_out(models, FEW_PROMPTS, 9, KL_COEFF, samples_per_prompt=K, sample=varied)
    zeros = torch.zeros_like(group.logps)
    experience = Experience(group.batch, group.logps, group.ref_logps, group.rewards, zeros, zeros)
    rows_at_once = max(1, responses_at_once // K)
    seen = []
    for parts in minibatches(experience, 2):
        assert sum(float(part.weight) for part in parts) == pytest.approx(1)
        assert max(len(part.batch.indices) for part in parts) == min(rows_at_once, sum(
            len(part.batch.indices) for part in parts))
        tokens = sum(int(part.mask.sum()) for part in parts)
        for part in parts:
            rows = part.batch.indices
            assert float(part.weight) == pytest.approx(int(part.mask.sum()) / tokens)
            for found, whole in ((part.batch.response_lengths, group.batch.response_lengths),
                                 (part.batch.response_sums(part.advantages),
                                  group.batch.response_sums(group.rewards))):
                torch.testing.assert_close(found, whole[rows])
            seen += rows.tolist()
    assert sorted(seen) == list(range(5))
