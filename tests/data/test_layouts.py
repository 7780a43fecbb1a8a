import csv
import json

import pytest

from data import DataError, load_preferences, load_sft
from data.files import save_jsonl
from data.layouts import CONVERSATION_COLUMNS, ROLES, SPELLINGS
from data.preferences import check_preferences, check_sft


def transcript(*turns):
    """Turns of a human and an assistant in alternation, written as hh-rlhf writes them."""
    return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {text}" for n, text in enumerate(turns))


def said(role, text):
    return {"role": role, "content": text}


def user(text):
    return said("user", text)


def assistant(text):
    return said("assistant", text)


def sharegpt(*turns):
    return [{"from": ("human", "gpt")[n % 2], "value": text} for n, text in enumerate(turns)]


# layout: (row, its prompt, its chosen, its rejected)
PREFERENCES = {
    "columns": ({"question": "q", "preferred": "a", "dispreferred": "b"}, "q", "a", "b"),
    "columns with input": ({"instruction": "Add.", "input": "2+2", "chosen": "4", "rejected": "5"},
                           "Add.\n\n2+2", "4", "5"),
    "transcripts": ({"chosen": transcript("q", "a"), "rejected": transcript("q", "b")},
                    "Human: q\n\nAssistant:", "a", "b"),
    "conversations": ({"chosen": [user("q"), assistant("a")],
                       "rejected": [user("q"), assistant("b")]}, "q", "a", "b"),
}
# layout: (row, its prompt, its response)
DEMONSTRATIONS = {
    "columns": ({"question": "q", "answer": "a"}, "q", "a"),
    "columns with input": ({"instruction": "Add.", "input": "2+2", "output": "4"},
                           "Add.\n\n2+2", "4"),
    "transcripts": ({"chosen": transcript("q", "a"), "rejected": transcript("q", "b")},
                    "Human: q\n\nAssistant:", "a"),
    "conversations": ({"messages": [user("q"), assistant("a")]}, "q", "a"),
}


def pair(prompt, chosen, rejected):
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def demonstration(prompt, response):
    return {"prompt": prompt, "response": response}


@pytest.fixture
def save(tmp_path):
    """Rows -> the path of a file of them."""
    def save(rows, name="rows.jsonl"):
        save_jsonl(rows, tmp_path / name)
        return tmp_path / name
    return save


# --- every layout ---------------------------------------------------------------------------------


PAIRS = [(check_preferences, load_preferences, pair, layout, example)
         for layout, example in PREFERENCES.items()]
ANSWERS = [(check_sft, load_sft, demonstration, layout, example)
           for layout, example in DEMONSTRATIONS.items()]


@pytest.mark.parametrize("check, load, record, layout, example", PAIRS + ANSWERS)
def test_every_layout_is_read_and_said(save, capsys, check, load, record, layout, example):
    row, *texts = example
    expected = record(*texts)
    assert check([row]) == [expected]
    assert capsys.readouterr().out == ""
    path = save([row, row])
    assert load(path) == [expected] * 2
    printed = f"{path}: 2 rows of {', '.join(expected)}, found as {layout}\n"
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("layout", PREFERENCES)
def test_a_preference_in_any_layout_demonstrates_its_chosen_response(save, capsys, layout):
    row, prompt, chosen, _ = PREFERENCES[layout]
    assert check_sft([row]) == [demonstration(prompt, chosen)]
    assert load_sft(save([row])) == [demonstration(prompt, chosen)]
    assert f"rows of prompt, response, found as {layout}\n" in capsys.readouterr().out


def test_one_file_may_mix_layouts_and_the_printed_line_names_each_once(save, capsys):
    rows = [PREFERENCES[layout]
            for layout in ("transcripts", "columns", "conversations", "columns")]
    assert load_preferences(save([row for row, *_ in rows])) == [pair(*texts) for _, *texts in rows]
    expected = "found as transcripts and columns and conversations\n"
    assert f"4 rows of prompt, chosen, rejected, {expected}" in capsys.readouterr().out


