import gzip
import json

import pytest

from data import DataError, load_preferences, load_sft, load_unpaired
from data.conversations import ROLES
from data.layouts import SPELLINGS, read_prompt
from data.preferences import (
    Located,
    check_preferences,
    check_sft,
    check_unpaired,
    load_prompts,
)
from data.splits import SHORTEST_PROMPT, truncate_records
from minigpt import EOS, PAD, SEP, decode, encode
from minigpt.examples import tokenize_example

hypothesis = pytest.importorskip("hypothesis")
st = pytest.importorskip("hypothesis.strategies")
given = hypothesis.given


def examples(count):
    return hypothesis.settings(deadline=None, max_examples=count, database=None)


PAIR = {"prompt": "日本?", "chosen": "a \"b\", c", "rejected": "é\n🙂"}
TALK = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"}]
VALID_ROWS = [
    PAIR, {"instruction": "q", "input": "x", "output": "a"}, {"messages": TALK},
    {"chosen": TALK, "rejected": [*TALK[:2], {"from": "gpt", "value": "b"}]},
    {"prompt": TALK[:2], "chosen": TALK[2:], "rejected": [{"role": "assistant", "content": "b"}]},
    {"chosen": "\n\nHuman: q\n\nAssistant: a1", "rejected": "\n\nHuman: q\n\nAssistant: a2"},
    {"prompt": "q", "completion": "a", "label": False}, {"messages": TALK, "kto_tag": "yes"},
    {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}]
LINES = "".join(json.dumps(row) + "\n" for row in VALID_ROWS).encode()
VALID_FILES = {
    ".jsonl": LINES, ".json": json.dumps(VALID_ROWS, ensure_ascii=False, indent=1).encode(),
    ".csv": 'prompt,chosen,rejected\n"日本?","a ""b"", c","é\n🙂"\n\nq,a,b\n'.encode(),
    ".tsv": b"prompt\tchosen\trejected\nq\ta\tb\n", ".jsonl.gz": gzip.compress(LINES)}
