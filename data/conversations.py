"""Conversations -> messages, prompts and replies.

A message is (role, text), a role one of Human, Assistant, System, Tool.  One human message is a
prompt as it is; anything more is written as a transcript that ends where the assistant speaks:

    System: Be brief.\\n\\nHuman: Hi\\n\\nAssistant: Hello!\\n\\nHuman: Bye\\n\\nAssistant:
"""

import ast
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.files import DataError, is_blank, is_list

ROLES = {
    "Human": ("user", "human", "prompter", "customer", "student"),
    "Assistant": ("assistant", "gpt", "bot", "model", "chatgpt", "bard", "bing", "claude", "ai",
                  "chatbot", "agent", "llm", "function_call", "tool_call"),
    "System": ("system", "developer"),
    "Tool": ("tool", "function", "observation", "function_response", "tool_response", "ipython",
             "environment"),
}
_ROLE_OF = {name: role for role, names in ROLES.items() for name in names}
_ROLE_KEYS, _TEXT_KEYS = ("role", "from", "speaker"), ("content", "value", "text")

ASSISTANT = "\n\nAssistant:"
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant|System|Tool):")
_LINE_END = re.compile(r"\r\n?")


MOST_BROKEN_SHARE = 0.1
_NO_COMMA = re.compile(r"""(?<=['"])\}\s+\{(?=['"])""")  # between the messages of a printed array


class BrokenText(list):
    """Stands for a conversation that was saved as text and cannot be parsed."""


class Message(NamedTuple):
    role: str
    text: str


def messages_of(value: Any, where: str) -> list[Message]:
    """A conversation, or one message of it, as messages; empty system messages are left out.

    Messages are {"role", "content"} or {"from", "value"}, turns {"input", "output"}, or all of them
    are pairs of a role and a text.  Content may come in parts of {"type": "text", "text"}.  An
    assistant's call of a tool that says nothing is left out, too.
    Raises DataError naming the message that cannot be read.
    """
    if isinstance(value, BrokenText):
        reason = "a conversation saved as text that is not whole"
        raise DataError(f"{where}: {reason}", reason)
    items = [value] if isinstance(value, Mapping) else list(value)
    if all(_is_pair(item) and item[0].strip().lower() in _ROLE_OF for item in items):
        items = [{"role": role, "content": text} for role, text in items]
    return [message for index, item in enumerate(items)
            for message in _turns(item, f"{where}: message {index}")]


def turns_of(value: Any, where: str) -> list[Message]:
    """As `messages_of`, and texts without roles: pairs of (human, assistant), or one by one."""
    texts = list(value) if is_list(value) else []
    if texts and all(map(_is_pair, texts)) and not all(
            first.strip().lower() in _ROLE_OF for first, _ in texts):
        texts = [text for pair in texts for text in pair]
    if not texts or not all(isinstance(text, str) for text in texts):
        return messages_of(value, where)
    return [_said(("Human", "Assistant")[index % 2], text, f"{where}: message {index}")
            for index, text in enumerate(texts)]


def _is_pair(item: Any) -> bool:
    return is_list(item) and len(item) == 2 and all(isinstance(text, str) for text in item)


def _turns(message: Any, where: str) -> list[Message]:
    if not isinstance(message, Mapping):
        raise DataError(f"{where} is {type(message).__name__}, not a message", "a message that is "
                        f"{type(message).__name__}")
    named = {str(key).strip().lower(): value for key, value in message.items()}
    role_key = next((key for key in _ROLE_KEYS if named.get(key) is not None), None)
    if role_key is None and "output" in named and named.get("input") is not None:
        return [_said("Human", named["input"], where), _said("Assistant", named["output"], where)]
    if role_key is None:
        raise DataError(f"{where} has no role ({' or '.join(_ROLE_KEYS)})",
                        "a message without a role")
    name = named[role_key]
    role = _ROLE_OF.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"{where} has the unknown role {name!r:.40}",
                        f"a message of unknown role {name!r:.40}")
    text = next((named[key] for key in _TEXT_KEYS if named.get(key) is not None), None)
    if is_blank(text) and (role == "System" or named.get("tool_calls")
                           or named.get("function_call")):
        return []
    return [_said(role, text, where)]


def _said(role: str, content: Any, where: str) -> Message:
    """A message with text.  Raises DataError if there is none."""
    if is_list(content):
        content = "".join(_part(part, where) for part in content)
    if content is None:
        raise DataError(f"{where} ({role}) is null", "a turn without text")
    if not isinstance(content, str):
        raise DataError(f"{where} ({role}) is {type(content).__name__}, not text",
                        f"a turn that is {type(content).__name__}, not text")
    if not content.strip():
        raise DataError(f"{where} ({role}) is empty", "a turn without text")
    return Message(role, content)


