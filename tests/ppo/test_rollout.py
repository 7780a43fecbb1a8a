import pytest
import torch

from minigpt import EOS, SEP, decode, encode
from minigpt.batching import Batches
from minigpt.logprobs import exact_kl
from ppo.rollout import sample_rollout
from ppo.train import prompt_examples, value_model_from

PROMPTS = ["", "a?", "b?", "how are you?", "g?", "é", "xyz", "k?"] * 2
KL_COEFF, PENALTY = 0.3, 1.7


@pytest.fixture(scope="module")
def models(reciter, make_model, make_reward):
    """The policy's answers end, some by EOS and some not; no two of the four models agree."""
    return reciter, make_model(3, spread=4), make_reward(4), make_reward(5)


@pytest.fixture(scope="module")
def rollout(models):
    batches = Batches(prompt_examples(PROMPTS, 64), 64)
    batch = batches.collate(list(range(len(PROMPTS))))
    return sample_rollout(*models, batch, max_new_tokens=9, kl_coeff=KL_COEFF, missing_eos_penalty=PENALTY,
                          generator=torch.Generator().manual_seed(0))


def real_rows(rollout):
    """(row number, its ids without padding, its response places)"""
    for b, (ids, mask) in enumerate(zip(rollout.token_ids, rollout.mask, strict=True)):
        places = mask.nonzero()[:, 0].tolist()
        yield b, ids[:places[-1] + 1], places


def test_rows_hold_prompts_and_responses(rollout):
    prompts, responses = rollout.texts()
    assert prompts == PROMPTS
    for b, ids, places in real_rows(rollout):
        assert places == list(range(places[0], len(ids))) and len(places) <= 9
        assert decode(ids[places].tolist()) == responses[b]
        assert EOS not in ids[places][:-1].tolist()


def test_rollout_has_answers_that_end_and_answers_that_do_not(rollout):
    ended = torch.tensor([bool(ids[-1] == EOS) for _, ids, _ in real_rows(rollout)])
    assert torch.equal(rollout.finished, ended)
    assert ended.any() and not ended.all()


@torch.no_grad()
def test_log_probs_and_values_are_aligned_to_tokens(rollout, models):
    policy, _, _, value_model = models
    for b, ids, places in real_rows(rollout):
        for t in places:
            before = ids[None, :t]
            logp = float(policy(before)[0, -1].log_softmax(-1)[ids[t]])
            assert float(rollout.logps[b, t]) == pytest.approx(logp, abs=1e-3)
            assert float(rollout.values[b, t]) == pytest.approx(float(value_model(before)[0]), abs=1e-3)
    assert (rollout.logps[~rollout.mask] == 0).all() and (rollout.values[~rollout.mask] == 0).all()


@torch.no_grad()
def test_scores_are_those_of_the_reward_model_less_the_penalty_for_a_missing_eos(rollout, models):
    reward = models[2]
    for b, ids, _ in real_rows(rollout):
        expected = float(reward(ids[None])[0]) - (0 if ids[-1] == EOS else PENALTY)
        assert float(rollout.scores[b]) == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_kl_is_the_sum_of_log_ratios_and_exact_kl_the_sum_of_kls(rollout, models):
    policy, reference, _, _ = models
    for b, ids, places in real_rows(rollout):
        logits, ref_logits = policy(ids[None])[0], reference(ids[None])[0]
        before = [t - 1 for t in places]
        ratios = logits[before].log_softmax(-1) - ref_logits[before].log_softmax(-1)
        sampled = ratios.gather(1, ids[places][:, None]).sum()
        assert float(rollout.kl[b]) == pytest.approx(float(sampled), abs=1e-3)
        exact = float(exact_kl(logits[before], ref_logits[before]).sum())
        assert float(rollout.exact_kl[b]) == pytest.approx(exact, abs=1e-3)
    assert (rollout.exact_kl > 0).all()


def test_rewards_sum_to_score_minus_beta_kl(rollout):
    torch.testing.assert_close(rollout.rewards.sum(1), rollout.scores - KL_COEFF * rollout.kl, rtol=1e-4, atol=1e-4)
    assert (rollout.rewards[~rollout.mask] == 0).all()


@torch.no_grad()
def test_each_token_pays_its_own_kl_and_the_last_gets_the_score(rollout, models):
    reference = models[1]
    for b, ids, places in real_rows(rollout):
        for t in places:
            ref = float(reference(ids[None, :t])[0, -1].log_softmax(-1)[ids[t]])
            score = float(rollout.scores[b]) if t == places[-1] else 0.0
            expected = -KL_COEFF * (float(rollout.logps[b, t]) - ref) + score
            assert float(rollout.rewards[b, t]) == pytest.approx(expected, abs=1e-3)


def test_rollout_carries_no_gradient(rollout):
    assert not any(value.requires_grad for value in vars(rollout).values())


def test_rows_picks_the_same_rows_of_everything(rollout):
    part = rollout.rows(torch.tensor([3, 0]))
    for name, value in vars(part).items():
        whole = getattr(rollout, name)
        assert torch.equal(value, whole if whole.dim() == 0 else whole[[3, 0]])


def test_rows_are_cut_to_the_longest_of_them_and_lose_nothing_but_padding(rollout):
    lengths = (rollout.segments >= 0).sum(1)
    shortest = int(lengths.argmin())
    part, columns = rollout.rows(torch.tensor([shortest])), -(-int(lengths[shortest]) // 8) * 8
    assert columns < rollout.token_ids.shape[1]
    for name in ("token_ids", "segments", "logps", "values", "rewards"):
        assert torch.equal(getattr(part, name)[0], getattr(rollout, name)[shortest, :columns]), name
    assert (rollout.segments[shortest, columns:] == -1).all()


def test_max_seq_len_ends_an_answer_and_it_pays_for_it(models):
    batch = Batches(prompt_examples(["a" * 61], 64), 1).collate([0])
    found = sample_rollout(*models, batch, 50, 0.0, PENALTY, torch.Generator().manual_seed(0))
    assert found.token_ids.shape[1] <= 64 and int(found.mask.sum()) <= 2


def test_value_model_starts_as_a_copy_of_the_reward_model(make_reward, weights_equal, weights_of):
    reward = make_reward()
    kept, value_model = weights_of(reward), value_model_from(reward)
    assert weights_equal(value_model, reward)
    with torch.no_grad():
        value_model.head.weight.add_(1.0)
    assert weights_equal(reward, kept)


def test_prompts_are_rows_without_a_response():
    assert prompt_examples(["hi"], 64) == [(bytes([*encode("hi"), SEP]), (), False)]