TELLING_BYTES = [b'"', b"{", b"}", b"[", b"]", b",", b":", b"\\", b"\\ud800", b"\n", b"\r", b"\0",
                 b"\xff", b"\xe6", b"null", b"[" * 5000, b'{"a":' * 5000, b"1" * 5000, b"1e999",
                 b"\xef\xbb\xbf", b"\x1f\x8b\x08"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


# --- files ----------------------------------------------------------------------------------------


@st.composite
def mutated(draw, content):
    """The content with up to four pieces of it replaced, left out or put in."""
    pieces = st.binary(max_size=6) | st.sampled_from(TELLING_BYTES)
    for _ in range(draw(st.integers(1, 4))):
        start, length = draw(st.integers(0, len(content))), draw(st.integers(0, 8))
        content = content[:start] + draw(pieces) + content[start + length:]
    return content


def check_file(path, content):
    """Each reader gives whole records, or an error that names the file; nothing else may happen."""
    path.write_bytes(content)
    for load, columns in ((load_preferences, ("prompt", "chosen", "rejected")),
                          (load_sft, ("prompt", "response")),
                          (load_unpaired, ("prompt", "completion", "label")),
                          (lambda path: [{"prompt": text} for text in load_prompts(path)],
                           ("prompt",))):
        try:
            records = load(path)
        except DataError as error:
            assert str(error).startswith(str(path))
        else:
            assert records
            check_records(records, columns)


def check_records(records, columns):
    for record in records:
        assert tuple(record) == columns
        assert isinstance(record.get("label", True), bool)
        texts = {name: text for name, text in record.items() if name != "label"}
        assert all(isinstance(text, str) and encode(text) is not None for text in texts.values())
        assert all(text.strip() for name, text in texts.items()
                   if columns[1:] != ("response",) or name != "prompt")
        assert "chosen" not in record or record["chosen"] != record["rejected"]


@pytest.mark.parametrize("ending", VALID_FILES)
@examples(100)
@given(data=st.data())
def test_any_bytes_are_rows_or_a_data_error(folder, ending, data):
    telling = st.lists(st.sampled_from(TELLING_BYTES), max_size=8).map(b"".join)
    content = data.draw(st.binary(max_size=60) | telling)
    packed = ending.endswith(".gz") and data.draw(st.booleans())
    check_file(folder / ("any" + ending), gzip.compress(content) if packed else content)


@pytest.mark.parametrize("ending", VALID_FILES)
@examples(150)
@given(data=st.data())
def test_a_mutated_file_is_rows_or_a_data_error(folder, ending, data):
    check_file(folder / ("mutated" + ending), data.draw(mutated(VALID_FILES[ending])))


@examples(100)
@given(data=st.data())
def test_a_mutated_file_that_is_packed_well_is_rows_or_a_data_error(folder, data):
    ending = data.draw(st.sampled_from([".jsonl", ".json", ".csv"]))
    content = data.draw(mutated(VALID_FILES[ending]))
    check_file(folder / f"packed{ending}.gz", gzip.compress(content))


# --- rows -----------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) \
    | st.just("\ud800")
JSON = st.recursive(
    SCALARS,
    lambda inner: (st.lists(inner, max_size=3)
                   | st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=5)
NAMES = sorted({spelling for spellings in SPELLINGS.values() for spelling in spellings})
ROLE_NAMES = sorted(name for names in ROLES.values() for name in names)
MESSAGES = JSON | st.fixed_dictionaries({}, optional={
    "role": st.sampled_from([*ROLE_NAMES, "wizard"]) | JSON, "content": st.text(max_size=3) | JSON,
    "from": st.sampled_from(ROLE_NAMES) | JSON, "value": st.text(max_size=3) | JSON})
GOOD_MESSAGES = st.builds(lambda role, text: {"role": role, "content": text},
                          st.sampled_from(ROLE_NAMES), st.text(max_size=3))
TURN_PIECES = ["\n\nHuman:", "\n\nAssistant:", " a", " b", " ", "Assistant:"]
DIALOGUES = st.lists(st.sampled_from(TURN_PIECES), max_size=6).map("".join)
CELLS = DIALOGUES | st.lists(GOOD_MESSAGES, max_size=4) | st.lists(MESSAGES, max_size=3) \
    | st.lists(GOOD_MESSAGES, max_size=4).map(json.dumps) | st.lists(GOOD_MESSAGES).map(repr) \
    | st.lists(st.lists(st.text(max_size=3), min_size=2, max_size=2), max_size=2) | JSON


@st.composite
def valid_row_with_a_change(draw):
    """A valid row with one value, at any depth, replaced by any other."""
    row = json.loads(json.dumps(draw(st.sampled_from(VALID_ROWS))))
    inside = row
    while True:
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        key = draw(st.sampled_from(keys))
        if not isinstance(inside[key], (dict, list)) or not inside[key] or draw(st.booleans()):
            break
        inside = inside[key]
    inside[key] = draw(CELLS)
    return row


ANY_ROW = JSON | st.dictionaries(st.sampled_from(NAMES), CELLS, max_size=5) \
    | valid_row_with_a_change()


def check_prompt(rows):
    return [record for row in rows for record in read_prompt(row, "row 0").records]


@pytest.mark.parametrize(("check", "columns"), [
    (check_preferences, ("prompt", "chosen", "rejected")), (check_sft, ("prompt", "response")),
    (check_unpaired, ("prompt", "completion", "label")), (check_prompt, ("prompt",))])
@examples(400)
@given(row=ANY_ROW)
def test_any_json_value_as_a_row_is_a_record_or_a_data_error_that_names_it(check, columns, row):
    try:
        records = check([row])
    except DataError as error:
        assert str(error).startswith("row 0: ")
    else:
        assert len(records) == 1 or (columns == ("prompt", "response") and records) or \
            [record.get("label") for record in records] == [True, False]
        check_records(records, columns)


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"),
               max_size=12).filter(str.strip)
TURNS = st.sampled_from([3, 5]).flatmap(lambda n: st.lists(TEXT, min_size=n, max_size=n))


@examples(200)
@given(TURNS, TEXT, TEXT, TEXT)
def test_a_dialogue_parts_where_the_answers_begin_in_transcripts_and_in_conversations(
        turns, run, chosen, rejected):
    answers = [f"x{run}{chosen}y", f"x{run}{rejected}z"]  # both begin with the same letters
    hypothesis.assume(not any("\n\nAssistant:" in answer for answer in answers))
    before = "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {turn}" for n, turn in enumerate(turns))
    before += "\n\nAssistant:"
    expected = [{"prompt": before.strip(), "chosen": answers[0], "rejected": answers[1]}]
    chosen, rejected = (f"{before} {answer}" for answer in answers)
    assert check_preferences([{"chosen": chosen, "rejected": rejected}]) == expected
    talks = [[{"from": ("human", "gpt")[n % 2], "value": turn}
              for n, turn in enumerate([*turns, answer])]
             for answer in answers]
    assert check_preferences([{"chosen": talks[0], "rejected": talks[1]}]) == expected


