import pytest

from data import DataError, World, WorldConfig
from data.examples import preference_examples, sft_examples
from data.files import save_jsonl
from data.splits import loose
from data.task import RowsConfig, load_task
from minigpt.errors import UserError

FEW = WorldConfig(plain_rows=20, sft_rows=50, preference_rows=60, heldout_rows=40)


def test_task_of_the_world_has_the_worlds_data():
    task, world = load_task(RowsConfig(), FEW, 2), World(FEW, 2)
    assert task.sft_rows == world.sft_rows and task.preferences == world.preferences
    assert task.heldout_preferences == world.heldout_preferences
    assert task.plain_text == world.plain_text
    assert task.prompts == sorted({row["prompt"] for row in world.preferences})
    assert set(task.heldout_prompts).isdisjoint(task.prompts)
    prompt = task.heldout_prompts[0]
    assert task.measure([prompt], ["It is so."]) == world.measure([prompt], ["It is so."])


def test_task_of_a_preference_file_keeps_prompts_apart_and_demonstrates_the_chosen(tmp_path,
                                                                                   make_pairs):
    rows = make_pairs(20)
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(RowsConfig([str(tmp_path / "rows.jsonl")]), WorldConfig(), 0)
    assert len(task.preferences) + len(task.heldout_preferences) == 20
    assert set(task.prompts).isdisjoint(task.heldout_prompts)
    assert task.sft_rows == [{"prompt": row["prompt"], "response": row["chosen"]}
                             for row in task.preferences]
    assert task.world is None and task.measure(["a"], ["b"]) == {}


def test_task_of_a_demonstration_file_has_no_preferences(tmp_path, recited):
    save_jsonl(recited, tmp_path / "rows.jsonl")
    config = RowsConfig([str(tmp_path / "rows.jsonl")])
    task = load_task(config, WorldConfig(), 0, kind="demonstrations")
    assert len(task.sft_rows) + len(task.heldout_sft_rows) == len(recited)
    assert task.preferences == [] and len(task.heldout_prompts) == len(task.heldout_sft_rows)


def test_task_of_a_bad_file_raises_naming_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl: 1 of 1 rows cannot be used.*\(line 1\)"):
        load_task(RowsConfig([str(tmp_path / "rows.jsonl")]), WorldConfig(), 0)


def test_examples_come_chosen_first(make_pairs, recited):
    pairs = make_pairs(3)
    for row, example in zip(pairs, preference_examples(pairs, 64), strict=True):
        chosen, rejected = example.responses
        assert bytes(chosen[:-1]).decode() == row["chosen"]
        assert bytes(rejected[:-1]).decode() == row["rejected"]
    assert [len(example.responses) for example in sft_examples(recited, 64)] == [1] * len(recited)


def test_sft_and_the_stages_after_it_hold_out_the_same_prompts_whatever_is_truncated_or_dropped(
        tmp_path, make_pairs):
    rows = [{**row, "prompt": row["prompt"] + "?" * (n % 7 * 10)}
            for n, row in enumerate(make_pairs(200))]
    rows += [{"prompt": "same?", "chosen": "x", "rejected": "x"},
             {"prompt": "long?", "chosen": "y", "rejected": "z" * 80}]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    config = RowsConfig([str(tmp_path / "rows.jsonl")], max_seq_len=60)
    sft = load_task(config, WorldConfig(), 0, kind="demonstrations")
    dpo = load_task(config, WorldConfig(), 0)
    assert 20 < len(dpo.heldout_prompts) < 60
    assert {row["prompt"] for row in sft.sft_rows}.isdisjoint(dpo.heldout_prompts)


def test_prompts_that_truncation_made_equal_are_not_on_both_sides(tmp_path):
    prompts = [f"{n} " + "a" * 60 for n in range(60)] + [f"short {n}" for n in range(60)]
    rows = [{"prompt": prompt, "chosen": "b", "rejected": "c"} for prompt in prompts]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(RowsConfig([str(tmp_path / "rows.jsonl")], max_seq_len=40), WorldConfig(), 0)
    assert "a" * 37 in task.heldout_prompts and "a" * 37 not in task.prompts
    assert set(task.prompts).isdisjoint(task.heldout_prompts)


def test_options_of_the_world_beside_a_file_are_refused(tmp_path, make_pairs):
    save_jsonl(make_pairs(20), tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="replaces the little world"):
        load_task(RowsConfig([str(tmp_path / "rows.jsonl")]), FEW, 0)


# --- files, folders, held-out files ---------------------------------------------------------------


def config_of(tmp_path, *names, **settings):
    return RowsConfig([str(tmp_path / name) for name in names], **settings)