def test_a_json_list_of_conversations_is_read(tmp_path, capsys):
    row, *texts = PREFERENCES["conversations"]
    (tmp_path / "rows.json").write_text(json.dumps([row] * 3, indent=1), encoding="utf-8")
    assert load_preferences(tmp_path / "rows.json") == [pair(*texts)] * 3
    assert "3 rows of prompt, chosen, rejected, found as conversations" in capsys.readouterr().out


@pytest.mark.parametrize("layout", ["columns", "columns with input", "transcripts"])
def test_a_csv_file_may_hold_any_layout_of_text(tmp_path, layout):
    row, *texts = PREFERENCES[layout]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    assert load_preferences(tmp_path / "rows.csv") == [pair(*texts)]


def test_a_missing_cell_of_a_csv_file_is_named_with_its_line(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,a\n")
    with pytest.raises(DataError, match=r"rows\.csv, line 3: column 'rejected'"):
        load_preferences(tmp_path / "rows.csv")


def test_a_bad_row_of_a_json_file_is_named_with_its_number(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([PREFERENCES["columns"][0], {"prompt": "q"}]))
    with pytest.raises(DataError, match=r"rows\.json, row 1: no column for the chosen"):
        load_preferences(tmp_path / "rows.json")


# --- an instruction and its input -----------------------------------------------------------------


@pytest.mark.parametrize("spelling", SPELLINGS["prompt"])
def test_the_input_stands_below_the_instruction_behind_a_blank_line(spelling):
    assert check_sft([{spelling: "Translate.", "input": "chat\n", "output": "cat"}]) == [
        demonstration("Translate.\n\nchat\n", "cat")]


@pytest.mark.parametrize("nothing", ["", "  \n", None])
def test_an_empty_input_adds_nothing(nothing):
    row = {"instruction": "Say hi.", "input": nothing, "output": "hi"}
    assert check_sft([row]) == [demonstration("Say hi.", "hi")]


def test_a_row_is_not_changed_by_reading_it():
    row = {"instruction": "Translate.", "input": "chat", "output": "cat"}
    before = dict(row)
    check_sft([row])
    assert row == before


# --- transcripts ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("chosen", "rejected"), [
    ("15", "17"), ("2+2= 15", "2+2= 17"), ("It is Paris.", "It is Rome."),
    ("yes", "yes, of course"), ("yes, of course", "yes"),
    ("日本", "日光"), ("a\n\nb", "a\n\nc"), ("Human: a", "Human: b")])
def test_letters_that_both_answers_begin_with_stay_in_the_answers(chosen, rejected):
    rows = [{"chosen": transcript("2+2=", chosen), "rejected": transcript("2+2=", rejected)}]
    assert check_preferences(rows) == [pair("Human: 2+2=\n\nAssistant:", chosen, rejected)]


def test_transcripts_that_part_in_the_last_turn_share_all_turns_before():
    answers = ("The sum is 4", "The sum is 5")
    sides = [transcript("Hi", "Hello!", "2+2=", answer) for answer in answers]
    assert check_preferences([{"chosen": sides[0], "rejected": sides[1]}]) == [
        pair("Human: Hi\n\nAssistant: Hello!\n\nHuman: 2+2=\n\nAssistant:", *answers)]


def test_transcripts_that_part_in_an_earlier_turn_keep_what_follows_in_the_answers():
    row = {"chosen": transcript("Hi", "Hello!", "q", "a"), "rejected": transcript("Hi", "Help!")}
    assert check_preferences([row]) == [
        pair("Human: Hi\n\nAssistant:", "Hello!\n\nHuman: q\n\nAssistant: a", "Help!")]


def test_a_transcript_that_goes_on_where_the_other_ends_shares_the_turn_before():
    row = {"chosen": transcript("Hi", "Hello!"), "rejected": transcript("Hi", "Hello!", "q", "a")}
    assert check_preferences([row]) == [
        pair("Human: Hi\n\nAssistant:", "Hello!", "Hello!\n\nHuman: q\n\nAssistant: a")]


