"""The layouts in which people keep preferences and demonstrations, read as prompt and replies.

    columns          {"prompt", "chosen", "rejected"}, {"prompt", "response"} or {"prompt",
                     "completion", "label"}, see SPELLINGS
    with input       {"instruction", "input"}, {"question", "context"}: joined by a blank line
    transcripts      whole dialogues as text, "\\n\\nHuman: ...\\n\\nAssistant: ..." (hh-rlhf)
    conversations    lists of messages (data/conversations.py)

What an answer depends on becomes part of the prompt: `system`, `history`, earlier turns, a prompt
column beside conversations.  What the conversation repeats is not said twice.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from data.conversations import (
    ASSISTANT,
    Message,
    as_prompt,
    as_reply,
    is_transcript,
    joined,
    messages_of,
    plain_line_ends,
    repeats,
    transcript_messages,
    turns_of,
)
from data.files import DataError, is_blank, is_list, is_null

SPELLINGS = {
    "prompt": ("prompt", "instruction", "question", "query", "input"),
    "chosen": ("chosen", "preferred", "chosen_response"),
    "rejected": ("rejected", "dispreferred", "rejected_response"),
    "response": ("response", "output", "completion", "answer"),
    "input": ("input", "context"),
    "system": ("system", "system_prompt"),
    "history": ("history",),
    "messages": ("messages", "conversations", "conversation"),
    "label": ("label", "kto_tag"),
    "text": ("text",),
}
GOOD_LABELS = ("true", "1", "1.0", "+1", "yes", "good", "up")
BAD_LABELS = ("false", "0", "0.0", "-1", "-1.0", "no", "bad", "down")

Record = dict[str, Any]  # texts, and the label of an unpaired record, a bool


class Reading(NamedTuple):
    """What one row gave: records, the layout it was in, the columns that were used.

    demonstrations: of a preference, each turn of its chosen response as {"prompt", "response"}.
    group: the first prompt of the row, where no record has it.
    """

    records: list[Record]
    layout: str
    used: set[str]
    demonstrations: Sequence[Record] = ()
    group: str = ""


class Pair(NamedTuple):
    """A preference, and the turns that its prompt and its chosen response consist of."""

    record: Record
    before: list[Message]
    chosen: list[Message]


class LeftOutError(DataError):
    """Nothing is wrong with the row, but nothing can be learned from it here."""


class Row:
    """A row whose columns are asked for by any of their spellings."""

    def __init__(self, columns: Any, where: str):
        if not isinstance(columns, Mapping):
            kind = type(columns).__name__
            raise DataError(f"{where}: expected an object with named columns, found {kind}",
                            f"a row that is {kind}, not an object with named columns")
        self.where, self.layout = where, "columns"
        self.columns: dict[str, Any] = {}
        self.used: set[str] = set()
        for name, value in columns.items():
            key = str(name).strip().lower()
            if key in self.columns:
                raise self.error(f"the column {key!r} occurs twice")
            self.columns[key] = value

    def find(self, column: str) -> tuple[str | None, Any]:
        """(spelling, value): the first spelling that is filled, else the first that is there."""
        present = None
        for name in SPELLINGS[column]:
            if name in self.columns and name not in self.used:
                if not is_blank(self.columns[name]):
                    return name, self.columns[name]
                present = present or name
        return present, None if present is None else self.columns[present]

    def value(self, column: str) -> Any:
        """The value of a column; None if it is not there or blank."""
        value = self.find(column)[1]
        return None if is_blank(value) else value

    def has(self, *columns: str) -> bool:
        """Whether all these columns are filled."""
        return all(self.value(column) is not None for column in columns)

    def take(self, column: str) -> Any:
        """The value of a column, which counts as used; None if it is not there or blank."""
        name, value = self.find(column)
        if name is None:
            return None
        self.used.add(name)
        return None if is_blank(value) else value

    def text(self, column: str) -> str:
        """The text of a column.  Raises DataError if there is none."""
        name, value = self.cell(column)
        return checked_text(value, name, self.where)

    def label(self) -> bool:
        """The label, True for good.  Raises DataError if there is none."""
        name, value = self.cell("label")
        label = label_of(value)
        if label is None:
            accepted = f"good ({', '.join(GOOD_LABELS)}) nor bad ({', '.join(BAD_LABELS)})"
            raise DataError(f"{self.where}: column {name!r} is {value!r:.40}, neither {accepted}",
                            f"column {name!r} is neither {accepted}")
        return label

    def cell(self, column: str) -> tuple[str, Any]:
        """(spelling, value) of a column, which is now used.  Raises DataError if it is missing."""
        name, value = self.find(column)
        if name is None:
            accepted, found = ", ".join(SPELLINGS[column]), ", ".join(self.columns) or "none"
            raise DataError(f"{self.where}: no column for the {column} (accepted: {accepted}); the "
                            f"columns found are {found}", f"no column for the {column} (accepted: "
                            f"{accepted}; found: {found})")
        self.used.add(name)
        return name, value

    def messages(self, column: str) -> list[Message]:
        """The messages of a column, or its text as one.  Raises DataError if it is neither."""
        name, value = self.find(column)
        self.used.add(str(name))
        return _messages_in(value, column, f"{self.where}: column {name!r}")

    def error(self, reason: str) -> DataError:
        return DataError(f"{self.where}: {reason}", reason)


def checked_text(value: Any, name: str, where: str, may_be_empty: bool = False) -> str:
    """The value, if it is text.  Raises DataError if it is null, not text, empty or broken."""
    reason = None
    if is_null(value):
        reason = "is null"
    elif is_blank(value):
        reason = None if may_be_empty else "is empty"
    elif not isinstance(value, str):
        reason = f"is {type(value).__name__}, not text"
    elif not _is_utf8(value):
        reason = "contains a lone surrogate, which is not valid text"
    if reason is not None:
        reason = f"column {name!r} {reason}"
        raise DataError(f"{where}: {reason}", reason)
    return value


def label_of(value: Any) -> bool | None:
    """True for good, False for bad; None if this is no label."""
    word = str(value).strip().lower()
    return True if word in GOOD_LABELS else False if word in BAD_LABELS else None


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _may_be_messages(value: Any) -> bool:
    return isinstance(value, str | Mapping) or is_list(value)


def _messages_in(value: Any, column: str, where: str) -> list[Message]:
    if isinstance(value, str):
        return transcript_messages(value, where) if is_transcript(value) else \
            [Message("Human", value)]
    if not _may_be_messages(value):
        kind = type(value).__name__
        raise DataError(f"{where} is {kind}, neither text nor messages",
                        f"a conversation that is {kind}, neither text nor messages")
    return (turns_of if column in ("messages", "history") else messages_of)(value, where)


# --- preferences ----------------------------------------------------------------------------------


def read_preference(columns: Any, where: str) -> Reading:
    """One row -> one {"prompt", "chosen", "rejected"}.  Raises DataError beginning with `where`."""
    row = Row(columns, where)
    pair = _pair(row)
    return Reading([pair.record], row.layout, row.used, _demonstrated(pair))


def check_differ(record: Record, where: str) -> None:
    """Raises LeftOutError if chosen and rejected are identical: no loss can learn from that."""
    if record["chosen"] == record["rejected"]:
        reason = "chosen and rejected are identical"
        raise LeftOutError(f"{where}: {reason} ({record['chosen'][:40]!r}), so there is nothing to "
                           "prefer: drop the row", reason)


def _pair(row: Row) -> Pair:
    sides = ("chosen", "rejected")
    for side in sides:
        if not row.has(side) or not _may_be_messages(row.value(side)):
            row.text(side)  # which raises
    if all(isinstance(row.value(side), str) for side in sides):
        pair = _from_texts(row, row.text("chosen"), row.text("rejected"))
    else:
        pair = _from_conversations(row)
    return pair._replace(record={name: checked_text(text, name, row.where)
                                 for name, text in pair.record.items()})


def _from_texts(row: Row, chosen: str, rejected: str) -> Pair:
    """Replies as text: with a prompt beside them, or transcripts with the prompt inside."""
    if not _are_dialogues(row, (chosen, rejected)):
        before = before_reply(row, answers=(chosen, rejected))
        record = {"prompt": as_prompt(before), "chosen": chosen, "rejected": rejected}
        return Pair(record, before, [Message("Assistant", chosen)])
    row.layout = "transcripts"
    prompt, chosen, rejected = split_transcripts(chosen, rejected, row.where)
    inside = transcript_messages(prompt, row.where)
    replies = [transcript_messages(f"Assistant: {checked_text(side, name, row.where)}", row.where)
               for name, side in (("chosen", chosen), ("rejected", rejected))]
    before = before_reply(row, inside, [reply[0].text for reply in replies])
    record = {"prompt": prompt if before == inside else as_prompt(before), "chosen": chosen,
              "rejected": rejected}
    return Pair(record, before, replies[0])


def _are_dialogues(row: Row, sides: Sequence[str]) -> bool:
    """Whether the replies are whole dialogues, and not answers to a prompt that asks for some."""
    prompt = row.value("prompt")
    if prompt is None:
        return all(ASSISTANT in plain_line_ends(side) for side in sides)
    if not all(map(is_transcript, sides)):
        return False
    return not isinstance(prompt, str) or is_transcript(prompt) or all(
        repeats(transcript_messages(side, row.where), [Message("Human", prompt)]) for side in sides)


def split_transcripts(chosen: str, rejected: str, where: str) -> tuple[str, str, str]:
    """(prompt, chosen, rejected): the prompt is what both share, up to an Assistant's turn.

    Never a run of letters that the two answers happen to share.
    """
    chosen, rejected = plain_line_ends(chosen), plain_line_ends(rejected)
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((n for n, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    start = chosen[:shared].rfind(ASSISTANT)
    if start < 0:
        reason = ("chosen and rejected are transcripts of different dialogues: they share no text "
                  f"up to an {ASSISTANT.strip()!r} turn")
        raise DataError(f"{where}: {reason}", reason)
    start += len(ASSISTANT)
    return chosen[:start].strip(), chosen[start:].strip(), rejected[start:].strip()


def _from_conversations(row: Row) -> Pair:
    """The prompt is the context, and the messages that both sides begin with."""
    row.layout = "conversations"
    sides = [[Message("Assistant", row.text(side))] if isinstance(row.value(side), str)
             else row.messages(side) for side in ("chosen", "rejected")]
    shared = 0
    while shared < min(map(len, sides)) - 1 and sides[0][shared] == sides[1][shared]:
        shared += 1  # the last message is a reply, even where the two are identical
    if any(not side or side[shared].role != "Assistant" for side in sides):
        raise row.error("chosen and rejected are conversations that do not part at a reply of the "
                        "assistant")
    before = before_reply(row, sides[0][:shared], [side[shared].text for side in sides])
    replies = [side[shared:] for side in sides]
    return Pair({"prompt": as_prompt(before), "chosen": as_reply(replies[0]),
                 "rejected": as_reply(replies[1])}, before, replies[0])


# --- what stands before the reply -----------------------------------------------------------------


def before_reply(row: Row, inside: Sequence[Message] = (), answers: Sequence[str] = (),
                 prompt_needed: bool = True) -> list[Message]:
    """System, history and prompt columns, and the messages inside the conversation, if any.

    A conversation that brings its own question needs no prompt, and a `messages` column beside it
    is a copy.
    answers: what must not leak into the prompt from a column that holds them, too.
    """
    context: list[Message] = []
    if row.has("system"):
        context += [Message("System", row.text("system"))]
    if row.has("history"):
        context += row.messages("history")
    has_question = any(message.role == "Human" for message in inside)
    asked = _asked(row, has_question, prompt_needed)
    asked = _with_input(row, asked, has_question)
    if (context or inside) and len(asked) == 1 and is_transcript(asked[0].text):
        asked = transcript_messages(asked[0].text, row.where)
    return joined(joined(context, _without_answer(asked, answers, inside)), inside)


def _asked(row: Row, has_question: bool, prompt_needed: bool) -> list[Message]:
    """The prompt column, or the messages that stand for it."""
    if row.has("prompt"):
        value = row.value("prompt")
        if is_list(value) or isinstance(value, Mapping):
            return row.messages("prompt")
        return [Message("Human", row.text("prompt"))]
    if not has_question and row.has("messages"):
        return row.messages("messages")
    if not has_question and prompt_needed:
        row.text("prompt")  # which raises
    return []


def _with_input(row: Row, asked: list[Message], has_question: bool) -> list[Message]:
    """The prompt with `input` and `context` behind a blank line; beside a conversation, those."""
    while (asked or has_question) and row.has("input"):
        text = row.text("input")
        if not asked:
            asked = [Message("Human", text)]
            continue
        if is_transcript(asked[-1].text):
            asked = [*asked[:-1], *transcript_messages(asked[-1].text, row.where)]
        last = max(n for n, message in enumerate(asked) if n == 0 or message.role == "Human")
        if text != asked[last].text:
            row.layout = "columns with input" if row.layout == "columns" else row.layout
            more = asked[last]._replace(text=f"{asked[last].text}\n\n{text}")
            asked = [*asked[:last], more, *asked[last + 1:]]
    return asked


def _without_answer(asked: Sequence[Message], answers: Sequence[str],
                    inside: Sequence[Message]) -> Sequence[Message]:
    """A conversation up to the answer, if it holds one of these behind what stands inside."""
    replies = [Message("Assistant", answer) for answer in answers]
    for n, message in enumerate(asked):
        if message.role == "Assistant" and repeats(replies, [message]):
            before = asked[:n]
            if repeats(before, inside) or repeats(inside, before) if inside else \
                    n == len(asked) - 1:
                return before
    return asked


# --- demonstrations -------------------------------------------------------------------------------


def read_demonstrations(columns: Any, where: str) -> Reading:
    """One row -> {"prompt", "response"} for each turn of an assistant in it.

    A preference demonstrates its chosen response; an empty prompt means plain text.
    Raises DataError beginning with `where`, LeftOutError if the row is labelled bad.
    """
    row = Row(columns, where)
    if label_of(row.take("label")) is False:
        raise LeftOutError(f"{where}: labelled bad", "labelled bad")
    if row.has("chosen") and not row.has("response"):
        records = _demonstrated(_pair(row))
    elif _is_conversation(row):
        records = _from_messages(row)
    elif row.has("text") and row.find("response")[0] is None and row.find("prompt")[0] is None:
        row.layout = "plain text"
        records = [{"prompt": "", "response": row.text("text")}]
    else:
        records = _from_columns(row)
    return Reading([{"prompt": checked_text(record["prompt"], "prompt", where, may_be_empty=True),
                     "response": checked_text(record["response"], "response", where)}
                    for record in records], row.layout, row.used)


def _demonstrated(pair: Pair) -> list[Record]:
    """Each turn of the chosen response."""
    first, *more = pair.chosen
    return [{"prompt": pair.record["prompt"], "response": first.text},
            *(_every_turn(pair.before, [first, *more])[1:] if more else [])]


def _is_conversation(row: Row) -> bool:
    return row.has("messages") and not row.has("response", "prompt")


def _from_messages(row: Row) -> list[Record]:
    """A conversation; a response beside it answers its last message, if that is a human's."""
    inside = row.messages("messages")
    if row.has("response") and inside and inside[-1].role != "Assistant":
        inside += _replies(row)
    row.layout = "conversations"
    messages = before_reply(row, inside, prompt_needed=False)
    return _checked_turns(row, messages[:len(messages) - len(inside)], inside)