# --- text and ids ---------------------------------------------------------------------------------

ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@examples(300)
@given(ANY_TEXT)
def test_any_text_survives_encoding_and_decoding(text):
    assert decode(encode(text)) == text


@examples(300)
@given(ANY_TEXT)
def test_no_text_holds_a_special_token(text):
    assert {SEP, EOS, PAD}.isdisjoint(encode(text))
    assert all(0 <= number < 0xF8 for number in encode(text))


@examples(200)
@given(st.lists(st.integers(0, 255), max_size=40))
def test_any_ids_decode_to_text_that_can_be_encoded(ids):
    assert {SEP, EOS, PAD}.isdisjoint(encode(decode(ids)))


# --- rows that are too long -----------------------------------------------------------------------

LETTERS = st.sampled_from("ab é日🙂\n")
PREFERENCE_LISTS = st.lists(st.fixed_dictionaries({
    "prompt": st.text(LETTERS, max_size=40), "chosen": st.text(LETTERS, min_size=1, max_size=15),
    "rejected": st.text(LETTERS, min_size=1, max_size=15)}), min_size=1, max_size=8)
SFT_LISTS = st.lists(st.fixed_dictionaries({
    "prompt": st.text(LETTERS, max_size=40),
    "response": st.text(LETTERS, min_size=1, max_size=15)}), min_size=1, max_size=8)
UNPAIRED_LISTS = st.lists(st.fixed_dictionaries({
    "prompt": st.text(LETTERS, max_size=40),
    "completion": st.text(LETTERS, min_size=1, max_size=15), "label": st.booleans()}),
    min_size=1, max_size=8)
RECORDS = PREFERENCE_LISTS | SFT_LISTS | UNPAIRED_LISTS


def size(text):
    return len(text.encode())


def responses(record):
    return [text for name, text in record.items() if name not in ("prompt", "label")]


def needs(record):
    return size(record["prompt"]) + 1 + max(map(size, responses(record))) + 1


def fitted(records, max_seq_len, long_rows):
    rows = [Located("row", record, record["prompt"]) for record in records]
    try:
        return [row.record for row in truncate_records(rows, max_seq_len, long_rows)]
    except DataError:
        return []


@examples(200)
@given(RECORDS, st.integers(1, 120))
def test_without_truncation_exactly_the_rows_that_fit_are_kept(records, max_seq_len):
    expected = [record for record in records if needs(record) <= max_seq_len]
    assert fitted(records, max_seq_len, "row") == expected


@examples(300)
@given(RECORDS, st.integers(1, 120))
def test_with_truncated_prompts_every_row_fits_and_only_beginnings_of_prompts_are_lost(
        records, max_seq_len):
    rest = iter(fitted(records, max_seq_len, "prompt"))
    for record in records:
        room = max_seq_len - 1 - (needs(record) - size(record["prompt"]) - 1)
        if size(record["prompt"]) > room and room < SHORTEST_PROMPT:
            continue  # dropped; and every other row is there, in order
        kept = next(rest)
        assert needs(kept) <= max_seq_len
        assert not tokenize_example(kept["prompt"], responses(kept), max_seq_len).is_truncated
        assert responses(kept) == responses(record) and record["prompt"].endswith(kept["prompt"])
        if needs(record) <= max_seq_len:
            assert kept == record
        else:
            assert room - 4 < size(kept["prompt"]) <= room
    assert next(rest, None) is None


@examples(200)
@given(RECORDS, st.integers(1, 120))
def test_with_truncated_responses_every_prompt_leaves_room_and_no_row_is_changed(records,
                                                                                max_seq_len):
    kept = fitted(records, max_seq_len, "response")
    assert kept == [record for record in records if size(record["prompt"]) + 1 < max_seq_len]
    for record in kept:
        assert all(tokenize_example(record["prompt"], responses(record), max_seq_len).responses)
