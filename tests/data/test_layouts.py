import csv
import json

import numpy as np
import pytest

from data import DataError, load_preferences, load_sft, load_unpaired
from data.conversations import ROLES
from data.files import save_jsonl
from data.layouts import BAD_LABELS, GOOD_LABELS, SPELLINGS
from data.preferences import check_preferences, check_sft, check_unpaired, load_prompts

CONVERSATION_COLUMNS = SPELLINGS["messages"]


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


def unpaired(prompt, completion, label):
    return {"prompt": prompt, "completion": completion, "label": label}


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
LABELLED = [(check_unpaired, load_unpaired, unpaired, layout, ({**row, "label": 0}, *texts, False))
            for layout, (row, *texts) in DEMONSTRATIONS.items() if layout != "transcripts"]


@pytest.mark.parametrize("check, load, record, layout, example", PAIRS + ANSWERS + LABELLED)
def test_every_layout_is_read_and_said(save, capsys, check, load, record, layout, example):
    row, *texts = example
    expected = record(*texts)
    assert check([row]) == [expected]
    assert capsys.readouterr().out == ""
    path = save([row, row])
    assert load(path) == [expected] * 2
    printed = f"{path}: 2 records of {', '.join(expected)} from 2 rows, found as {layout}\n"
    assert capsys.readouterr().out == printed


@pytest.mark.parametrize("layout", PREFERENCES)
def test_a_preference_in_any_layout_demonstrates_its_chosen_response(save, capsys, layout):
    row, prompt, chosen, _ = PREFERENCES[layout]
    assert check_sft([row]) == [demonstration(prompt, chosen)]
    assert load_sft(save([row])) == [demonstration(prompt, chosen)]
    out = capsys.readouterr().out
    assert f"1 records of prompt, response from 1 rows, found as {layout}\n" in out


def test_one_file_may_mix_layouts_and_the_printed_line_names_each_once(save, capsys):
    rows = [PREFERENCES[layout]
            for layout in ("transcripts", "columns", "conversations", "columns")]
    assert load_preferences(save([row for row, *_ in rows])) == [pair(*texts) for _, *texts in rows]
    expected = "from 4 rows, found as transcripts and columns and conversations\n"
    assert f"4 records of prompt, chosen, rejected {expected}" in capsys.readouterr().out


def test_a_json_list_of_conversations_is_read(tmp_path, capsys):
    row, *texts = PREFERENCES["conversations"]
    (tmp_path / "rows.json").write_text(json.dumps([row] * 3, indent=1), encoding="utf-8")
    assert load_preferences(tmp_path / "rows.json") == [pair(*texts)] * 3
    assert "3 records of prompt, chosen, rejected from 3 rows, found as conversations" in \
        capsys.readouterr().out


@pytest.mark.parametrize("layout", ["columns", "columns with input", "transcripts"])
def test_a_csv_file_may_hold_any_layout_of_text(tmp_path, layout):
    row, *texts = PREFERENCES[layout]
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([row.keys(), row.values()])
    assert load_preferences(tmp_path / "rows.csv") == [pair(*texts)]


def test_a_missing_cell_of_a_csv_file_is_named_with_its_line(tmp_path):
    (tmp_path / "rows.csv").write_text("prompt,chosen,rejected\nq,a,b\nq,a\n")
    with pytest.raises(DataError, match=r"rows\.csv, line 3: column 'rejected'"):
        load_preferences(tmp_path / "rows.csv", strict=True)


def test_a_bad_row_of_a_json_file_is_named_with_its_number(tmp_path):
    (tmp_path / "rows.json").write_text(json.dumps([PREFERENCES["columns"][0], {"prompt": "q"}]))
    with pytest.raises(DataError, match=r"rows\.json, row 1: no column for the chosen"):
        load_preferences(tmp_path / "rows.json", strict=True)


# --- an instruction and its input -----------------------------------------------------------------


@pytest.mark.parametrize("spelling", [name for name in SPELLINGS["prompt"] if name != "input"])
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
        load_preferences(save([good, bad]), strict=True)


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


@pytest.mark.parametrize("prompt", ["q", " Q".lower(), [user("q")], user("q"), "", None, []])
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
    message = (r"row 1: column 'prompt' is (empty|null)" if prompt else
               r"row 1: no column for the prompt \(accepted: prompt, instruction, question, query")
    with pytest.raises(DataError, match=message):
        check_preferences([good, bad])
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*prompt"):
        load_preferences(save([good, bad]), strict=True)


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


def test_a_reply_may_be_messages_where_the_other_is_text():
    assert check_preferences([pair("q", [assistant("a")], "b")]) == [pair("q", "a", "b")]


def test_a_whole_conversation_beside_a_text_is_named():
    with pytest.raises(DataError, match=r"row 0: .*do not part at a reply"):
        check_preferences([pair("q", [user("q"), assistant("a")], "b")])


def test_an_empty_reply_in_a_conversation_is_named():
    with pytest.raises(DataError, match=r"row 0: column 'chosen': message 1 .* is empty"):
        check_preferences([{"chosen": sharegpt("q", " "), "rejected": sharegpt("q", "b")}])


# --- conversations: demonstrations ----------------------------------------------------------------


