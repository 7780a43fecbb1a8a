import pytest

from data import DataError, World, WorldConfig
from data.examples import preference_examples, sft_examples
from data.files import save_jsonl
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
    task = load_task(RowsConfig(str(tmp_path / "rows.jsonl")), WorldConfig(), 0)
    assert len(task.preferences) + len(task.heldout_preferences) == 20
    assert set(task.prompts).isdisjoint(task.heldout_prompts)
    assert task.sft_rows == [{"prompt": row["prompt"], "response": row["chosen"]}
                             for row in task.preferences]
    assert task.world is None and task.measure(["a"], ["b"]) == {}


def test_task_of_a_demonstration_file_has_no_preferences(tmp_path, recited):
    save_jsonl(recited, tmp_path / "rows.jsonl")
    config = RowsConfig(str(tmp_path / "rows.jsonl"))
    task = load_task(config, WorldConfig(), 0, demonstrations=True)
    assert len(task.sft_rows) + len(task.heldout_sft_rows) == len(recited)
    assert task.preferences == [] and len(task.heldout_prompts) == len(task.heldout_sft_rows)


def test_task_of_a_bad_file_raises_naming_it(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 1"):
        load_task(RowsConfig(str(tmp_path / "rows.jsonl")), WorldConfig(), 0)


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
    config = RowsConfig(str(tmp_path / "rows.jsonl"), max_seq_len=60)
    sft = load_task(config, WorldConfig(), 0, demonstrations=True)
    dpo = load_task(config, WorldConfig(), 0)
    assert 20 < len(dpo.heldout_prompts) < 60
    assert {row["prompt"] for row in sft.sft_rows}.isdisjoint(dpo.heldout_prompts)


def test_prompts_that_truncation_made_equal_are_not_on_both_sides(tmp_path):
    prompts = [f"{n} " + "a" * 60 for n in range(60)] + [f"short {n}" for n in range(60)]
    rows = [{"prompt": prompt, "chosen": "b", "rejected": "c"} for prompt in prompts]
    save_jsonl(rows, tmp_path / "rows.jsonl")
    task = load_task(RowsConfig(str(tmp_path / "rows.jsonl"), max_seq_len=40), WorldConfig(), 0)
    assert "a" * 37 in task.heldout_prompts and "a" * 37 not in task.prompts
    assert set(task.prompts).isdisjoint(task.heldout_prompts)


def test_options_of_the_world_beside_a_file_are_refused(tmp_path, make_pairs):
    save_jsonl(make_pairs(20), tmp_path / "rows.jsonl")
    with pytest.raises(UserError, match="replaces the little world"):
        load_task(RowsConfig(str(tmp_path / "rows.jsonl")), FEW, 0)
