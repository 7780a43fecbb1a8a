import json
import math
from collections import Counter

import pytest

from data.task import Task
from dpo import rounds
from dpo.rounds import OnlineConfig, check_online, dpo_rounds, pairs_of
from dpo.train import DPOConfig
from minigpt import generate
from minigpt.errors import UserError
from minigpt.judged import Judged, sample_judged
from minigpt.log import MetricLog
from minigpt.lora import LoraConfig, add_lora, merge_lora
from minigpt.seeding import seed_of
from sft import sft_train

PROMPTS = list("abcdefgh")
ONLINE = {"judge": "j", "rounds": 2, "samples_per_prompt": 4, "round_prompts": 16}
TRAINING = {"lr": 1e-3, "beta": 0.5, "batch_size": 4, "precision": "float32", "save_every": 2}


@pytest.fixture(scope="module")
def talker(make_model):
    """A model that gives four answers to every prompt, about equally often.  Do not train it."""
    rows = [{"prompt": prompt, "response": answer} for prompt in PROMPTS
            for answer in ("yes", "no", "well", "o")]
    return sft_train(make_model(spread=1), rows, 100, lr=1e-2, batch_size=32)[0]


def likes_yes(prompts, responses):
    return [float(response == "yes") for response in responses]


def likes_length(prompts, responses):
    return [float(len(response)) for response in responses]


def run(policy, reference, judge=likes_yes, online=(), **settings):
    return dpo_rounds(policy, reference, PROMPTS, judge, OnlineConfig(**ONLINE | dict(online)),
                      DPOConfig(**TRAINING | settings), max_new_tokens=6)


def share_of_yes(model):
    return sum(answer.text == "yes" for answer in generate(model, PROMPTS * 32, 6, seed=0)) / 256


# --- pairs ----------------------------------------------------------------------------------------


def test_a_pair_is_the_best_and_the_worst_of_the_answers_to_a_prompt():
    judged = [Judged("p", ["a", "b", "c"], [1.0, 3.0, 2.0]), Judged("q", ["d", "e"], [0.5, -0.5])]
    assert pairs_of(judged, "best-worst", 0) == [
        {"prompt": "p", "chosen": "b", "rejected": "a"},
        {"prompt": "q", "chosen": "d", "rejected": "e"}]


@pytest.mark.parametrize("kind", ["best-worst", "bradley-terry"])
def test_there_is_no_pair_without_two_answers_that_differ(kind):
    judged = [Judged("none", [], []), Judged("one", ["a"], [1.0]),
              Judged("same text", ["a", "a"], [1.0, 2.0])]
    assert pairs_of(judged, kind, 0) == []


def test_answers_that_score_the_same_are_a_pair_only_to_annotators_by_bradley_terry():
    tie = [Judged("p", ["a", "b", "c"], [2.0, 2.0, 2.0])]
    assert pairs_of(tie, "best-worst", 0) == []
    found = Counter((row["chosen"], row["rejected"]) for seed in range(600)
                    for row in pairs_of(tie, "bradley-terry", seed))
    assert len(found) == 6 and found.total() == 600
    assert all(abs(times - 100) < 4 * math.sqrt(600 * 1 / 6 * 5 / 6) for times in found.values())


@pytest.mark.parametrize("difference", [0.0, 0.5, 1.5, 4.0])
def test_bradley_terry_prefers_as_often_as_the_sigmoid_of_the_difference(difference):
    count = 4000
    judged = [Judged(str(number), ["low", "high"], [-1.0, difference - 1.0])
              for number in range(count)]
    rows = pairs_of(judged, "bradley-terry", seed=7)
    assert len(rows) == count
    assert all({row["chosen"], row["rejected"]} == {"low", "high"} for row in rows)
    right, p = sum(row["chosen"] == "high" for row in rows), 1 / (1 + math.exp(-difference))
    assert abs(right - p * count) < 4 * math.sqrt(p * (1 - p) * count)


def test_bradley_terry_takes_two_at_random_and_is_sure_where_scores_are_far_apart():
    judged = [Judged(str(number), ["a", "b", "c"], [0.0, -1e6, 1e6]) for number in range(300)]
    found = Counter((row["chosen"], row["rejected"])
                    for row in pairs_of(judged, "bradley-terry", seed=0))
    assert found.keys() == {("a", "b"), ("c", "a"), ("c", "b")} and min(found.values()) > 60


def test_the_seed_decides_about_bradley_terrys_pairs():
    judged = [Judged(str(number), ["a", "b", "c"], [0.0, 0.1, 0.2]) for number in range(20)]
    first, again, other = (pairs_of(judged, "bradley-terry", seed) for seed in (1, 1, 2))
    assert first == again != other
    assert pairs_of(judged, "best-worst", 1) == pairs_of(judged, "best-worst", 2)