def test_a_transcript_need_not_begin_with_a_blank_line():
    row = {"chosen": transcript("q", "a").strip(), "rejected": transcript("q", "b").strip()}
    assert check_preferences([row]) == [pair("Human: q\n\nAssistant:", "a", "b")]


def test_the_word_assistant_inside_an_answer_is_no_turn():
    answers = ["My label is Assistant: yes, 1", "My label is Assistant: yes, 2"]
    row = {"chosen": transcript("q", answers[0]), "rejected": transcript("q", answers[1])}
    assert check_preferences([row]) == [pair("Human: q\n\nAssistant:", *answers)]


def test_a_second_turn_of_the_assistant_in_a_row_is_a_turn():
    sides = [transcript("q", f"Well.\n\nAssistant: {answer}") for answer in ("yes", "no")]
    assert check_preferences([{"chosen": sides[0], "rejected": sides[1]}]) == [
        pair("Human: q\n\nAssistant: Well.\n\nAssistant:", "yes", "no")]


@pytest.mark.parametrize("other", ["r", "q?", "Q"])
def test_transcripts_of_different_dialogues_are_named(save, other):
    good = PREFERENCES["transcripts"][0]
    bad = {"chosen": transcript("q", "a"), "rejected": transcript(other, "a")}
    message = "row 1: chosen and rejected are transcripts of different dialogues"
    with pytest.raises(DataError, match=message):
        check_preferences([good, bad])
    with pytest.raises(DataError, match=r"row 1: .*different dialogues"):
        check_sft([good, bad])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*different dialogues"):
        load_preferences(save([good, bad]))


def test_transcripts_with_identical_answers_are_named_as_identical():
    same = transcript("q", "a", "r", "same")
    row = {"chosen": same, "rejected": same}
    with pytest.raises(DataError, match=r"row 0: chosen and rejected are identical \('same'\)"):
        check_preferences([row])


def test_a_transcript_whose_answer_is_empty_is_named():
    with pytest.raises(DataError, match="row 0: column 'rejected' is empty"):
        check_preferences([{"chosen": transcript("q", "a"), "rejected": transcript("q", "")}])


def test_text_without_turns_and_without_a_prompt_is_no_transcript():
    with pytest.raises(DataError, match="row 0: no column for the prompt"):
        check_preferences([{"chosen": "a", "rejected": transcript("q", "b")}])


def test_with_a_prompt_column_a_dialogue_in_an_answer_is_left_as_it_is():
    row = pair("Write a dialogue.", transcript("q", "a"), transcript("q", "b"))
    assert check_preferences([row]) == [row]


# --- conversations: preferences -------------------------------------------------------------------


@pytest.mark.parametrize("prompt", ["q", [user("q")], sharegpt("q")])
@pytest.mark.parametrize("spelling", SPELLINGS["prompt"])
def test_the_prompt_of_two_replies_is_in_its_column_as_text_or_as_messages(prompt, spelling):
    row = {spelling: prompt, "chosen": [assistant("a")], "rejected": [assistant("b")]}
    assert check_preferences([row]) == [pair("q", "a", "b")]
    assert check_sft([row]) == [demonstration("q", "a")]


@pytest.mark.parametrize("prompt", ["q", "something else", [user("q")], "", None])
def test_where_both_conversations_begin_alike_the_prompt_column_is_not_needed(prompt):
    row = {"prompt": prompt, "chosen": [user("q"), assistant("a")],
           "rejected": [user("q"), assistant("b")]}
    assert check_preferences([row]) == [pair("q", "a", "b")]


def test_a_system_message_and_earlier_turns_are_written_out_in_the_prompt():
    shared = [said("system", "Be brief."), user("Hi"), assistant("Hello!"), user("2+2=")]
    row = {"chosen": [*shared, assistant("4")], "rejected": [*shared, assistant("5")]}
    prompt = "System: Be brief.\n\nHuman: Hi\n\nAssistant: Hello!\n\nHuman: 2+2=\n\nAssistant:"
    assert check_preferences([row]) == [pair(prompt, "4", "5")]
    row = {"prompt": shared, "chosen": [assistant("4")], "rejected": [assistant("5")]}
    assert check_preferences([row]) == [pair(prompt, "4", "5")]


