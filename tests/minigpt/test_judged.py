import json
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from data.task import Task
from minigpt import judged, save_checkpoint
from minigpt.command import CommandConfig
from minigpt.errors import UserError
from minigpt.judged import (
    Judged,
    RoundsConfig,
    check_rounds,
    rounds_of,
    sample_judged,
    sampling_figures,
)
from minigpt.sampling import Response
from minigpt.seeding import seed_of
from minigpt.settings import TrainingConfig
from minigpt.tokenizer import EOS, encode
from reward import score
from reward.start import judge_of
from sft.train import SFTConfig


def settings(**changes):
    return RoundsConfig(**{"rounds": 1, "judge": "j", "samples_per_prompt": 3} | changes)


def judge(prompts, responses):
    """A score that says which prompt and which response it is of."""
    return [len(prompt) * 1000 + sum(response.encode()) for prompt, response
            in zip(prompts, responses, strict=True)]


@pytest.fixture
def prompts(recited):
    return [row["prompt"] for row in recited]


@pytest.fixture
def said(monkeypatch):
    """said(texts): the policy's answers in order, whatever the prompts; None has no end."""
    def say(*texts):
        answers = iter(texts)

        def sample(policy, asked, samples, max_new_tokens, seed):
            repeated = [prompt for prompt in asked for _ in range(samples)]
            answered = [next(answers) for _ in repeated]
            return repeated, [Response("endl", encode("endl"), False) if text is None else
                              Response(text, [*encode(text), EOS], True) for text in answered]
        monkeypatch.setattr(judged, "sample_responses", sample)
    return say


# --- sampling -------------------------------------------------------------------------------------


def test_each_prompt_has_its_own_answers_and_they_their_own_scores(said):
    said("a", None, "b", "c", "d", "e", None, None, None)
    prompts, asked = ["one", "eleven", "two"], []

    def by_letter(prompts, responses):
        asked.extend(zip(prompts, responses, strict=True))
        return torch.tensor([float(ord(text[0])) for text in responses])  # any numbers will do

    found, tokens = sample_judged(None, prompts, by_letter, settings(round_prompts=3), 8, seed=0)
    assert tokens == 5 * 2 + 4 * 4  # those of answers without an end, too
    order = [one.prompt for one in found]
    assert found == [Judged(order[0], ["a", "b"], [97.0, 98.0]),
                     Judged(order[1], ["c", "d", "e"], [99.0, 100.0, 101.0]),
                     Judged(order[2], [], [])]
    assert sorted(order) == sorted(prompts)
    assert asked == list(zip([order[0]] * 2 + [order[1]] * 3, "abcde", strict=True))


def test_an_answer_without_text_is_left_out_since_it_is_no_example(said):
    said("", " \n", "b")
    (found,), _ = sample_judged(None, ["p"], judge, settings(round_prompts=1), 8, seed=0)
    assert found == Judged("p", ["b"], [1098.0])


def test_what_a_model_says_is_judged_with_its_prompt_and_only_if_it_ended(reciter, prompts):
    found, _ = sample_judged(reciter, prompts, judge, settings(round_prompts=12), 9, seed=1)
    assert sorted(one.prompt for one in found) == sorted(prompts)
    assert all(len(one.responses) == len(one.scores) <= 3 for one in found)
    for one in found:
        assert one.scores == judge([one.prompt] * len(one.responses), one.responses)
    by_prompt = {one.prompt: one.responses for one in found}
    assert by_prompt["a?"] == ["no"] * 3 and by_prompt["d?"] == []  # "tea and milk" is too long


def test_the_seed_decides_about_prompts_and_answers(make_model, prompts):
    model = make_model(spread=2)
    many = settings(round_prompts=40)
    first, again, other = (sample_judged(model, prompts, judge, many, 8, seed)[0]
                           for seed in (3, 3, 4))
    assert first == again
    assert [one.prompt for one in first] != [one.prompt for one in other]
    assert {one.prompt for one in first} == {one.prompt for one in other}


@pytest.mark.parametrize(("count", "often"), [(1, {0, 1}), (5, {0, 1}), (12, {1}), (30, {2, 3}),
                                              (36, {3}), (70, {5, 6})])