def _from_columns(row: Row) -> list[Record]:
    if row.has("response") and not isinstance(row.value("response"), str):
        replies = _replies(row)
        before = before_reply(row, answers=[message.text for message in replies])
        row.layout = "conversations"
        return _checked_turns(row, before, replies)
    response = row.text("response")
    prompt = row.find("prompt")[1]
    is_plain = isinstance(prompt, str) and is_blank(prompt)
    if is_plain:
        row.take("prompt")
    before = before_reply(row, answers=[response], prompt_needed=not is_plain)
    return [{"prompt": as_prompt(before) if before else "", "response": response}]


def _replies(row: Row) -> list[Message]:
    value = row.value("response")
    if is_list(value) or isinstance(value, Mapping):
        return row.messages("response")
    return [Message("Assistant", row.text("response"))]


def _checked_turns(row: Row, before: Sequence[Message], inside: Sequence[Message]) -> list[Record]:
    records = _every_turn(before, inside)
    if not records:
        raise row.error("the conversation has no message of an assistant that answers another")
    return records


def _every_turn(before: Sequence[Message], inside: Sequence[Message]) -> list[Record]:
    """A demonstration for each turn of the assistant inside, behind all that was said before."""
    messages = [*before, *inside]
    return [{"prompt": as_prompt(messages[:n]), "response": message.text}
            for n, message in enumerate(messages) if n >= len(before)
            and message.role == "Assistant"
            and any(earlier.role in ("Human", "Tool") for earlier in messages[:n])]