# --- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", ["best-worst", "bradley-terry"])
def test_what_the_judge_likes_is_said_more_often(talker, copy_of, weights_of, weights_equal, pairs):
    kept, policy = weights_of(talker), copy_of(talker)
    trained, losses, margins = run(policy, talker, online={"pairs": pairs, "rounds": 3}, lr=2e-3)
    assert trained is policy and not policy.training
    assert len(losses) == len(margins) and losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert share_of_yes(talker) < 0.4
    assert share_of_yes(policy) > share_of_yes(talker) + (0.3 if pairs == "best-worst" else 0.1)
    assert weights_equal(talker, kept)


def test_the_first_round_learns_from_what_the_start_says(talker, copy_of, tmp_path):
    run(copy_of(talker), talker, out=str(tmp_path), seed=3)
    seeds = [seed_of(3, "round", number) for number in (1, 2)]
    judged, _ = sample_judged(talker, PROMPTS, likes_yes, OnlineConfig(**ONLINE), 6, seeds[0])
    first, second = ([json.loads(line) for line in
                      (tmp_path / f"round-{number}" / "rows.jsonl").open()] for number in (1, 2))
    assert first == pairs_of(judged, "best-worst", seeds[0]) != []
    assert all(row["chosen"] == "yes" != row["rejected"] for row in first + second)
    assert second != first
    config = json.loads((tmp_path / "round-2" / "metrics.jsonl").open().readline())
    assert config["global_step"] == 1


def test_the_reference_is_the_start_throughout_or_the_policy_of_the_last_round(talker, copy_of,
                                                                               tmp_path):
    found = {}
    for name in ("start", "last"):
        policy, losses, margins = run(copy_of(talker), talker, online={"reference": name},
                                      out=str(tmp_path / name))
        of_first = len((tmp_path / name / "round-1" / "metrics.jsonl").read_text().splitlines())
        found[name] = policy, losses, margins, of_first
    (start, losses, margins, of_first), (last, others, other_margins, first) = found.values()
    assert of_first == first < len(losses)
    assert losses[:first] == others[:first] and margins[:first] == other_margins[:first]
    assert other_margins[first] == pytest.approx(0, abs=1e-4)  # compared with itself, as it was
    assert others[first] == pytest.approx(math.log(2), abs=1e-4)
    assert abs(margins[first]) > 0.01
    rows = [(tmp_path / name / "round-2" / "rows.jsonl").read_bytes() for name in found]
    assert rows[0] == rows[1]
    assert any(not a.equal(b) for a, b in zip(start.parameters(), last.parameters(), strict=True))


@pytest.mark.parametrize("name", ["start", "last"])
def test_the_models_that_each_round_compares(talker, copy_of, weights_equal, monkeypatch, name):
    policy, seen = copy_of(talker), []

    def dpo_train(trained, reference, rows, **settings):
        seen.append((trained, reference, copy_of(trained)))
        for weight in trained.parameters():
            weight.data *= 1.001
        return trained, [1.0], [2.0]

    monkeypatch.setattr(rounds, "dpo_train", dpo_train)
    _, losses, margins = run(policy, talker, online={"reference": name, "rounds": 3})
    assert (losses, margins) == ([1.0] * 3, [2.0] * 3)
    for number, (trained, reference, before) in enumerate(seen):
        assert trained is policy
        if name == "start":
            assert reference is talker
        else:
            assert weights_equal(reference, before) and reference is not policy
            assert weights_equal(reference, talker) == (number == 0)


def test_rounds_of_a_loss_without_a_reference_and_of_adapters_need_one_model(talker, copy_of):
    for online in ({}, {"reference": "last"}):
        policy, _, _ = run(copy_of(talker), None, online=online, loss="orpo", lr=2e-3)
        assert share_of_yes(policy) > share_of_yes(talker)
    adapted = add_lora(copy_of(talker), 4)
    policy, losses, _ = run(adapted, None, lr=2e-3)
    assert losses[0] == pytest.approx(math.log(2), abs=1e-4)
    assert share_of_yes(merge_lora(policy)) > share_of_yes(talker)


def test_rounds_of_kto_take_the_pairs_apart(talker, copy_of):
    policy, losses, _ = run(copy_of(talker), talker, loss="kto", lr=2e-3)
    assert losses[0] == pytest.approx(0.5, abs=1e-4)
    assert share_of_yes(policy) > share_of_yes(talker)