@pytest.mark.parametrize("column", CONVERSATION_COLUMNS)
@pytest.mark.parametrize("messages", [[user("q"), assistant("a")], sharegpt("q", "a")])
def test_every_column_and_either_form_of_a_conversation_is_accepted(column, messages):
    assert check_sft([{column: messages}]) == [demonstration("q", "a")]


@pytest.mark.parametrize(("role", "speaker"), [
    (name, speaker) for speaker, names in ROLES.items() for name in names])
def test_every_role_has_its_name_in_a_prompt(role, speaker):
    messages = [said(role, "one"), user("two"), assistant("a")]
    expected = demonstration(f"{speaker}: one\n\nHuman: two\n\nAssistant:", "a")
    assert check_sft([{"messages": messages}]) == [expected]
    shared = [{"from": f" {message['role'].upper()}", "value": message["content"]}
              for message in messages]
    assert check_sft([{"conversations": shared}]) == [expected]


def messages_of(*turns):
    return [said(("user", "assistant")[n % 2], text) for n, text in enumerate(turns)]


@pytest.mark.parametrize("layout", [sharegpt, messages_of])
def test_every_turn_of_an_assistant_is_a_demonstration_behind_all_that_was_said_before(layout):
    prompt = "Human: Hi\n\nAssistant: Hello!\n\nHuman: 2+2=\n\nAssistant:"
    turns = ["Hi", "Hello!", "2+2=", "4"]
    for conversation in (layout(*turns), layout(*turns, "Thanks")):
        assert check_sft([{"messages": conversation}]) == [demonstration("Hi", "Hello!"),
                                                           demonstration(prompt, "4")]


@pytest.mark.parametrize("spelling", SPELLINGS["response"])
def test_prompt_and_response_may_each_be_messages(spelling):
    row = {"prompt": [said("system", "Be brief."), user("q")], spelling: [assistant("a")]}
    assert check_sft([row]) == [demonstration("System: Be brief.\n\nHuman: q\n\nAssistant:", "a")]


@pytest.mark.parametrize("messages", [
    [], [user("q")], [assistant("a")], [assistant("a"), user("q")],
    [said("system", "s"), user("q")]])
def test_a_conversation_in_which_no_assistant_answers_is_named(save, messages):
    good = DEMONSTRATIONS["conversations"][0]
    reason = "the conversation has no message of an assistant that answers" if messages else \
        "no column for the response"
    with pytest.raises(DataError, match=f"row 1: {reason}"):
        check_sft([good, {"messages": messages}])
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: {reason}"):
        load_sft(save([good, {"messages": messages}]), strict=True)


def test_an_empty_answer_of_an_assistant_is_named():
    with pytest.raises(DataError, match=r"column 'messages': message 1 \(Assistant\) is empty"):
        check_sft([{"messages": sharegpt("q", "")}])


# --- bad messages ---------------------------------------------------------------------------------

BAD_MESSAGES = [
    # something is missing
    {"content": "text"}, {"role": "user"}, {"from": "human"}, {"value": "text"}, {},
    # unknown roles
    said("wizard", "text"), said("use", "text"), said("", "text"),
    {"from": "nobody", "value": "text"},
    # roles that are no text
    said(None, "text"), said(3, "text"), said(["user"], "text"), said({"user": 1}, "text"),
    {"from": ["human"], "value": "text"},
    # contents that are no text
    said("user", [3]), said("user", [{"type": "image_url", "image_url": "x"}]), said("user", None),
    said("user", [{"type": "text"}]), said("user", [{"type": "text", "text": ""}]),
    said("user", ""), said("user", 3), said("user", {"text": "text"}),
    {"from": "human", "value": [None]},
    # no objects
    "text", ["user", "text"], None, 3]


@pytest.mark.parametrize(("column", "bad"), [
    *((CONVERSATION_COLUMNS[0], bad) for bad in BAD_MESSAGES),
    *((column, BAD_MESSAGES[0]) for column in CONVERSATION_COLUMNS[1:])])