# --- unpaired -------------------------------------------------------------------------------------


def read_unpaired(columns: Any, where: str) -> Reading:
    """One row -> one {"prompt", "completion", "label"}, of a preference one for each response.

    The label is True for good; of a conversation it is about the last turn of the assistant.
    Raises DataError beginning with `where`, LeftOutError if both responses are identical.
    """
    row = Row(columns, where)
    if row.has("chosen", "rejected") or (row.find("label")[0] is None and row.find("chosen")[0]):
        pair = _pair(row)
        check_differ(pair.record, where)
        records = [{"prompt": pair.record["prompt"], "completion": pair.record[side],
                    "label": side == "chosen"} for side in ("chosen", "rejected")]
        return Reading(records, row.layout, row.used)
    label = row.label()
    turns = _from_messages(row) if _is_conversation(row) else _from_columns(row)
    prompt = checked_text(turns[-1]["prompt"], "prompt", where)
    completion = checked_text(turns[-1]["response"], "completion", where)
    return Reading([{"prompt": prompt, "completion": completion, "label": label}], row.layout,
                   row.used, group=turns[0]["prompt"])


# --- prompts --------------------------------------------------------------------------------------


def read_prompt(columns: Any, where: str) -> Reading:
    """One row -> {"prompt"}: of a file for PPO, which brings its own answers."""
    row = Row(columns, where)
    if row.has("chosen", "rejected"):
        prompt, row.layout = _pair(row).record["prompt"], "preferences"
    else:
        before = before_reply(row)
        while before and before[-1].role == "Assistant":
            before = before[:-1]  # PPO answers this itself
        if not before:
            raise row.error("no prompt")
        prompt, row.layout = as_prompt(before), "prompts"
    return Reading([{"prompt": checked_text(prompt, "prompt", where)}], row.layout, row.used)


def is_preference(columns: Any) -> bool:
    """Whether this row brings two responses."""
    try:
        return Row(columns, "").has("chosen", "rejected")
    except DataError:
        return False
