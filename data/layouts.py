"""Common layouts of preference and demonstration rows, converted to prompt and responses.

    columns          {"prompt", "chosen", "rejected"} or {"prompt", "response"}, in any of SPELLINGS
    with input       {"instruction", "input", ...}: the input goes below the instruction (Alpaca)
    transcripts      chosen and rejected are whole dialogues (hh-rlhf):
                     "\\n\\nHuman: ...\\n\\nAssistant: ..."
    conversations    lists of {"role", "content"} or of {"from", "value"} (ShareGPT)
"""

from collections.abc import Mapping, Sequence
from typing import Any

from data.files import DataError

SPELLINGS = {
    "prompt": ("prompt", "instruction", "question"),
    "chosen": ("chosen", "preferred"),
    "rejected": ("rejected", "dispreferred"),
    "response": ("response", "output", "completion", "answer"),
}
CONVERSATION_COLUMNS = ("messages", "conversations", "conversation")
ASSISTANT = "\n\nAssistant:"
ROLES = {"user": "Human", "human": "Human", "assistant": "Assistant", "gpt": "Assistant",
         "system": "System"}

Message = tuple[str, str]  # role (Human, Assistant or System), text


def spelled(row: Mapping, column: str) -> str | None:
    """The spelling of this column that the row uses, or None."""
    for spelling in SPELLINGS[column]:  # faster than next(...): called for every row of a file
        if spelling in row:
            return spelling
    return None


def preference_columns(row: Mapping, where: str) -> tuple[Mapping, str]:
    """-> (the row with a prompt, a chosen and a rejected column, the layout it was in).

    Raises DataError, beginning with `where`, if a dialogue cannot be split into prompt and reply.
    Columns that are missing or hold no text are left for the caller to report.
    """
    chosen, rejected = (row.get(spelled(row, column)) for column in ("chosen", "rejected"))
    if isinstance(chosen, list) and isinstance(rejected, list):
        return _two_conversations(row, chosen, rejected, where), "conversations"
    if spelled(row, "prompt") is None and isinstance(chosen, str) and isinstance(rejected, str):
        if ASSISTANT in chosen and ASSISTANT in rejected:
            return _two_transcripts(chosen, rejected, where), "transcripts"
        return row, "columns"
    return _with_input(row)


def demonstration_columns(row: Mapping, where: str) -> tuple[Mapping, str]:
    """-> (the row with a prompt and a response column, the layout it was in).

    The response of a preference is the chosen one, of a conversation the assistant's last message.
    Raises DataError as `preference_columns` does.
    """
    column = next((c for c in CONVERSATION_COLUMNS if isinstance(row.get(c), list)), None)
    if column is not None:
        messages = _messages(row[column], f"{where}: column {column!r}")
        return _conversation(messages, where), "conversations"
    if spelled(row, "response") is None and spelled(row, "chosen") is not None:
        preference, layout = preference_columns(row, where)
        return {**preference, "response": preference[spelled(preference, "chosen")]}, layout
    prompt, response = (row.get(spelled(row, column)) for column in ("prompt", "response"))
    if isinstance(prompt, list) and isinstance(response, list):
        messages = [message for name, side in (("prompt", prompt), ("response", response))
                    for message in _messages(side, f"{where}: column {spelled(row, name)!r}")]
        return _conversation(messages, where), "conversations"
    return _with_input(row)


def _with_input(row: Mapping) -> tuple[Mapping, str]:
    """Append the input, if there is one, to the instruction, after a blank line."""
    column, more = spelled(row, "prompt"), row.get("input")
    if column is None or not isinstance(more, str):
        return row, "columns"
    if isinstance(row[column], str) and more.strip():
        row = {**row, column: f"{row[column]}\n\n{more}"}
    return row, "columns with input"


def _two_transcripts(chosen: str, rejected: str, where: str) -> Mapping:
    """Split two transcripts at the last Assistant turn that begins in their common prefix.

    Characters that both answers happen to begin with therefore stay in the answers.
    """
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((n for n, (a, b) in pairs if a != b), min(len(chosen), len(rejected)))
    start = chosen[:shared].rfind(ASSISTANT)
    if start < 0:
        raise DataError(f"{where}: chosen and rejected are transcripts of different dialogues: "
                        f"they share no beginning that includes an {ASSISTANT.strip()!r} turn")
    start += len(ASSISTANT)
    return {"prompt": chosen[:start].strip(), "chosen": chosen[start:].strip(),
            "rejected": rejected[start:].strip()}


def _two_conversations(row: Mapping, chosen: list, rejected: list, where: str) -> Mapping:
    """The prompt is what both conversations begin with or, if both are replies only, its column."""
    sides = [_messages(side, f"{where}: column {spelled(row, name)!r}")
             for side, name in ((chosen, "chosen"), (rejected, "rejected"))]
    shared = 0
    while shared < min(map(len, sides)) - 1 and sides[0][shared] == sides[1][shared]:
        shared += 1  # never past the last message: that is a reply, even if both are identical
    if any(len(side) == 0 or side[shared][0] != "Assistant" for side in sides):
        raise DataError(f"{where}: the conversations in chosen and rejected do not first differ in "
                        "an assistant message")
    prompt = sides[0][:shared]
    if not prompt:
        column = spelled(row, "prompt")
        given = row.get(column)
        if not given:
            raise DataError(f"{where}: the conversations share no first message and there is no "
                            f"prompt column (accepted: {', '.join(SPELLINGS['prompt'])})")
        prompt = [("Human", given)] if isinstance(given, str) else \
            _messages(given, f"{where}: column {column!r}")
    return {"prompt": _as_prompt(prompt), "chosen": _as_reply(sides[0][shared:]),
            "rejected": _as_reply(sides[1][shared:])}


def _conversation(messages: Sequence[Message], where: str) -> Mapping:
    replies = [index for index, (role, _) in enumerate(messages) if role == "Assistant"]
    if not replies or replies[-1] == 0:
        raise DataError(f"{where}: the conversation has no assistant message that follows another "
                        "message")
    return {"prompt": _as_prompt(messages[:replies[-1]]), "response": messages[replies[-1]][1]}


def _messages(messages: Any, where: str) -> list[Message]:
    """{"role", "content"} or {"from", "value"} -> (role, text).  Raises DataError on all else."""
    found = []
    for index, message in enumerate(messages if isinstance(messages, list) else [None]):
        keys = ("from", "value")
        if isinstance(message, Mapping) and "role" in message:
            keys = ("role", "content")
        role, text = (message.get(key) if isinstance(message, Mapping) else None for key in keys)
        if not isinstance(role, str) or role not in ROLES or not isinstance(text, str):
            raise DataError(f"{where}: message {index} is not {{'role', 'content'}} (or {{'from', "
                            f"'value'}}) with a role among {', '.join(ROLES)} and a text")
        found.append((ROLES[role], text))
    return found


def _as_prompt(messages: Sequence[Message]) -> str:
    """A single message as it is; several as a transcript that ends with `Assistant:`."""
    if len(messages) == 1:
        return messages[0][1]
    return "\n\n".join(f"{role}: {text}" for role, text in messages) + ASSISTANT


def _as_reply(messages: Sequence[Message]) -> str:
    """The text of the reply, and any later messages as a transcript."""
    return "\n\n".join([messages[0][1], *(f"{role}: {text}" for role, text in messages[1:])])