def test_a_dialogue_gives_the_same_record_as_transcript_and_as_conversation():
    turns = ["Hi", "Hello!", "2+2=", "The sum is"]
    sides = [[*turns[:3], f"{turns[3]} {answer}"] for answer in "45"]
    conversations, transcripts = (
        check_preferences([{"chosen": layout(*sides[0]), "rejected": layout(*sides[1])}])
        for layout in (sharegpt, transcript))
    assert conversations == transcripts


def test_conversations_that_part_earlier_keep_what_follows_in_the_answers():
    row = {"chosen": sharegpt("Hi", "Hello!", "q", "a"), "rejected": sharegpt("Hi", "Help!")}
    assert check_preferences([row]) == [pair("Hi", "Hello!\n\nHuman: q\n\nAssistant: a", "Help!")]


def test_a_conversation_that_goes_on_where_the_other_ends_shares_the_turn_before():
    row = {"chosen": sharegpt("Hi", "Hello!"), "rejected": sharegpt("Hi", "Hello!", "q", "a")}
    assert check_preferences([row]) == [pair("Hi", "Hello!", "Hello!\n\nHuman: q\n\nAssistant: a")]


def test_identical_conversations_are_named_as_identical():
    messages = sharegpt("Hi", "Hello!", "q", "same")
    with pytest.raises(DataError, match=r"row 0: chosen and rejected are identical \('same'\)"):
        check_preferences([{"chosen": messages, "rejected": messages}])


@pytest.mark.parametrize("prompt", [{}, {"prompt": ""}, {"prompt": []}, {"prompt": None}])
def test_replies_without_a_prompt_are_named_with_what_is_accepted(save, prompt):
    good = PREFERENCES["conversations"][0]
    bad = {**prompt, "chosen": [assistant("a")], "rejected": [assistant("b")]}
    message = r"row 1: .*prompt column \(accepted: prompt, instruction, question\)"
    with pytest.raises(DataError, match=message):
        check_preferences([good, bad])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*prompt column"):
        load_preferences(save([good, bad]))


@pytest.mark.parametrize("prompt", [{}, {"prompt": "q"}])
@pytest.mark.parametrize("system", [[], [said("system", "Be brief.")]])
def test_conversations_of_different_dialogues_are_named(prompt, system):
    row = {**prompt, "chosen": [*system, user("q"), assistant("a")],
           "rejected": [*system, user("r"), assistant("b")]}
    with pytest.raises(DataError, match="row 0: "):
        check_preferences([row])


@pytest.mark.parametrize("prompt", [{}, {"prompt": "q"}, {"prompt": [user("q")]}])
@pytest.mark.parametrize(("chosen", "rejected"), [([], []), ([assistant("a")], []),
                                                  ([], [assistant("b")])])
def test_a_conversation_without_a_message_is_named(prompt, chosen, rejected):
    with pytest.raises(DataError, match="row 0: "):
        check_preferences([{**prompt, "chosen": chosen, "rejected": rejected}])


def test_a_conversation_beside_a_text_is_named():
    with pytest.raises(DataError, match="row 0: column 'chosen' is list, not text"):
        check_preferences([pair("q", [assistant("a")], "b")])


def test_an_empty_reply_in_a_conversation_is_named():
    with pytest.raises(DataError, match="row 0: column 'chosen' is empty"):
        check_preferences([{"chosen": sharegpt("q", " "), "rejected": sharegpt("q", "b")}])


# --- conversations: demonstrations ----------------------------------------------------------------


@pytest.mark.parametrize("column", CONVERSATION_COLUMNS)
@pytest.mark.parametrize("messages", [[user("q"), assistant("a")], sharegpt("q", "a")])
def test_every_column_and_either_form_of_a_conversation_is_accepted(column, messages):
    assert check_sft([{column: messages}]) == [demonstration("q", "a")]


