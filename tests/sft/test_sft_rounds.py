import json
import math
from collections import Counter

import pytest

from minigpt import generate
from minigpt.errors import UserError
from minigpt.judged import sample_judged
from minigpt.log import MetricLog
from minigpt.run_folder import read_history
from minigpt.seeding import seed_of
from sft import rounds, sft_train
from sft.rounds import RejectionConfig, sft_rounds
from sft.train import SFTConfig

PROMPTS = list("abcdefgh")
REJECTION = {"judge": "j", "rounds": 2, "samples_per_prompt": 4, "round_prompts": 16,
             "round_lr": 1e-3}


@pytest.fixture(scope="module")
def talker(make_model):
    """A model that gives four answers to every prompt, about equally often.  Do not train it."""
    rows = [{"prompt": prompt, "response": answer} for prompt in PROMPTS
            for answer in ("yes", "no", "well", "o")]
    return sft_train(make_model(spread=1), rows, 100, lr=1e-2, batch_size=32)[0]


def likes_yes(prompts, responses):
    return [float(response == "yes") for response in responses]


def run(model, judge=likes_yes, rejection=(), **settings):
    return sft_rounds(model, PROMPTS, judge, RejectionConfig(**REJECTION | dict(rejection)),
                      SFTConfig(**{"batch_size": 4, "save_every": 2} | settings), max_new_tokens=6)


def share_of_yes(model):
    return sum(answer.text == "yes" for answer in generate(model, PROMPTS * 32, 6, seed=0)) / 256


def rows_of(folder):
    return [json.loads(line) for line in (folder / "rows.jsonl").open()]


def test_the_best_answers_are_said_more_often_round_after_round(talker, copy_of):
    shares = [share_of_yes(talker)]
    for count in (1, 3):
        trained, losses = run(copy_of(talker), rejection={"rounds": count, "round_lr": 3e-3})
        assert len(losses) == 4 * count and all(map(math.isfinite, losses))
        assert not trained.training
        shares.append(share_of_yes(trained))
    assert shares[0] < 0.4 and shares[0] + 0.1 < shares[1] < shares[2] - 0.1


def test_a_round_learns_the_best_answer_to_each_prompt(talker, copy_of, tmp_path):
    run(copy_of(talker), out=str(tmp_path), seed=3)
    seed = seed_of(3, "round", 1)
    judged, _ = sample_judged(talker, PROMPTS, likes_yes, RejectionConfig(**REJECTION), 6, seed)
    rows = rows_of(tmp_path / "round-1")
    assert [row["prompt"] for row in rows] == [one.prompt for one in judged]
    for row, one in zip(rows, judged, strict=True):
        assert row["response"] == ("yes" if "yes" in one.responses else one.responses[0])
    assert Counter(row["response"] for row in rows)["yes"] > 8  # of 16: P = 1 - 0.75^4 = 0.68


def test_each_round_is_a_run_of_its_own_with_its_own_learning_rate(talker, copy_of, monkeypatch,
                                                                   tmp_path):
    given = []

    def train(model, rows, **settings):
        given.append(settings)
        return model, [1.0]

    monkeypatch.setattr(rounds, "sft_train", train)
    _, losses = run(copy_of(talker), lr=0.5, min_steps=100, out=str(tmp_path), num_epochs=3)
    assert losses == [1.0, 1.0]
    for number, settings in enumerate(given, start=1):
        out = str(tmp_path / f"round-{number}")
        assert SFTConfig(**settings) == SFTConfig(
            batch_size=4, save_every=2, num_epochs=3, lr=1e-3, min_steps=1, out=out,
            seed=seed_of(0, "round", number))


def test_the_learning_rate_of_a_round_is_what_is_trained_with(talker, copy_of, tmp_path):
    run(copy_of(talker), rejection={"round_lr": 2e-4}, out=str(tmp_path))
    for number in (1, 2):
        history = read_history(tmp_path / f"round-{number}")
        assert max(history["learning_rate"]) == pytest.approx(2e-4)
        assert len(history["loss"]) == 4


def test_prompts_without_a_whole_answer_are_left_out(talker, copy_of, tmp_path):
    short = sft_rounds(copy_of(talker), PROMPTS, likes_yes,
                       RejectionConfig(**REJECTION | {"rounds": 1, "samples_per_prompt": 2}),
                       SFTConfig(batch_size=4, out=str(tmp_path)), max_new_tokens=2)
    assert short[1]
    rows = rows_of(tmp_path / "round-1")  # a letter and EOS
    assert {row["response"] for row in rows} == {"o"} and len(rows) < 16


def test_where_no_answer_ends_there_is_nothing_to_learn(make_model, tmp_path):
    with pytest.raises(UserError, match="no answer of this round ended by itself"):
        sft_rounds(make_model(), PROMPTS, likes_yes, RejectionConfig(**REJECTION),
                   SFTConfig(out=str(tmp_path)), max_new_tokens=1)
    assert not list(tmp_path.rglob("*"))


# --- interrupted ----------------------------------------------------------------------------------


class PluggedError(Exception):
    """Someone pulled the plug."""


@pytest.mark.parametrize(("step", "sampling"), [(None, 1), (3, None), (None, 2), (5, None),
                                                (7, None)],
                         ids=["while round 1 is sampled", "in round 1", "while round 2 is sampled",
                              "before its first checkpoint", "after it"])
def test_interrupted_rounds_end_as_the_unbroken_run_bit_for_bit(talker, copy_of, weights_equal,
                                                                tmp_path, monkeypatch, step,
                                                                sampling):
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
        return likes_yes(prompts, responses)

    unbroken, losses = run(copy_of(talker), out=str(tmp_path / "unbroken"))
    assert len(losses) == 8  # four in each round
    with monkeypatch.context() as patch, pytest.raises(PluggedError):
        patch.setattr(MetricLog, "write", write_then_stop)
        run(copy_of(talker), judge, out=str(tmp_path / "broken"))
    counts.clear()
    sampling, step = None, None
    resumed, again = run(copy_of(talker), judge, out=str(tmp_path / "broken"), resume=True)
    assert weights_equal(unbroken, resumed) and losses == again
    for path in sorted((tmp_path / "unbroken").rglob("*.jsonl")):
        other = tmp_path / "broken" / path.relative_to(tmp_path / "unbroken")
        assert other.read_bytes() == path.read_bytes()