def test_as_many_prompts_are_asked_as_a_round_has_each_equally_often(said, prompts, count, often):
    said(*["a"] * count * 2)
    calls = []

    def counting(prompts, responses):
        calls.append(len(responses))
        return [0] * len(responses)

    found, _ = sample_judged(None, prompts, counting, settings(round_prompts=count,
                                                               samples_per_prompt=2), 8, seed=5)
    asked = Counter(one.prompt for one in found)
    assert len(found) == count and {asked[prompt] for prompt in prompts} == often
    assert calls == [64] * (count // 32) + [2 * (count % 32)] * (count % 32 > 0)
    for start in range(0, count - 11, 12):  # no prompt comes again before all have been asked
        assert len({one.prompt for one in found[start:start + 12]}) == 12


def test_every_part_of_a_round_is_sampled_with_a_seed_of_its_own(monkeypatch):
    seeds = []

    def sample(policy, asked, samples, max_new_tokens, seed):
        seeds.append((len(asked), samples, max_new_tokens, seed))
        return [], [Response("a", [97, EOS], True)] * len(asked) * samples

    monkeypatch.setattr(judged, "sample_responses", sample)
    sample_judged(None, ["a"], judge, settings(round_prompts=70), 8, seed=6)
    assert seeds == [(32, 3, 8, seed_of(6, "round", 0)), (32, 3, 8, seed_of(6, "round", 32)),
                     (6, 3, 8, seed_of(6, "round", 64))]


@pytest.mark.parametrize("count", [0, 1, 3, 5])
def test_a_judge_that_gives_another_number_of_scores_is_refused(said, count):
    said("a", None, "c")
    with pytest.raises(ValueError, match=f"judge gave {count} scores for 2 answers"):
        sample_judged(None, ["p"], lambda prompts, texts: [0.0] * count, settings(round_prompts=1),
                      8, seed=0)


def test_a_score_that_is_not_finite_is_refused_with_its_answer(said):
    said("a", "b", "c")
    with pytest.raises(ValueError, match="gave nan for the prompt 'p' and the answer 'b'"):
        sample_judged(None, ["p"], lambda prompts, texts: [1.0, float("nan"), 0.0],
                      settings(round_prompts=1), 8, seed=0)


def test_where_no_answer_can_be_learned_from_no_judge_is_asked(said):
    said(None, "", None)
    found, _ = sample_judged(None, ["p"], None, settings(round_prompts=1), 8, seed=0)
    assert found == [Judged("p", [], [])]


def test_without_prompts_there_is_nothing_to_answer():
    with pytest.raises(ValueError, match="prompts is empty"):
        sample_judged(None, [], judge, settings(), 8, seed=0)


# --- judges ---------------------------------------------------------------------------------------


def test_the_world_judges_by_its_true_reward_and_a_file_by_its_scores(world, make_reward, tmp_path):
    task, command = Task(128, world=world), CommandConfig()
    row = world.heldout_preferences[0]
    prompts, texts = [row["prompt"]] * 2, [row["chosen"], row["rejected"]]
    by_world, models = judge_of("world", task, command)
    assert models == 0
    assert by_world(prompts, texts) == \
        [world.true_reward(*pair) for pair in zip(prompts, texts, strict=True)]
    model = make_reward(max_seq_len=128)
    save_checkpoint(model, tmp_path / "reward.pt")
    by_model, models = judge_of(str(tmp_path / "reward.pt"), task, command)
    assert models == 1
    assert torch.equal(by_model(prompts, texts), score(model, prompts, texts))


def test_a_language_model_is_no_judge(make_model, tmp_path):
    save_checkpoint(make_model(), tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"--judge .*model\.pt holds a MiniGPT"):
        judge_of(str(tmp_path / "model.pt"), Task(128), CommandConfig())


@pytest.mark.parametrize(("given", "has_data", "message"), [
    ({"rounds": 2, "judge": None}, False, "--rounds and --judge must be given together"),
    ({"rounds": None}, False, "--rounds and --judge must be given together"),
    ({"rounds": None, "judge": None}, False, "--samples-per-prompt would change nothing"),
    ({"judge": "none.pt"}, False, "--judge none.pt: there is no such file"),
    ({"judge": "world"}, True, "--judge world needs the little world: leave out --data")])
def test_settings_that_do_not_fit_together_are_refused(given, has_data, message):
    with pytest.raises(UserError, match=message):
        check_rounds(settings(**given), has_data)


def test_settings_that_fit_together_pass(tmp_path):
    (tmp_path / "reward.pt").touch()
    check_rounds(RoundsConfig(), True)
    check_rounds(settings(judge="world"), False)
    check_rounds(settings(judge=str(tmp_path / "reward.pt")), True)


# --- rounds ---------------------------------------------------------------------------------------


ROWS = [{"prompt": "p\n", "response": "a\u2028b\x85c 🙂\""}, {"prompt": "", "response": "\\n"}]


def rounds(run, made, count=3):
    def make_rows(seed):
        made.append(seed)
        return [*ROWS, {"prompt": "made", "response": str(seed)}], 7
    return list(rounds_of(settings(rounds=count), run, make_rows))


def test_each_round_has_a_seed_and_a_folder_of_its_own_and_the_settings_of_the_run(tmp_path):
    run, made = SFTConfig(out=str(tmp_path), seed=5, lr=0.25, num_epochs=4), []
    found = rounds(run, made)
    seeds = [seed_of(5, "round", number) for number in (1, 2, 3)]
    assert made == seeds and len(set(seeds)) == 3
    for number, (rows, of_round) in enumerate(found, start=1):
        assert rows == [*ROWS, {"prompt": "made", "response": str(seeds[number - 1])}]
        folder = tmp_path / f"round-{number}"
        assert of_round == vars(run) | {"out": str(folder), "seed": seeds[number - 1]}
        assert [json.loads(line) for line in (folder / "rows.jsonl").open()] == rows
    assert run == SFTConfig(out=str(tmp_path), seed=5, lr=0.25, num_epochs=4)


def test_another_seed_of_the_run_gives_other_seeds_of_the_rounds():
    seeds = [[], []]
    for seed, made in enumerate(seeds):
        rounds(TrainingConfig(seed=seed), made)
    assert not set(seeds[0]) & set(seeds[1])


def test_without_a_folder_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [of_round["out"] for _, of_round in rounds(TrainingConfig(), [])] == [None] * 3
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_reads_the_rows_it_has_and_makes_only_the_others(tmp_path):
    run, resumed = (TrainingConfig(out=str(tmp_path), resume=resume) for resume in (False, True))
    before, made = rounds(run, [], 2), []
    assert [rows for rows, _ in rounds(resumed, made, 2)] == [rows for rows, _ in before]
    assert made == []
    third = rounds(resumed, made, 3)[2]
    assert made == [seed_of(0, "round", 3)] and third[1]["resume"] is True
    made = []
    rounds(run, made, 2)  # anew: what is there does not count
    assert len(made) == 2


def test_a_run_that_starts_anew_forgets_the_rows_of_all_rounds(tmp_path):
    run, made = TrainingConfig(out=str(tmp_path)), []
    rounds(run, [], 3)
    rounds(run, made, 1)
    rounds(TrainingConfig(out=str(tmp_path), resume=True), made, 3)
    assert len(made) == 3  # the first, and on resuming the two others


def test_only_the_first_process_forgets_rows(tmp_path, monkeypatch):
    """Another, a moment later, would delete what the first has just sampled."""
    run = TrainingConfig(out=str(tmp_path))
    rounds(run, [], 2)
    monkeypatch.setattr("minigpt.distributed.rank", lambda: 1)
    rounds(run, [], 1)
    assert len(list(tmp_path.rglob("rows.jsonl"))) == 2


def test_the_rows_of_a_round_are_made_once_the_round_before_is_over(tmp_path):
    order = []

    def make_rows(seed):
        order.append("sample")
        return ROWS, 7
    for _ in rounds_of(settings(rounds=2), TrainingConfig(out=str(tmp_path)), make_rows):
        order.append("train")
    assert order == ["sample", "train"] * 2


def test_sampling_figures_by_hand(tmp_path):
    rounds(TrainingConfig(out=str(tmp_path)), [], 2)
    assert sampling_figures(settings(rounds=2, round_prompts=7), str(tmp_path)) == {
        "answers_sampled": 2 * 7 * 3, "tokens_sampled": 2 * 7}
    assert sampling_figures(SimpleNamespace(rounds=None), str(tmp_path)) == {}