@pytest.mark.parametrize(("role", "speaker"), ROLES.items())
def test_every_role_has_its_name_in_a_prompt(role, speaker):
    messages = [said(role, "one"), user("two"), assistant("a")]
    assert check_sft([{"messages": messages}]) == [
        demonstration(f"{speaker}: one\n\nHuman: two\n\nAssistant:", "a")]
    shared = [{"from": message["role"], "value": message["content"]} for message in messages]
    assert check_sft([{"conversations": shared}]) == check_sft([{"messages": messages}])


def messages_of(*turns):
    return [said(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)]


@pytest.mark.parametrize("layout", [sharegpt, messages_of])
def test_a_conversation_of_many_turns_demonstrates_the_assistants_last(layout):
    prompt = "Human: Hi\n\nAssistant: Hello!\n\nHuman: 2+2=\n\nAssistant:"
    turns = ["Hi", "Hello!", "2+2=", "4"]
    for conversation in (layout(*turns), layout(*turns, "Thanks")):
        assert check_sft([{"messages": conversation}]) == [demonstration(prompt, "4")]


@pytest.mark.parametrize("spelling", SPELLINGS["response"])
def test_prompt_and_response_may_each_be_messages(spelling):
    row = {"prompt": [said("system", "Be brief."), user("q")], spelling: [assistant("a")]}
    assert check_sft([row]) == [demonstration("System: Be brief.\n\nHuman: q\n\nAssistant:", "a")]


@pytest.mark.parametrize("messages", [
    [], [user("q")], [assistant("a")], [assistant("a"), user("q")],
    [said("system", "s"), user("q")]])
def test_a_conversation_in_which_no_assistant_answers_is_named(save, messages):
    good = DEMONSTRATIONS["conversations"][0]
    with pytest.raises(DataError, match="row 1: the conversation has no assistant message"):
        check_sft([good, {"messages": messages}])
    message = r"rows\.jsonl, line 2: the conversation has no assistant message"
    with pytest.raises(DataError, match=message):
        load_sft(save([good, {"messages": messages}]))


def test_an_empty_answer_of_an_assistant_is_named():
    with pytest.raises(DataError, match="row 0: column 'response' is empty"):
        check_sft([{"messages": sharegpt("q", "")}])


# --- bad messages ---------------------------------------------------------------------------------

BAD_MESSAGES = [
    # something is missing
    {"content": "text"}, {"role": "user"}, {"from": "human"}, {"value": "text"}, {},
    # unknown roles
    said("tool", "text"), said("User", "text"), said("", "text"),
    {"from": "bing", "value": "text"},
    # roles that are no text
    said(None, "text"), said(3, "text"), said(["user"], "text"), said({"user": 1}, "text"),
    {"from": ["human"], "value": "text"},
    # contents that are no text
    said("user", ["text"]), said("user", [{"type": "text", "text": "text"}]), said("user", None),
    said("user", 3), said("user", {"text": "text"}), {"from": "human", "value": ["text"]},
    # no objects
    "text", ["user", "text"], None, 3]


@pytest.mark.parametrize(("column", "bad"), [
    *((CONVERSATION_COLUMNS[0], bad) for bad in BAD_MESSAGES),
    *((column, BAD_MESSAGES[0]) for column in CONVERSATION_COLUMNS[1:])])