def test_several_files_and_a_folder_give_the_same_task(tmp_path, make_pairs):
    rows = make_pairs(40)
    save_jsonl(rows[:25], tmp_path / "a.jsonl")
    save_jsonl(rows[25:], tmp_path / "b.jsonl")
    task = load_task(config_of(tmp_path, "a.jsonl", "b.jsonl"), WorldConfig(), 0)
    assert len(task.preferences) + len(task.heldout_preferences) == 40
    assert load_task(config_of(tmp_path, "."), WorldConfig(), 0) == task


def test_a_held_out_file_is_held_out_whole_and_its_prompts_are_left_out_of_training(
        tmp_path, make_pairs, capsys):
    rows = make_pairs(40)
    save_jsonl(rows[:30], tmp_path / "train.jsonl")
    again = {**rows[0], "prompt": f" {rows[0]['prompt'].upper()}"}
    save_jsonl([*rows[30:], again], tmp_path / "eval.jsonl")
    config = config_of(tmp_path, "train.jsonl", eval_data=[str(tmp_path / "eval.jsonl")])
    task = load_task(config, WorldConfig(), 0)
    assert task.heldout_preferences == [*rows[30:], again]
    assert task.preferences == rows[1:30]
    assert "left out 1 training rows whose prompts are in --eval-data" in capsys.readouterr().out


def test_a_held_out_file_without_data_is_refused(tmp_path):
    with pytest.raises(UserError, match="--eval-data needs --data"):
        load_task(RowsConfig(eval_data=["rows.jsonl"]), WorldConfig(), 0)


def test_strict_refuses_what_is_left_out_otherwise(tmp_path, make_pairs):
    save_jsonl([*make_pairs(20), {"prompt": "q", "chosen": "", "rejected": "b"}],
               tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0)
    assert len(task.preferences) + len(task.heldout_preferences) == 20
    with pytest.raises(DataError, match=r"rows\.jsonl, line 21: column 'chosen' is empty"):
        load_task(config_of(tmp_path, "rows.jsonl", strict=True), WorldConfig(), 0)


def talks(count):
    return [{"conversation": [{"input": f"{n}?", "output": "Yes."},
                              {"input": "Really?", "output": f"{n}."}]} for n in range(count)]


@pytest.mark.parametrize("has_eval", [False, True])
def test_all_turns_of_a_conversation_are_on_one_side(tmp_path, has_eval):
    save_jsonl(talks(50), tmp_path / "rows.jsonl")
    save_jsonl([{"conversation": talk["conversation"][:1]} for talk in talks(5)],
               tmp_path / "eval.jsonl")
    config = config_of(tmp_path, "rows.jsonl",
                       eval_data=[str(tmp_path / "eval.jsonl")] if has_eval else None)
    task = load_task(config, WorldConfig(), 0, kind="demonstrations")

    def numbers(rows):
        return {int("".join(filter(str.isdigit, row["prompt"]))) for row in rows}
    assert numbers(task.sft_rows).isdisjoint(numbers(task.heldout_sft_rows))
    assert len(task.sft_rows) == 2 * len(numbers(task.sft_rows))
    assert not has_eval or numbers(task.heldout_sft_rows) == {0, 1, 2, 3, 4}


def test_case_and_white_space_bring_no_prompt_to_both_sides(tmp_path, make_pairs):
    rows = make_pairs(60)
    rows += [{**row, "prompt": f"  {row['prompt'].upper()}\n"} for row in rows]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0)
    assert {loose(prompt) for prompt in task.prompts}.isdisjoint(map(loose, task.heldout_prompts))
    assert len(task.heldout_preferences) % 2 == 0 and len(task.preferences) % 2 == 0


def test_plain_text_is_split_by_its_texts(tmp_path):
    texts = [f"Text {n % 50}." for n in range(100)]
    save_jsonl([{"text": text} for text in texts], tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="demonstrations")
    train, held = ({row["response"] for row in rows}
                   for rows in (task.sft_rows, task.heldout_sft_rows))
    assert train.isdisjoint(held) and train | held == set(texts) and len(held) > 1
    assert len(task.sft_rows) + len(task.heldout_sft_rows) == 100


@pytest.mark.parametrize("row", [lambda n: {"prompt": f"{n}?"}, lambda n: {
    "messages": [{"role": "user", "content": f"{n}?"}]}])
def test_a_file_of_prompts_alone_is_for_ppo(tmp_path, row):
    save_jsonl([row(n) for n in range(30)], tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="prompts")
    assert sorted(task.prompts + task.heldout_prompts) == sorted(f"{n}?" for n in range(30))
    assert task.preferences == task.sft_rows == [] and task.heldout_prompts