def _part(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise DataError(f"{where} has a part of type {kind!r}, which is not text",
                        f"a part of type {kind!r}")
    return text


# --- as text --------------------------------------------------------------------------------------


def as_prompt(messages: Sequence[Message]) -> str:
    """One human message as it is; anything else as a transcript that ends with `Assistant:`."""
    if len(messages) == 1 and messages[0].role == "Human":
        return messages[0].text
    return "\n\n".join(f"{role}: {text}" for role, text in messages) + ASSISTANT


def as_reply(messages: Sequence[Message]) -> str:
    """The assistant's text, and what was said after it, if anything."""
    return "\n\n".join([messages[0].text, *(f"{role}: {text}" for role, text in messages[1:])])


def is_transcript(text: str) -> bool:
    """Whether this is a whole dialogue, "Human: ...\\n\\nAssistant: ..."."""
    text = plain_line_ends(text).strip()
    return _TURN.match(text) is not None and ASSISTANT in text


def plain_line_ends(text: str) -> str:
    return _LINE_END.sub("\n", text)


def transcript_messages(text: str, where: str) -> list[Message]:
    """A transcript's turns; the last may be an `Assistant:` that has still to speak.

    What stands before the first turn is a system message.
    """
    preamble, *pieces = _TURN.split(plain_line_ends(text).strip())
    if preamble.strip():
        pieces = ["System", preamble, *pieces]
    roles, texts = pieces[::2], [said.strip() for said in pieces[1::2]]
    turns = list(zip(roles, texts, strict=True))
    if turns and turns[-1] == ("Assistant", ""):
        turns.pop()
    return [_said(role, said, f"{where}: turn {n}") for n, (role, said) in enumerate(turns)]


# --- what is said twice ---------------------------------------------------------------------------


def joined(before: Sequence[Message], messages: Sequence[Message]) -> list[Message]:
    """Context and conversation, without saying twice what the conversation repeats."""
    if not before or not messages:
        return [*before, *messages]
    before = [message for message in before
              if message.role != "System" or not repeats(messages, [message])]
    systems = [message for message in before if message.role == "System"]
    if len(systems) < len(before) and repeats(
            messages, [message for message in before if message.role != "System"]):
        return [*systems, *messages]
    longest = min(len(before), len(messages))
    shared = next(n for n in range(longest, -1, -1) if n == 0
                  or _loose(before[-n:]) == _loose(messages[:n]))
    return [*before[:len(before) - shared], *messages]


def repeats(messages: Sequence[Message], others: Sequence[Message]) -> bool:
    """Whether the others stand in a row among the messages, system messages and space aside."""
    said, sought = _loose(messages), _loose(others)
    if not all(message.role == "System" for message in others):
        said = [message for message in said if message.role != "System"]
        sought = [message for message in sought if message.role != "System"]
    return any(said[n:n + len(sought)] == sought for n in range(len(said) - len(sought) + 1))


def _loose(messages: Sequence[Message]) -> list[Message]:
    return [Message(role, " ".join(text.split())) for role, text in messages]


# --- conversations that were saved as text --------------------------------------------------------


def parsed_columns(rows: Sequence[Any], columns: Mapping[str, bool]) -> list[Any]:
    """The rows, with those columns parsed that hold conversations saved as text, JSON or Python's.

    Only where a whole column is that: a text that merely looks like it stays text.  Up to a tenth
    of its texts may be broken (spreadsheets cut long cells).
    columns: which to look at, and whether any list in it is a conversation, whatever it holds.
    """
    parsed: dict[str, dict[str, Any]] = {}
    for column, any_list in columns.items():
        cells = [row[column] for row in rows if isinstance(row, Mapping) and column in row]
        texts = [cell for cell in cells if not is_blank(cell)]
        if texts and all(isinstance(text, str) and text.lstrip()[:1] in ("[", "{")
                         for text in texts):
            values = {text: _literal(text, any_list) for text in dict.fromkeys(texts)}
            broken = sum(isinstance(value, BrokenText) for value in values.values())
            if broken <= MOST_BROKEN_SHARE * len(values):
                parsed[column] = values
    if not parsed:
        return list(rows)
    return [{**row, **{column: values[row[column]] for column, values in parsed.items()
                       if not is_blank(row.get(column))}} if isinstance(row, Mapping) else row
            for row in rows]


def _literal(text: str, any_list: bool) -> Any:
    """The conversation that was saved as this text, or a BrokenText."""
    for parse in (json.loads, ast.literal_eval, _printed_array):
        try:
            value = parse(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            continue
        messages = [value] if isinstance(value, Mapping) else value
        if isinstance(messages, list) and (any_list or any(map(_is_surely_a_message, messages))):
            return value
    return BrokenText([text])


def _printed_array(text: str) -> Any:
    return ast.literal_eval(_NO_COMMA.sub("}, {", text))


def _is_surely_a_message(value: Any) -> bool:
    """Whether this has a text and a role that we know: an answer may itself be a list in JSON."""
    if not isinstance(value, Mapping):
        return False
    named = {str(key).strip().lower(): inside for key, inside in value.items()}
    roles = [str(named.get(key)).strip().lower() for key in _ROLE_KEYS]
    return any(role in _ROLE_OF for role in roles) and not named.keys().isdisjoint(_TEXT_KEYS)
