import json

import numpy as np
import pytest

from data import DataError
from data.conversations import (
    ROLES,
    Message,
    as_prompt,
    as_reply,
    is_transcript,
    joined,
    messages_of,
    parsed_columns,
    repeats,
    transcript_messages,
    turns_of,
)

SYSTEM, TOOL = Message("System", "s"), Message("Tool", "t")
Q0, A0, Q1, A1 = (Message(("Human", "Assistant")[n % 2], text)
                  for n, text in enumerate(["q0", "a0", "q1", "a1"]))
TALK = [SYSTEM, Q0, A0, Q1]
TEXT = "System: s\n\nHuman: q0\n\nAssistant: a0\n\nHuman: q1\n\nAssistant:"


def plain(messages, role="role", text="content"):
    return [{role: message.role, text: message.text} for message in messages]


# --- messages -------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["role", "from", "speaker", "Role", " FROM "])
@pytest.mark.parametrize("text", ["content", "value", "text", "Content"])
@pytest.mark.parametrize("make", [list, tuple, np.array])
def test_messages_are_read_under_every_name_of_role_and_text(role, text, make):
    names = {"Human": "user"}
    messages = [{role: names.get(message.role, message.role), text: message.text}
                for message in TALK]
    assert messages_of(make(messages), "here") == TALK


def test_no_name_of_a_role_means_two_roles():
    names = [name for names in ROLES.values() for name in names]
    assert len(names) == len(set(names)) and all(name == name.lower() for name in names)


@pytest.mark.parametrize(("name", "role"), [
    ("user", "Human"), ("human", "Human"), ("prompter", "Human"), ("assistant", "Assistant"),
    ("gpt", "Assistant"), ("bot", "Assistant"), ("model", "Assistant"), ("system", "System"),
    ("developer", "System"), ("tool", "Tool"), ("function", "Tool"), ("observation", "Tool")])
def test_the_common_names_of_roles_are_known(name, role):
    for written in (name, name.upper(), f" {name.title()} "):
        assert messages_of([{"role": written, "content": "x"}], "here") == [Message(role, "x")]


def test_one_message_is_a_conversation_of_one():
    assert messages_of({"from": "gpt", "value": "a0"}, "here") == [A0]


@pytest.mark.parametrize(("content", "text"), [
    ([{"type": "text", "text": "q"}, {"type": "text", "text": "0"}], "q0"),
    ([{"text": "q0"}], "q0"), (["q", "0"], "q0"), (np.array([{"text": "q0"}]), "q0")])
def test_content_may_come_in_parts_of_text(content, text):
    assert messages_of([{"role": "user", "content": content}], "here") == [Message("Human", text)]


@pytest.mark.parametrize("kind", ["image", "image_url", "input_audio", "refusal", None])
def test_another_part_is_named_with_its_kind(kind):
    content = [{"type": "text", "text": "q"}, {"type": kind, "text": "x"}]
    with pytest.raises(DataError, match=f"here: message 0 has a part of type {kind!r}") as error:
        messages_of([{"role": "user", "content": content}], "here")
    assert error.value.reason == f"a part of type {kind!r}"


@pytest.mark.parametrize("call", [{"tool_calls": [{"id": 1}]}, {"function_call": {"name": "f"}}])
@pytest.mark.parametrize("nothing", [{}, {"content": None}, {"content": ""}, {"content": []}])
def test_a_call_of_a_tool_that_says_nothing_is_left_out(call, nothing):
    messages = [*plain([Q0]), {"role": "assistant", **nothing, **call}, *plain([TOOL, A0])]
    assert messages_of(messages, "here") == [Q0, TOOL, A0]
    spoken = {"role": "assistant", "content": "I look.", **call}
    assert messages_of([spoken], "here") == [Message("Assistant", "I look.")]


@pytest.mark.parametrize("nothing", [None, "", " \n", []])
@pytest.mark.parametrize("calls", [{}, {"tool_calls": None}, {"tool_calls": []}])
def test_any_other_turn_without_text_is_named(nothing, calls):
    with pytest.raises(DataError, match="here: message 1 ") as error:
        messages_of([*plain([Q0]), {"role": "assistant", "content": nothing, **calls}], "here")
    assert error.value.reason == "a turn without text"
    assert messages_of([{"role": "system", "content": nothing}], "here") == []


def test_pairs_of_a_role_and_a_text_are_messages():
    assert messages_of([("system", "s"), ["human", "q0"], ("AI", "a0")], "here") == [SYSTEM, Q0, A0]
    with pytest.raises(DataError, match="here: message 0 is list, not a message"):
        messages_of([["Hi", "Hello"]], "here")


@pytest.mark.parametrize("value", [
    [["q0", "a0"], ["q1", "a1"]], [("q0", "a0"), ("q1", "a1")], ["q0", "a0", "q1", "a1"],
    np.array([["q0", "a0"], ["q1", "a1"]]), np.array(["q0", "a0", "q1", "a1"]),
    [{"input": "q0", "output": "a0"}, {"input": "q1", "output": "a1"}],
    [["user", "q0"], ["assistant", "a0"], ["user", "q1"], ["assistant", "a1"]]])