def test_a_bad_message_of_a_demonstration_is_named_with_row_column_and_number(save, column, bad):
    rows = [DEMONSTRATIONS["conversations"][0],
            {column: [user("q"), assistant("a"), bad, assistant("b")]}]
    with pytest.raises(DataError, match=f"row 1: column '{column}': message 2 "):
        check_sft(rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: column '{column}': message 2 "):
        load_sft(save(rows), strict=True)


@pytest.mark.parametrize(("column", "bad"), [*(("dispreferred", bad) for bad in BAD_MESSAGES),
                                             ("preferred", BAD_MESSAGES[0])])
def test_a_bad_message_of_a_preference_is_named_with_row_column_and_number(save, column, bad):
    rows = [PREFERENCES["conversations"][0],
            {"preferred": sharegpt("q", "a"), "dispreferred": sharegpt("q", "b"),
             column: [user("q"), bad]}]
    with pytest.raises(DataError, match=f"row 1: column '{column}': message 1 "):
        check_preferences(rows)
    with pytest.raises(DataError, match=rf"rows\.jsonl, line 2: column '{column}': message 1 "):
        load_preferences(save(rows), strict=True)


@pytest.mark.parametrize("bad", BAD_MESSAGES)
def test_a_bad_message_of_a_prompt_is_named_with_row_column_and_number(bad):
    row = {"question": [user("q"), bad], "chosen": [assistant("a")], "rejected": [assistant("b")]}
    with pytest.raises(DataError, match="row 0: column 'question': message 1 "):
        check_preferences([row])


def test_a_bad_message_of_a_response_beside_a_prompt_is_named_with_row_column_and_number():
    with pytest.raises(DataError, match="row 0: column 'completion': message 0 "):
        check_sft([{"prompt": [user("q")], "completion": [said("wizard", "text")]}])


def test_a_bad_message_of_a_prompt_beside_a_response_is_named_with_row_column_and_number():
    with pytest.raises(DataError, match="row 0: column 'prompt': message 1 "):
        check_sft([{"prompt": [user("q"), said("wizard", "text")], "completion": [assistant("a")]}])


def test_half_a_surrogate_pair_in_a_message_is_named_with_its_row():
    with pytest.raises(DataError, match=r"row 0: .*surrogate"):
        check_sft([{"messages": [user("\ud83d"), assistant("a")]}])


# --- what an answer hangs on ----------------------------------------------------------------------

TALK = "Human: q0\n\nAssistant: a0\n\nHuman: q\n\nAssistant:"
REPLIES = {"chosen": "a", "rejected": "b"}
WHOLE = {"chosen": [user("q"), assistant("a")], "rejected": [user("q"), assistant("b")]}
LONGER = {side: [user("q0"), assistant("a0"), *messages] for side, messages in WHOLE.items()}
TRANSCRIPTS = {side: transcript("q", reply) for side, reply in REPLIES.items()}


@pytest.mark.parametrize(("row", "prompt"), [
    # a system column
    ({"system": "s", "prompt": "q", **REPLIES}, "System: s\n\nHuman: q\n\nAssistant:"),
    ({"system_prompt": "s", "question": "q", **REPLIES}, "System: s\n\nHuman: q\n\nAssistant:"),
    ({"system": "s", **WHOLE}, "System: s\n\nHuman: q\n\nAssistant:"),
    ({"system": "s", **TRANSCRIPTS}, "System: s\n\nHuman: q\n\nAssistant:"),
    ({"system": "s", "prompt": transcript("q") + "\n\nAssistant:", **REPLIES},
     "System: s\n\nHuman: q\n\nAssistant:"),
    *(({"system": nothing, "prompt": "q", **REPLIES}, "q") for nothing in ("", " ", None, [])),
    # a history column
    ({"history": [["q0", "a0"]], "prompt": "q", **REPLIES}, TALK),
    ({"history": [("q0", "a0")], **WHOLE}, TALK),
    ({"history": [user("q0"), assistant("a0")], "prompt": [user("q")], **REPLIES}, TALK),
    ({"history": ["q0", "a0"], "prompt": "q", **REPLIES}, TALK),
    ({"history": transcript("q0", "a0"), "prompt": "q", **REPLIES}, TALK),
    *(({"history": nothing, "prompt": "q", **REPLIES}, "q") for nothing in ("", [], None)),
    # a prompt column that is not in the conversation
    ({"prompt": "q0", **WHOLE}, "Human: q0\n\nHuman: q\n\nAssistant:"),
    ({"prompt": [user("q0"), assistant("a0")], **WHOLE}, TALK),
    ({"prompt": [said("system", "s")], **WHOLE}, "System: s\n\nHuman: q\n\nAssistant:"),
    # `input` and `context`
    ({"prompt": "q", "context": "c", **REPLIES}, "q\n\nc"),
    ({"prompt": "q", "input": "i", "context": "c", **REPLIES}, "q\n\ni\n\nc"),
    ({"prompt": [user("q")], "context": "c", **REPLIES}, "q\n\nc"),
    ({"messages": [user("q0"), assistant("a0"), user("q")], "context": "c", **REPLIES},
     "Human: q0\n\nAssistant: a0\n\nHuman: q\n\nc\n\nAssistant:"),
    ({"context": "c", **WHOLE}, "Human: c\n\nHuman: q\n\nAssistant:"),
    ({"system": "s", "instruction": "q", "input": "i", **REPLIES},
     "System: s\n\nHuman: q\n\ni\n\nAssistant:"),
    # everything at once
    ({"system": "s", "history": [["q0", "a0"]], "instruction": "q", "input": "i", **REPLIES},
     "System: s\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q\n\ni\n\nAssistant:")])
def test_what_an_answer_hangs_on_becomes_part_of_the_prompt(row, prompt):
    assert check_preferences([row]) == [pair(prompt, "a", "b")]
    assert check_sft([row]) == [demonstration(prompt, "a")]


@pytest.mark.parametrize(("row", "prompt"), [
    # the prompt
    *(({"prompt": prompt, **WHOLE}, "q") for prompt in
      ("q", " q\n", [user("q")], user("q"), "Human: q\n\nAssistant:", "Human: q\n\nAssistant: a",
       [user("q"), assistant("a")], [user("q"), assistant("b")])),
    *(({"prompt": prompt, **LONGER}, TALK) for prompt in
      ("q0", "q", [user("q0")], [user("q0"), assistant("a0"), user("q")], [user("q")],
       LONGER["chosen"], LONGER["rejected"], TALK)),
    *(({"prompt": prompt, **TRANSCRIPTS}, "Human: q\n\nAssistant:") for prompt in
      ("q", [user("q")], "Human: q\n\nAssistant:", transcript("q") + "\n\nAssistant:")),
    # the history, and the prompt behind it
    ({"history": [["q0", "a0"]], **LONGER}, TALK),
    ({"history": [["q0", "a0"]], "prompt": "q", **LONGER}, TALK),
    ({"history": [["q0", "a0"]], "prompt": "q", **WHOLE}, TALK),
    # the system message
    ({"system": "s", **{side: [said("system", "s"), *talk] for side, talk in WHOLE.items()}},
     "System: s\n\nHuman: q\n\nAssistant:"),
    ({"system": "s", "prompt": [said("system", "s"), user("q")], **REPLIES},
     "System: s\n\nHuman: q\n\nAssistant:"),
    # the input
    ({"prompt": "q", "input": "q", **REPLIES}, "q")])
def test_what_the_conversation_repeats_is_not_said_twice(row, prompt):
    assert check_preferences([row]) == [pair(prompt, "a", "b")]
    assert check_sft([row]) == [demonstration(prompt, "a")]


def test_two_different_system_messages_are_both_kept():
    row = {"system": "s", **{side: [said("system", "t"), *messages]
                             for side, messages in WHOLE.items()}}
    prompt = "System: s\n\nSystem: t\n\nHuman: q\n\nAssistant:"
    assert check_preferences([row]) == [pair(prompt, "a", "b")]


@pytest.mark.parametrize("column", CONVERSATION_COLUMNS)
@pytest.mark.parametrize("replies", [REPLIES, WHOLE, LONGER, TRANSCRIPTS, {
    side: [assistant(text)] for side, text in REPLIES.items()}])
@pytest.mark.parametrize("copied", [[], [assistant("a")], [assistant(" a\n")], [assistant("b")]])
@pytest.mark.parametrize("prompt", [{}, {"prompt": "q"}])
def test_a_copy_of_the_conversation_never_leaks_the_answer(column, replies, copied, prompt):
    before = [user("q0"), assistant("a0"), user("q")] if replies is LONGER else [user("q")]
    row = {**prompt, **replies, column: [*before, *copied]}
    for record in (*check_preferences([row]), *check_sft([row])):
        assert record["prompt"] in ("q", "Human: q\n\nAssistant:", TALK)


@pytest.mark.parametrize(("row", "prompt"), [
    ({"messages": [user("q")], **REPLIES}, "q"), ({"prompt": user("q"), **REPLIES}, "q"),
    ({"conversations": sharegpt("q0", "a0", "q"), **REPLIES}, TALK),
    ({"conversations": sharegpt("q"), "chosen": assistant("a"), "rejected": assistant("b")}, "q"),
    ({"conversation": [["q0", "a0"]], "prompt": None, **REPLIES},
     "Human: q0\n\nAssistant: a0\n\nAssistant:"),
    ({"messages": transcript("q0", "a0", "q"), **REPLIES}, TALK),
    ({"prompt": "q", "chosen": {"from": "gpt", "value": "a"}, "rejected": "b"}, "q")])
def test_replies_may_be_one_message_or_text_beside_their_prompt(row, prompt):
    assert check_preferences([row]) == [pair(prompt, "a", "b")]


EARLY = {"chosen": sharegpt("q", "a", "q1", "a1"), "rejected": sharegpt("q", "b", "q1", "b1")}
THOUGHT = {side: [assistant("I think."), assistant(text)] for side, text in REPLIES.items()}


@pytest.mark.parametrize("side", ["chosen", "rejected"])
@pytest.mark.parametrize("column", ["prompt", "messages"])
def test_a_copy_of_many_turns_never_leaks_the_answer(column, side):
    written = {name: transcript(*(turn["value"] for turn in talk)) for name, talk in EARLY.items()}
    for row in ({**EARLY, column: EARLY[side]}, {**written, column: EARLY[side]}):
        assert check_preferences([row])[0]["prompt"] in ("q", "Human: q\n\nAssistant:")
    row = {column: [user("q"), *THOUGHT[side]], **THOUGHT}
    assert check_preferences([row]) == [
        pair("Human: q\n\nAssistant: I think.\n\nAssistant:", "a", "b")]


def test_an_answer_that_was_also_given_before_is_no_copy():
    row = {"prompt": sharegpt("q0", "a"), "chosen": sharegpt("q", "a"),
           "rejected": sharegpt("q", "b")}
    prompt = "Human: q0\n\nAssistant: a\n\nHuman: q\n\nAssistant:"
    assert check_preferences([row]) == [pair(prompt, "a", "b")]
    row = {"prompt": sharegpt("q0", "a", "q"), "chosen": "a", "rejected": "b"}
    assert check_preferences([row]) == [pair(prompt, "a", "b")]


def test_a_dialogue_as_the_answer_to_a_prompt_is_an_answer():
    row = {"prompt": "Write a dialogue.", **TRANSCRIPTS}
    assert check_preferences([row]) == [row]


@pytest.mark.parametrize("end", ["\r\n", "\r"])
def test_transcripts_may_have_other_line_ends(end):
    row = {side: text.replace("\n", end) for side, text in TRANSCRIPTS.items()}
    assert check_preferences([row]) == [pair("Human: q\n\nAssistant:", "a", "b")]


@pytest.mark.parametrize("turns", [("", "x", "q"), ("q0", " ", "q"), ("q0", "x", ""),
                                   ("q0", "", "q")])
def test_a_transcript_with_an_empty_turn_is_named(turns):
    row = {side: transcript(*turns, reply) for side, reply in REPLIES.items()}
    with pytest.raises(DataError, match=r"row 0: turn \d .* is empty"):
        check_preferences([row])


def test_what_stands_before_the_first_turn_of_a_transcript_is_kept():
    row = {side: "A dialogue." + text for side, text in TRANSCRIPTS.items()}
    prompt = "A dialogue.\n\nHuman: q\n\nAssistant:"
    assert check_preferences([row]) == [pair(prompt, "a", "b")]
    assert check_preferences([{"system": "s", **row}]) == [
        pair(f"System: s\n\nSystem: {prompt}", "a", "b")]


# --- spellings of which only one is filled --------------------------------------------------------


@pytest.mark.parametrize("nothing", [None, "", " ", [], float("nan")])
@pytest.mark.parametrize("spelling", [name for name in SPELLINGS["prompt"] if name != "prompt"])
def test_an_empty_spelling_stands_aside_for_a_filled_one(spelling, nothing):
    assert check_preferences([{"prompt": nothing, spelling: "q", **REPLIES}]) == [
        pair("q", "a", "b")]
    assert check_preferences([{"prompt": "q", "preferred": "a", "chosen": nothing,
                               "rejected": nothing, "rejected_response": "b"}]) == [
        pair("q", "a", "b")]
    assert check_sft([{"prompt": "q", "response": nothing, "output": "a"}]) == [
        demonstration("q", "a")]
    assert check_sft([{"prompt": "q", "response": nothing, **REPLIES}]) == [demonstration("q", "a")]
    assert check_sft([{"text": nothing, "messages": [user("q"), assistant("a")]}]) == [
        demonstration("q", "a")]


def test_capitals_and_blanks_in_names_do_not_matter():
    assert check_preferences([{" Prompt": "q", "CHOSEN": "a", "Rejected ": "b"}]) == [
        pair("q", "a", "b")]
    with pytest.raises(DataError, match="row 0: the column 'prompt' occurs twice"):
        check_preferences([{"Prompt": "q", "prompt": "r", **REPLIES}])


@pytest.mark.parametrize("column", ["context", "input"])
@pytest.mark.parametrize("value", [3, True, ["a", "b"], {"a": "b"}])
def test_an_input_that_is_no_text_is_named_and_not_dropped(column, value):
    with pytest.raises(DataError, match=f"row 0: column '{column}' is "):
        check_sft([{"prompt": "q", column: value, "response": "a"}])


def test_a_prompt_that_is_no_more_than_the_assistants_name_stays_text():
    row = {"prompt": "\n\nAssistant:", "context": "c", "response": "a"}
    assert check_sft([row]) == [demonstration("\n\nAssistant:\n\nc", "a")]


@pytest.mark.parametrize("value", [3, True, {"a": "b"}])
@pytest.mark.parametrize("column", ["system", "history"])
def test_a_system_or_history_that_cannot_be_read_is_named(column, value):
    with pytest.raises(DataError, match=f"row 0: column '{column}'"):
        check_preferences([{column: value, "prompt": "q", **REPLIES}])


# --- demonstrations: turns, labels, text ----------------------------------------------------------


@pytest.mark.parametrize("row", [
    {"chosen": transcript("Hi", "Hello!", "q", "a"), "rejected": transcript("Hi", "Help!")},
    {"chosen": sharegpt("Hi", "Hello!", "q", "a"), "rejected": sharegpt("Hi", "Help!")}])
def test_a_chosen_response_of_many_turns_teaches_no_words_of_a_human(row):
    first, second = check_sft([row])
    assert (first["response"], second["response"]) == ("Hello!", "a")
    assert first["prompt"] == check_preferences([row])[0]["prompt"]
    assert second["prompt"] == "Human: Hi\n\nAssistant: Hello!\n\nHuman: q\n\nAssistant:"


@pytest.mark.parametrize(("row", "expected"), [
    ({"messages": [user("q")], "response": "a"}, [("q", "a")]),
    ({"messages": [user("q")], "completion": [assistant("a")]}, [("q", "a")]),
    ({"messages": sharegpt("q0", "a0", "q"), "response": "a"}, [("q0", "a0"), (TALK, "a")]),
    ({"messages": sharegpt("q0", "a0", "q", "a"), "answer": "42"}, [("q0", "a0"), (TALK, "a")]),
    ({"prompt": "q0", "messages": sharegpt("q0", "a0", "q", "a")}, [("q0", "a0"), (TALK, "a")]),
    ({"prompt": [user("q0")], "completion": sharegpt("", "a0", "q", "a")[1:]},
     [("q0", "a0"), (TALK, "a")]),
    ({"history": [["q0", "a0"]], "prompt": "q", "response": "a"}, [(TALK, "a")]),
    ({"conversation": [{"input": "q0", "output": "a0"}, {"input": "q", "output": "a"}]},
     [("q0", "a0"), (TALK, "a")]),
    ({"conversations": ["q0", "a0", "q", "a"]}, [("q0", "a0"), (TALK, "a")]),
    ({"conversations": [["q0", "a0"], ["q", "a"]]}, [("q0", "a0"), (TALK, "a")]),
    ({"messages": transcript("q0", "a0", "q", "a")}, [("q0", "a0"), (TALK, "a")]),
    ({"messages": [assistant("Welcome!"), user("q"), assistant("a")]},
     [("Assistant: Welcome!\n\nHuman: q\n\nAssistant:", "a")]),
    ({"messages": [user("q"), assistant("one"), assistant("two")]},
     [("q", "one"), ("Human: q\n\nAssistant: one\n\nAssistant:", "two")]),
    ({"messages": [user("q"), {"role": "assistant", "content": None, "tool_calls": [{}]},
                   said("tool", "sun"), assistant("a")]},
     [("Human: q\n\nTool: sun\n\nAssistant:", "a")]),
    ({"system": "s", "messages": [said("system", ""), user("q"), assistant("a")]},
     [("System: s\n\nHuman: q\n\nAssistant:", "a")])])
def test_each_turn_of_an_assistant_is_a_demonstration(row, expected):
    assert check_sft([row]) == [demonstration(*texts) for texts in expected]


@pytest.mark.parametrize("column", SPELLINGS["label"])
@pytest.mark.parametrize("bad", [False, 0, 0.0, -1, " FALSE ", *BAD_LABELS,
                                 np.bool_(False), np.int64(0), np.float64(0)])
def test_a_row_that_is_labelled_bad_is_never_imitated(save, capsys, column, bad):
    rows = [{"prompt": "q", "completion": "b", column: bad}, {"messages": sharegpt("q", "a"),
                                                               column: bad}]
    for row in rows:
        with pytest.raises(DataError, match="row 0: labelled bad"):
            check_sft([row])
    if not isinstance(bad, np.generic):
        good = {"prompt": "q", "completion": "a", column: True}
        assert load_sft(save([*rows * 30, good])) == [demonstration("q", "a")]
        assert "left out 60 of 61 rows: labelled bad: 60 (line 1," in capsys.readouterr().out


@pytest.mark.parametrize("good", [True, 1, 1.0, "true", "1", None, "", 5, "good", [0]])
def test_any_other_label_is_good(good):
    assert check_sft([{"prompt": "q", "completion": "a", "label": good}]) == [
        demonstration("q", "a")]


def test_a_label_beside_a_pair_says_nothing_about_the_pair():
    assert check_preferences([{"prompt": "q", **REPLIES, "label": 0}]) == [pair("q", "a", "b")]


@pytest.mark.parametrize("row", [
    {"text": "Once."}, {"Text": "Once.", "id": 3}, {"prompt": "", "response": "Once."},
    {"prompt": " ", "completion": "Once."}])
def test_text_alone_is_plain_text(row):
    assert check_sft([row]) == [demonstration("", "Once.")]


@pytest.mark.parametrize("nothing", [None, "", " ", 3])
def test_plain_text_that_is_none_is_named(nothing):
    with pytest.raises(DataError, match="row 1: "):
        check_sft([{"text": "Once."}, {"text": nothing}])


# --- unpaired -------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", SPELLINGS["label"])
@pytest.mark.parametrize(("value", "label"), [
    *((value, True) for value in (True, 1, 1.0, "True", " TRUE ", "Yes", np.bool_(True),
                                  np.int64(1), np.float64(1), *GOOD_LABELS)),
    *((value, False) for value in (False, 0, 0.0, -1, -1.0, "False", " FALSE ", "No",
                                   np.bool_(False), np.int64(0), np.float64(0), *BAD_LABELS))])
def test_every_form_of_a_label_is_accepted(column, value, label):
    assert check_unpaired([{"prompt": "q", "completion": "a", column: value}]) == [
        unpaired("q", "a", label)]


@pytest.mark.parametrize("spelling", SPELLINGS["response"])
def test_every_spelling_of_a_labelled_response_is_accepted(spelling):
    assert check_unpaired([{"question": "q", spelling: "a", "kto_tag": True}]) == [
        unpaired("q", "a", True)]


@pytest.mark.parametrize("value", [None, "", " ", 0.5, 2, "maybe", "truee", [True], {"a": 1},
                                   float("nan"), "\ud83d"])
def test_what_is_no_label_is_named_with_what_is_accepted(save, capsys, value):
    good = unpaired("q", "a", True)
    with pytest.raises(DataError) as error:
        check_unpaired([good, {**good, "label": value}])
    assert str(error.value) == (
        f"row 1: column 'label' is {value!r}, neither good (true, 1, 1.0, +1, yes, good, up) nor "
        "bad (false, 0, 0.0, -1, -1.0, no, bad, down)")
    if value == 0.5:
        rows = [{**good, "label": 0.01 * n} for n in range(2, 6)]
        path = save([good, *rows])
        assert load_unpaired(path) == [good]
        assert "rows: column 'label' is neither good (true, " in capsys.readouterr().out
        with pytest.raises(DataError, match=r"rows\.jsonl, line 2: column 'label' is 0\.02, nei"):
            load_unpaired(path, strict=True)


@pytest.mark.parametrize(("row", "reason"), [
    ({"prompt": "q", "completion": "a"},
     r"no column for the label \(accepted: label, kto_tag\); the columns found are prompt, comp"),
    ({"prompt": "q", "label": 1}, "no column for the response"),
    ({"completion": "a", "label": 1}, "no column for the prompt"),
    ({"text": "a", "label": 1}, "no column for the response"),
    ({"prompt": "", "completion": "a", "label": 1}, "column 'prompt' is empty"),
    ({"prompt": "q", "completion": " ", "label": 1}, "column 'completion' is empty"),
    ({"prompt": "q", "completion": 3, "label": 1}, "column 'completion' is int, not text"),
    ({"prompt": "q", "completion": "\ud83d", "label": 1}, "column 'completion' contains a lone"),
    ({"messages": [user("\ud83d"), assistant("a")], "label": 1}, "column 'prompt' contains a lone"),
    ({"messages": [user("q")], "label": 1}, "the conversation has no message of an assistant"),
    ({"messages": [user("q"), said("wizard", "a")], "label": 1}, "column 'messages': message 1 "),
    ({"prompt": "q", "chosen": "a", "rejected": ""}, "column 'rejected' is empty"),
    ({"prompt": "q", "chosen": "a"}, "no column for the rejected"),
    ({"prompt": "q", "chosen": "", "rejected": "b"}, "column 'chosen' is empty"),
    ({"prompt": "q", "chosen": "a", "rejected": "", "label": 1}, "no column for the response"),
    ({"prompt": "q", "chosen": "a", "rejected": "a"}, r"chosen and rejected are identical \('a'\)"),
    (3, "expected an object")])
def test_an_unpaired_row_that_cannot_be_used_is_named(row, reason):
    with pytest.raises(DataError, match=f"row 1: {reason}"):
        check_unpaired([unpaired("q", "a", True), row])


@pytest.mark.parametrize(("row", "prompt", "completion"), [
    ({"messages": [user("q"), assistant("a")]}, "q", "a"),
    ({"messages": sharegpt("q0", "a0", "q", "a")}, TALK, "a"),
    ({"messages": sharegpt("q0", "a0", "q", "a", "Thanks")}, TALK, "a"),
    ({"conversations": [["q0", "a0"], ["q", "a"]]}, TALK, "a"),
    ({"messages": transcript("q0", "a0", "q", "a")}, TALK, "a"),
    ({"messages": sharegpt("q0", "a0", "q"), "response": "a"}, TALK, "a"),
    ({"prompt": sharegpt("q0", "a0", "q"), "completion": [assistant("a")]}, TALK, "a"),
    ({"prompt": [user("q0")], "completion": sharegpt("", "a0", "q", "a")[1:]}, TALK, "a"),
    ({"prompt": [user("q")], "completion": "a"}, "q", "a"),
    ({"history": [["q0", "a0"]], "prompt": "q", "response": "a"}, TALK, "a"),
    ({"instruction": "Add.", "input": "2+2", "output": "4"}, "Add.\n\n2+2", "4"),
    ({"system": "s", "prompt": "q", "completion": "a"},
     "System: s\n\nHuman: q\n\nAssistant:", "a")])
@pytest.mark.parametrize("label", [True, False])
def test_a_label_is_about_the_last_answer_and_what_was_said_before_is_the_prompt(
        row, prompt, completion, label):
    assert check_unpaired([{**row, "label": label}]) == [unpaired(prompt, completion, label)]


@pytest.mark.parametrize("more", [{}, {"label": 0}, {"label": "maybe"}, {"completion": "c"},
                                  {"completion": None, "label": None}])
@pytest.mark.parametrize("layout", PREFERENCES)
def test_a_pair_is_taken_apart_whatever_label_stands_beside_it(layout, more):
    row, prompt, chosen, rejected = PREFERENCES[layout]
    assert check_unpaired([{**row, **more}]) == [unpaired(prompt, chosen, True),
                                                 unpaired(prompt, rejected, False)]


def test_unpaired_rows_of_a_file_are_counted_and_those_labelled_bad_are_kept(save, capsys):
    bad, good, two = unpaired("q", "a", False), unpaired("r", "b", True), pair("s", "c", "d")
    path = save([bad, good, two, {**bad, "label": None}, pair("t", "e", "e")])
    expected = [bad, good, unpaired("s", "c", True), unpaired("s", "d", False)]
    assert load_unpaired(path) == expected
    read, unusable, same = capsys.readouterr().out.splitlines()
    assert read == (f"{path}: 4 records of prompt, completion, label from 3 rows, found as columns")
    assert unusable.endswith("left out 1 of 5 rows: column 'label' is neither good (true, 1, 1.0, "
                             "+1, yes, good, up) nor bad (false, 0, 0.0, -1, -1.0, no, bad, down): "
                             "1 (line 4)")
    assert same.endswith("left out 1 of 5 rows: chosen and rejected are identical: 1 (line 5)")
    assert load_unpaired(save([bad] * 30), strict=True) == [bad] * 30
    with pytest.raises(DataError, match="no rows that can be used"):
        load_unpaired(save([pair("t", "e", "e")]), strict=True)


def test_labels_in_csv_are_text(tmp_path):
    (tmp_path / "rows.csv").write_text(
        "Prompt,Completion,Label\nq,a,TRUE\nr,b,False\ns,c,1\nt,d,0.0\nu,e,\nv,f,Up\n")
    assert load_unpaired(tmp_path / "rows.csv") == [
        unpaired("q", "a", True), unpaired("r", "b", False), unpaired("s", "c", True),
        unpaired("t", "d", False), unpaired("v", "f", True)]


def test_unpaired_rows_may_be_columns_and_are_read_again_as_they_are():
    rows = [unpaired("q", "a", True), unpaired("r", "b", False)]
    assert check_unpaired({name: [row[name] for row in rows] for name in rows[0]}) == rows
    assert check_unpaired(check_unpaired(rows)) == rows
    with pytest.raises(DataError, match="no rows"):
        check_unpaired([])


# --- prompts alone --------------------------------------------------------------------------------


@pytest.mark.parametrize(("row", "prompt"), [
    ({"prompt": "q"}, "q"), ({"query": "q"}, "q"), ({"prompt": [user("q")]}, "q"),
    ({"messages": [user("q")]}, "q"), ({"messages": sharegpt("q0", "a0", "q", "a")}, TALK),
    ({"system": "s", "question": "q"}, "System: s\n\nHuman: q\n\nAssistant:"),
    ({"instruction": "q", "input": "i"}, "q\n\ni"), ({"prompt": "q", "response": "a"}, "q"),
    ({"prompt": "q", "chosen": None, "rejected": None}, "q"), ({"prompt": "q", **REPLIES}, "q"),
    (TRANSCRIPTS, "Human: q\n\nAssistant:"), (WHOLE, "q")])
def test_prompts_are_read_whatever_stands_beside_them(save, row, prompt):
    assert load_prompts(save([row])) == [prompt]


@pytest.mark.parametrize("row", [{}, {"prompt": ""}, {"text": "a"}, {"messages": [assistant("a")]},
                                 {"prompt": [user("\ud83d")]}, {"prompt": 3}])
def test_rows_without_a_prompt_are_left_out(tmp_path, capsys, row):
    (tmp_path / "rows.json").write_text(json.dumps([row, {"prompt": "q"}]))
    assert load_prompts(tmp_path / "rows.json") == ["q"]
    assert "left out 1 of 2 rows" in capsys.readouterr().out


# --- pairs of identical responses in a file -------------------------------------------------------


def test_identical_pairs_of_a_file_are_left_out_and_counted_with_their_lines(tmp_path, capsys):
    good, same = pair("q", "a", "b"), pair("q", "same", "same")
    first_lines = "\n".join(map(json.dumps, [good, same, good]))
    (tmp_path / "rows.jsonl").write_text(f"{first_lines}\n\n{json.dumps(same)}\n")
    assert load_preferences(tmp_path / "rows.jsonl") == [good, good]
    read, left_out = capsys.readouterr().out.splitlines()
    assert read.endswith("rows.jsonl: 2 records of prompt, chosen, rejected from 4 rows, found as "
                         "columns")
    assert "rows.jsonl: left out 2 of 4 rows" in left_out and "identical" in left_out
    assert left_out.endswith("line 2, line 5)")


def test_only_the_first_identical_pairs_of_many_are_named(save, capsys):
    load_preferences(save([pair("q", "a", "b"), *[pair("q", "a", "a")] * 50]))
    out = capsys.readouterr().out
    assert "left out 50 of 51 rows" in out and "line 2, line 3" in out and "line 40" not in out


@pytest.mark.parametrize("same", [
    {"chosen": transcript("q", "a"), "rejected": transcript("q", "a")},
    {"chosen": transcript("q", "a"), "rejected": transcript("q", "a ")},
    {"chosen": sharegpt("q", "a"), "rejected": sharegpt("q", "a")},
    {"prompt": "q", "preferred": "a", "dispreferred": "a"}])
def test_identical_pairs_are_left_out_in_every_layout(save, capsys, same):
    assert load_preferences(save([same, pair("q", "a", "b")])) == [pair("q", "a", "b")]
    out = capsys.readouterr().out
    assert "left out 1 of 2 rows" in out and "line 1)" in out


def test_nothing_is_said_of_identical_pairs_where_there_are_none(save, capsys):
    load_preferences(save([pair("q", "a", "b")]))
    assert "left out" not in capsys.readouterr().out


def test_a_file_of_identical_pairs_alone_has_no_rows(save):
    with pytest.raises(DataError, match=r"rows\.jsonl: .*no rows"):
        load_preferences(save([pair("q", "a", "a")]))


def test_an_identical_pair_still_is_a_demonstration(save, capsys):
    assert load_sft(save([pair("q", "a", "a")])) == [demonstration("q", "a")]
    assert "left out" not in capsys.readouterr().out