@pytest.mark.parametrize("first", [{}, {"prompt": "q", "chosen": "", "rejected": "b"}, 3])
def test_a_bad_first_row_does_not_make_preferences_prompts(tmp_path, make_pairs, first):
    save_jsonl([first, *make_pairs(20)], tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="prompts")
    assert len(task.preferences) + len(task.heldout_preferences) == 20


def test_conversations_that_were_saved_as_text_are_preferences_for_ppo_too(tmp_path):
    rows = [{side: str([{"role": "user", "content": f"{n}?"}, {"role": "gpt", "content": side}])
             for side in ("chosen", "rejected")} for n in range(20)]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="prompts")
    assert len(task.preferences) + len(task.heldout_preferences) == 20


# --- unpaired -------------------------------------------------------------------------------------


def judged(prompts, label=lambda n: n % 2 == 0):
    return [{"prompt": prompt, "completion": f"{n}.", "label": label(n)}
            for n, prompt in enumerate(prompts)]


def good_ones(rows):
    return [{"prompt": row["prompt"], "response": row["completion"]} for row in rows
            if row["label"]]


def test_task_of_an_unpaired_file_keeps_prompts_apart_and_demonstrates_the_good(tmp_path):
    rows = judged([f"{n % 40}?" for n in range(120)], lambda n: n % 3 == 0)
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="unpaired")
    held = set(task.heldout_prompts)
    assert task.unpaired == [row for row in rows if row["prompt"] not in held]
    assert task.heldout_unpaired == [row for row in rows if row["prompt"] in held]
    assert task.sft_rows == good_ones(task.unpaired)
    assert task.heldout_sft_rows == good_ones(task.heldout_unpaired)
    assert len(held) + len(task.prompts) == 40 and held.isdisjoint(task.prompts)
    assert task.preferences == task.heldout_preferences == task.prompt_rows == []
    sft = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="demonstrations")
    assert task.sft_rows == sft.sft_rows and task.heldout_sft_rows == sft.heldout_sft_rows


def test_unpaired_rows_and_preferences_of_the_same_prompts_hold_out_the_same(tmp_path, make_pairs):
    pairs = make_pairs(60)
    save_jsonl(pairs, tmp_path / "pairs.jsonl")
    save_jsonl(judged([row["prompt"] for row in pairs]), tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="unpaired")
    paired = load_task(config_of(tmp_path, "pairs.jsonl"), WorldConfig(), 0)
    assert task.heldout_prompts == paired.heldout_prompts and task.prompts == paired.prompts
    for kind in ("unpaired", "prompts"):  # which are read as the preferences that they are
        assert load_task(config_of(tmp_path, "pairs.jsonl"), WorldConfig(), 0,
                         kind=kind) == paired


def test_labelled_turns_of_one_conversation_are_on_one_side_and_sft_agrees(tmp_path):
    rows = [{"messages": [message for turn in range(last) for message in (
                {"role": "user", "content": f"{n}? {turn}"},
                {"role": "assistant", "content": f"{n}. {turn}"})], "label": label}
            for n in range(50) for last, label in ((1, True), (2, False), (3, True))]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    config = config_of(tmp_path, "rows.jsonl")
    task = load_task(config, WorldConfig(), 0, kind="unpaired")

    def numbers(rows, column="completion"):
        return {int(row[column].split(".")[0]) for row in rows}
    train, held = numbers(task.unpaired), numbers(task.heldout_unpaired)
    assert train.isdisjoint(held) and train | held == set(range(50))
    assert len(task.unpaired) == 3 * len(train)
    sft = load_task(config, WorldConfig(), 0, kind="demonstrations")
    assert numbers(sft.sft_rows, "response") == train


@pytest.mark.parametrize(("label", "word"), [(True, "good"), (False, "bad")])
def test_an_unpaired_file_whose_training_rows_have_one_label_is_refused(tmp_path, label, word):
    prompts = [f"{n}?" for n in range(30)]
    save_jsonl(judged(prompts), tmp_path / "mixed.jsonl")
    held = load_task(config_of(tmp_path, "mixed.jsonl"), WorldConfig(), 0,
                     kind="unpaired").heldout_prompts
    message = f"every row is labelled {word}: KTO needs some of each"
    for rows in (judged(prompts, lambda n: label),
                 judged(prompts, lambda n: label != (prompts[n] in held))):
        save_jsonl(rows, tmp_path / "rows.jsonl")
        with pytest.raises(DataError, match=message):
            load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="unpaired")
    save_jsonl(judged(prompts, lambda n: prompts[n] in held or n % 2 == 0), tmp_path / "rows.jsonl")
    task = load_task(config_of(tmp_path, "rows.jsonl"), WorldConfig(), 0, kind="unpaired")
    assert all(row["label"] for row in task.heldout_unpaired)