def test_turns_may_be_pairs_or_texts_that_alternate(value):
    assert turns_of(value, "here") == [Q0, A0, Q1, A1]


@pytest.mark.parametrize("value", [["q0", ""], [["q0", ""]], [{"input": "q0", "output": None}],
                                   [["q0", None]], ["q0", None], [["q0", "a0", "q1"]], [[]]])
def test_a_turn_that_cannot_be_read_is_named(value):
    with pytest.raises(DataError, match=r"here: message \d"):
        turns_of(value, "here")


# --- as text --------------------------------------------------------------------------------------


def test_one_human_message_is_a_prompt_and_anything_more_is_a_transcript():
    assert as_prompt([Q0]) == "q0"
    assert as_prompt(TALK) == TEXT
    assert as_prompt([SYSTEM]) == "System: s\n\nAssistant:"
    assert as_reply([A0]) == "a0"
    assert as_reply([A0, Q1, A1]) == "a0\n\nHuman: q1\n\nAssistant: a1"


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_transcript_is_read_back(end):
    text = TEXT.replace("\n", end)
    assert is_transcript(text) and is_transcript(f"{end}{end}{text} a1{end}")
    assert transcript_messages(text, "here") == TALK
    assert transcript_messages(f"{text} a1{end}", "here") == [*TALK, A1]


@pytest.mark.parametrize("text", ["", "q", "Human: q", "\n\nAssistant:", "\n\nAssistant: a",
                                  "A talk.\n\nHuman: q\n\nAssistant: a",
                                  "Human: q\nAssistant: a", "Humans: q\n\nAssistant: a"])
def test_other_text_is_no_transcript(text):
    assert not is_transcript(text)


# --- what is said twice ---------------------------------------------------------------------------


@pytest.mark.parametrize(("before", "messages", "expected"), [
    ([], TALK, TALK), (TALK, [], TALK), ([Q0], [Q0], [Q0]), ([SYSTEM], [Q0], [SYSTEM, Q0]),
    ([SYSTEM], TALK, TALK), ([Q0], TALK, TALK), ([Q1], TALK, TALK), ([A0], TALK, TALK),
    ([Q0, A0], TALK, TALK), ([SYSTEM, Q0], [Q0, A0, Q1], TALK), (TALK, [Q1], TALK),
    ([SYSTEM, Q0, A0], [Q1], TALK), (TALK, TALK, TALK), ([SYSTEM, Q0, A0], [A0, Q1], TALK),
    ([Message("Human", " Q0 ".lower())], [Q0], [Q0]),
    ([Message("Assistant", "q0")], [Q0], [Message("Assistant", "q0"), Q0]),
    ([TOOL], [Q0], [TOOL, Q0])])
def test_context_is_joined_to_a_conversation_without_what_it_repeats(before, messages, expected):
    assert joined(before, messages) == expected


def test_what_is_repeated_stands_in_a_row():
    assert repeats(TALK, [Q0, A0]) and repeats(TALK, [Q0, SYSTEM, A0]) and repeats(TALK, [SYSTEM])
    assert not repeats(TALK, [Q0, Q1]) and not repeats(TALK, [A1]) and not repeats([], [Q0])


# --- conversations that were saved as text --------------------------------------------------------

SAVED = json.dumps(plain([Q0, A0]))


def test_rows_are_not_changed_and_only_whole_columns_are_parsed():
    rows = [{"chosen": SAVED, "rejected": SAVED}, {"chosen": SAVED, "rejected": "No."}, None, {}]
    before = json.dumps(rows)
    first, second, *rest = parsed_columns(rows, {"chosen": False, "rejected": False})
    assert first == {"chosen": plain([Q0, A0]), "rejected": SAVED}
    assert second == {"chosen": plain([Q0, A0]), "rejected": "No."}
    assert rest == [None, {}] and json.dumps(rows) == before


@pytest.mark.parametrize("nothing", [None, "", " ", float("nan")])
def test_empty_cells_beside_conversations_stay_empty(nothing):
    parsed = parsed_columns([{"a": SAVED}, {"a": nothing}, {"b": "x"}], {"a": False})
    assert parsed[0] == {"a": plain([Q0, A0])} and parsed[1]["a"] is nothing


@pytest.mark.parametrize(("broken", "is_parsed"), [(1, True), (2, True), (3, False)])
def test_a_tenth_of_a_column_may_be_broken(broken, is_parsed):
    rows = [{"a": json.dumps(plain([Q0, Message("Assistant", str(n))]))} for n in range(20)]
    for row in rows[:broken]:
        row["a"] = row["a"][:-3]
    parsed = parsed_columns(rows, {"a": False})
    assert isinstance(parsed[-1]["a"], list) == is_parsed
    if is_parsed:
        with pytest.raises(DataError, match="here: a conversation saved as text that is not whole"):
            messages_of(parsed[0]["a"], "here")


@pytest.mark.parametrize("text", ["[" * 100_000, "[" + "1" * 5000 + "]", "{" * 3000, "[()", "[\0]"])
def test_any_text_with_a_bracket_is_survived(text):
    assert parsed_columns([{"a": text}], {"a": True}) == [{"a": text}]