def test_a_bad_message_of_a_demonstration_is_named_with_row_column_and_number(save, column, bad):
    rows = [DEMONSTRATIONS["conversations"][0],
            {column: [user("q"), assistant("a"), bad, assistant("b")]}]
    message = f"row 1: column '{column}': message 2 .*role.*among user, human, assistant, gpt"
    with pytest.raises(DataError, match=message):
        check_sft(rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: column '{column}': message 2 "):
        load_sft(save(rows))


@pytest.mark.parametrize(("column", "bad"), [*(("dispreferred", bad) for bad in BAD_MESSAGES),
                                             ("preferred", BAD_MESSAGES[0])])
def test_a_bad_message_of_a_preference_is_named_with_row_column_and_number(save, column, bad):
    rows = [PREFERENCES["conversations"][0],
            {"preferred": sharegpt("q", "a"), "dispreferred": sharegpt("q", "b"),
             column: [user("q"), bad]}]
    message = f"row 1: column '{column}': message 1 .*role.*among user, human, assistant, gpt"
    with pytest.raises(DataError, match=message):
        check_preferences(rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: column '{column}': message 1 "):
        load_preferences(save(rows))


@pytest.mark.parametrize("bad", BAD_MESSAGES)
def test_a_bad_message_of_a_prompt_is_named_with_row_column_and_number(bad):
    row = {"question": [user("q"), bad], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    with pytest.raises(DataError, match="row 0: column 'question': message 1 "):
        check_preferences([row])


def test_a_bad_message_of_a_response_beside_a_prompt_is_named_with_row_column_and_number():
    with pytest.raises(DataError, match="row 0: column 'completion': message 0 "):
        check_sft([{"prompt": [user("q")], "completion": [said("tool", "text")]}])


def test_a_bad_message_of_a_prompt_beside_a_response_is_named_with_row_column_and_number():
    with pytest.raises(DataError, match="row 0: column 'prompt': message 1 "):
        check_sft([{"prompt": [user("q"), said("tool", "text")], "completion": [assistant("a")]}])


def test_half_a_surrogate_pair_in_a_message_is_named_with_its_row():
    with pytest.raises(DataError, match=r"row 0: .*surrogate"):
        check_sft([{"messages": [user("\ud83d"), assistant("a")]}])


# --- pairs of identical responses in a file -------------------------------------------------------


def test_identical_pairs_of_a_file_are_left_out_and_counted_with_their_lines(tmp_path, capsys):
    good, same = pair("q", "a", "b"), pair("q", "same", "same")
    first_lines = "\n".join(map(json.dumps, [good, same, good]))
    (tmp_path / "rows.jsonl").write_text(f"{first_lines}\n\n{json.dumps(same)}\n")
    assert load_preferences(tmp_path / "rows.jsonl") == [good, good]
    read, left_out = capsys.readouterr().out.splitlines()
    assert read.endswith("rows.jsonl: 4 rows of prompt, chosen, rejected, found as columns")
    assert "rows.jsonl: left out 2 rows" in left_out and "identical" in left_out
    assert left_out.endswith("line 2, line 5)")


def test_only_the_first_identical_pairs_of_many_are_named(save, capsys):
    load_preferences(save([pair("q", "a", "b"), *[pair("q", "a", "a")] * 50]))
    out = capsys.readouterr().out
    assert "left out 50 rows" in out and "line 2, line 3" in out and "line 40" not in out


@pytest.mark.parametrize("same", [
    {"chosen": transcript("q", "a"), "rejected": transcript("q", "a")},
    {"chosen": transcript("q", "a"), "rejected": transcript("q", "a ")},
    {"chosen": sharegpt("q", "a"), "rejected": sharegpt("q", "a")},
    {"prompt": "q", "preferred": "a", "dispreferred": "a"}])
def test_identical_pairs_are_left_out_in_every_layout(save, capsys, same):
    assert load_preferences(save([same, pair("q", "a", "b")])) == [pair("q", "a", "b")]
    out = capsys.readouterr().out
    assert "left out 1 row" in out and "line 1)" in out


def test_nothing_is_said_of_identical_pairs_where_there_are_none(save, capsys):
    load_preferences(save([pair("q", "a", "b")]))
    assert "left out" not in capsys.readouterr().out


def test_a_file_of_identical_pairs_alone_has_no_rows(save):
    with pytest.raises(DataError, match=r"rows\.jsonl: .*no rows"):
        load_preferences(save([pair("q", "a", "a")]))


def test_an_identical_pair_still_is_a_demonstration(save, capsys):
    assert load_sft(save([pair("q", "a", "a")])) == [demonstration("q", "a")]
    assert "left out" not in capsys.readouterr().out