@pytest.mark.parametrize("long_rows", ["prompt", "response", "row"])
def test_long_unpaired_rows_are_truncated_or_dropped_as_others_are(tmp_path, long_rows):
    rows = judged([f"{n} " + "a" * (60 if n % 3 == 0 else 6) for n in range(60)])
    save_jsonl(rows, tmp_path / "rows.jsonl")
    config = config_of(tmp_path, "rows.jsonl", max_seq_len=40, long_rows=long_rows)
    task = load_task(config, WorldConfig(), 0, kind="unpaired")
    long = [row for row in task.unpaired if row["prompt"].startswith("aaa")]
    assert bool(long) == (long_rows == "prompt")
    assert all(len(row["prompt"]) + len(row["completion"]) + 2 == 40 for row in long)
    assert task.sft_rows == good_ones(task.unpaired)


def test_held_out_unpaired_rows_of_their_own_may_be_pairs(tmp_path):
    save_jsonl(judged(["a?", "b?", "c?", "d?"]), tmp_path / "rows.jsonl")
    save_jsonl([{"prompt": "B?", "chosen": "x", "rejected": "y"}], tmp_path / "eval.jsonl")
    config = config_of(tmp_path, "rows.jsonl", eval_data=[str(tmp_path / "eval.jsonl")])
    task = load_task(config, WorldConfig(), 0, kind="unpaired")
    assert task.prompts == ["a?", "c?", "d?"] and task.heldout_prompts == ["B?"]
    assert task.heldout_unpaired == [{"prompt": "B?", "completion": "x", "label": True},
                                     {"prompt": "B?", "completion": "y", "label": False}]


def test_the_world_is_the_same_for_unpaired_rows():
    assert load_task(RowsConfig(), FEW, 2, kind="unpaired").preferences == \
        World(FEW, 2).preferences


# --- demonstrations of preferences ----------------------------------------------------------------


@pytest.mark.parametrize("layout", ["transcripts", "conversations"])
@pytest.mark.parametrize("max_seq_len", [256, 60])
@pytest.mark.parametrize("has_eval", [False, True])
def test_each_turn_of_a_chosen_response_is_a_demonstration_as_it_is_for_sft(
        tmp_path, layout, max_seq_len, has_eval):
    def talk(*turns):
        if layout == "transcripts":
            return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {text}"
                           for n, text in enumerate(turns))
        return [{"role": ("user", "assistant")[n % 2], "content": text}
                for n, text in enumerate(turns)]
    rows = [{"chosen": talk(f"{n}?", f"{n}.", "Really?", f"Yes, {n}."),
             "rejected": talk(f"{n}?", "No.")} for n in range(50)]
    save_jsonl(rows[:40], tmp_path / "rows.jsonl")
    save_jsonl(rows[35:], tmp_path / "eval.jsonl")
    config = config_of(tmp_path, "rows.jsonl", max_seq_len=max_seq_len,
                       eval_data=[str(tmp_path / "eval.jsonl")] if has_eval else None)
    task = load_task(config, WorldConfig(), 0)
    sft = load_task(config, WorldConfig(), 0, kind="demonstrations")
    assert len(task.sft_rows) == 2 * len(task.preferences)
    assert task.sft_rows == sft.sft_rows and task.heldout_sft_rows == sft.heldout_sft_rows
    assert not any("Human" in row["response"] for row in task.sft_rows)


def test_no_demonstration_of_a_later_turn_has_a_prompt_that_is_held_out(tmp_path):
    turns = [{"role": "user", "content": "q?"}, {"role": "assistant", "content": "a"},
             {"role": "user", "content": "r?"}, {"role": "assistant", "content": "b"}]
    save_jsonl([{"prompt": "q?", "chosen": turns[1:], "rejected": "x"}], tmp_path / "rows.jsonl")
    save_jsonl([{"chosen": turns, "rejected": [*turns[:3], {"role": "assistant", "content": "y"}]}],
               tmp_path / "eval.jsonl")
    config = config_of(tmp_path, "rows.jsonl", eval_data=[str(tmp_path / "eval.jsonl")])
    task = load_task(config, WorldConfig(), 0)
    assert task.heldout_prompts == ["Human: q?\n\nAssistant: a\n\nHuman: r?\n\nAssistant:"]
    assert task.sft_rows == [{"prompt": "q?", "response": "a"}]