def test_a_judge_that_likes_all_the_same_leaves_nothing_to_learn(talker, copy_of, tmp_path):
    with pytest.raises(UserError, match="no prompt of this round has two answers that differ"):
        run(copy_of(talker), talker, lambda prompts, texts: [0.0] * len(texts), out=str(tmp_path))
    assert not list(tmp_path.rglob("*"))


# --- interrupted ----------------------------------------------------------------------------------


class PluggedError(Exception):
    """Someone pulled the plug."""


@pytest.fixture
def plug_pulled(monkeypatch):
    """plug_pulled(step, sampling, run): do the run until that step, or until that call of a judge,
    both counted over all rounds."""
    def until(step, sampling, run):
        counts, write = Counter(), MetricLog.write

        def write_then_stop(self, metrics):
            write(self, metrics)
            counts["steps"] += 1
            if counts["steps"] == step:
                raise PluggedError

        def judge(prompts, responses):
            counts["judged"] += 1
            if counts["judged"] == sampling:
                raise PluggedError
            return likes_length(prompts, responses)

        with monkeypatch.context() as patch, pytest.raises(PluggedError):
            patch.setattr(MetricLog, "write", write_then_stop)
            run(judge)
    return until


@pytest.mark.parametrize(("step", "sampling"), [(None, 1), (1, None), (3, None), (None, 2),
                                                (5, None), (7, None)],
                         ids=["while round 1 is sampled", "before its first checkpoint",
                              "after it", "while round 2 is sampled", "in round 2", "later"])
@pytest.mark.parametrize("reference", ["start", "last"])
def test_interrupted_rounds_end_as_the_unbroken_run_bit_for_bit(
        talker, copy_of, weights_equal, tmp_path, plug_pulled, reference, step, sampling):
    def train(out, judge=likes_length, resume=False):
        return run(copy_of(talker), talker, judge, {"reference": reference, "round_prompts": 32},
                   batch_size=8, out=str(tmp_path / out), resume=resume)

    unbroken, *figures = train("unbroken")
    per_round = [len(path.read_text().splitlines())
                 for path in sorted(tmp_path.rglob("metrics.jsonl"))]
    assert per_round == [4, 4]  # so step 5 is the first of round 2
    plug_pulled(step, sampling, lambda judge: train("broken", judge))
    asked = []

    def noted(*given):
        asked.append(given)
        return likes_length(*given)

    resumed, *again = train("broken", noted, resume=True)
    assert weights_equal(unbroken, resumed) and figures == again
    for path in sorted((tmp_path / "unbroken").rglob("*.jsonl")):
        other = tmp_path / "broken" / path.relative_to(tmp_path / "unbroken")
        assert other.read_bytes() == path.read_bytes()
    rounds_sampled_again = 2 if sampling == 1 else 0 if (step or 0) >= 5 else 1
    assert len(asked) == rounds_sampled_again


@pytest.mark.parametrize("change", [{"samples_per_prompt": 2}, {"round_prompts": 8},
                                    {"pairs": "bradley-terry"}, {"reference": "last"}], ids=str)
def test_rounds_are_resumed_only_with_the_settings_that_they_began_with(talker, copy_of, tmp_path,
                                                                        change):
    run(copy_of(talker), talker, online={"rounds": 1}, out=str(tmp_path))
    (name, value), = change.items()
    with pytest.raises(UserError, match=f"sampled.json .* begun with {name}=.*, not with {name}="
                                        f"{value}: resume"):
        run(copy_of(talker), talker, online={"rounds": 2, **change}, out=str(tmp_path), resume=True)
    _, losses, _ = run(copy_of(talker), talker, out=str(tmp_path), resume=True)  # for more rounds
    assert len(losses) > len((tmp_path / "round-1" / "metrics.jsonl").read_text().splitlines())


# --- settings -------------------------------------------------------------------------------------


def test_the_last_policy_as_reference_needs_no_adapters():
    adapters, none = LoraConfig(lora_rank=4), LoraConfig()
    last, start = (OnlineConfig(rounds=2, judge="world", reference=name)
                   for name in ("last", "start"))
    with pytest.raises(UserError, match="--reference last needs a copy of the policy"):
        check_online(last, adapters, has_data=False)
    check_online(last, none, has_data=False)
    check_online(start, adapters, has_data=False)
    with pytest.raises(UserError, match="--judge world needs the little world"):
        check_online(start, none, has_data=True)


def test_a_file_of_demonstrations_has_prompts_to_answer():
    rows = [{"prompt": prompt, "response": "a"} for prompt in "bab"]
    assert Task(64, sft_rows=rows).prompts == ["a", "b"]
    pairs = [{"prompt": "c", "chosen": "a", "rejected": "b"}]
    assert Task(64, sft_rows=rows, preferences=pairs).prompts == ["c"]
