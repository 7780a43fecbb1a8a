import csv
import gzip
import io
import json
import warnings

import pytest

from data import DataError
from data.files import READERS, read_rows, save_jsonl

ROWS = [{"prompt": "q", "response": "a"}, {"prompt": "日本?", "response": "é, \"quoted\" 🙂"},
        {"prompt": "x", "response": "y"}]
ENDINGS = [kind + gz for kind in (".jsonl", ".json", ".csv") for gz in ("", ".gz")]
HEAD = b"prompt,response\n"


def as_bytes(rows, kind):
    if kind == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys())
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


@pytest.fixture
def write(tmp_path):
    """A file with this name and content, packed where the name says so -> its path."""
    def write(name, content):
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return tmp_path / name
    return write


def rows_of(path):
    return [row for _, row in read_rows(path)]


# --- every kind -----------------------------------------------------------------------------------


def test_every_reader_is_among_the_endings_tested_here():
    assert {ending.removesuffix(".gz") for ending in ENDINGS} == set(READERS)


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_same_rows_come_out_of_every_kind_of_file(write, ending):
    path = write("rows" + ending, as_bytes(ROWS, ending.removesuffix(".gz")))
    assert rows_of(path) == rows_of(str(path)) == ROWS


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_line_break_inside_a_text_survives_in_every_kind_of_file(write, ending):
    rows = [{"prompt": "two\nlines", "response": "\r\nthree\n\n"}, *ROWS]
    assert rows_of(write("rows" + ending, as_bytes(rows, ending.removesuffix(".gz")))) == rows


@pytest.mark.parametrize(("ending", "places"), [
    (".jsonl", ["line 1", "line 2", "line 3"]), (".json", ["row 0", "row 1", "row 2"]),
    (".csv", ["line 2", "line 3", "line 4"])])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_every_row_comes_with_where_it_stands(write, ending, places, gz):
    path = write("rows" + ending + gz, as_bytes(ROWS, ending))
    assert [place for place, _ in read_rows(path)] == places


@pytest.mark.parametrize("name", ["ROWS.JSONL", "Rows.Csv", "rows.JSON.GZ", "my.rows.v2.jsonl"])
def test_neither_capitals_nor_further_dots_in_a_name_matter(tmp_path, name):
    content = as_bytes(ROWS, "." + name.lower().removesuffix(".gz").rpartition(".")[2])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".GZ") else content)
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["rows.parquet", "rows", "rows.gz", "rows.jsonl.zip",
                                  "rows.tsv.gz", "jsonl"])
def test_an_unknown_ending_is_named_with_those_accepted(write, name):
    with pytest.raises(DataError, match=r"(?s)extension.*\.jsonl, \.json, \.csv.*\.gz") as error:
        rows_of(write(name, as_bytes(ROWS, ".jsonl")))
    assert name in str(error.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_file_is_a_file_not_found_error(tmp_path, ending):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rows_of(tmp_path / ("nowhere" + ending))


@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz", ".csv", ".csv.gz"])
@pytest.mark.parametrize("content", [b"", b"\n", b"\n\r\n\n"])
def test_a_file_of_blank_lines_alone_has_no_rows(write, ending, content):
    assert rows_of(write("rows" + ending, content)) == []


@pytest.mark.parametrize("ending", [".json", ".json.gz"])
def test_an_empty_list_has_no_rows(write, ending):
    assert rows_of(write("rows" + ending, b" [ ]\n")) == []


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_byte_order_mark_is_no_part_of_the_first_row(write, ending):
    content = b"\xef\xbb\xbf" + as_bytes(ROWS, ending.removesuffix(".gz"))
    assert rows_of(write("rows" + ending, content)) == ROWS


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_long_text_is_read_whole(write, ending):
    rows = [{"prompt": "q", "response": "日, \"x\"\n" * 25_000}, *ROWS]
    assert len(rows[0]["response"].encode()) >= 200_000
    assert rows_of(write("rows" + ending, as_bytes(rows, ending.removesuffix(".gz")))) == rows


@pytest.mark.parametrize("ending", ENDINGS)
def test_reading_leaves_no_file_open(write, ending):
    path = write("rows" + ending, as_bytes(ROWS, ending.removesuffix(".gz")))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert rows_of(path) == ROWS
    assert [str(warning.message) for warning in caught] == []


# --- gzip -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".csv.gz"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_a_truncated_gzip_file_is_named(tmp_path, ending, share):
    rows = [{"prompt": str(n ** 7), "response": str(n ** 9)} for n in range(200)]
    whole = gzip.compress(as_bytes(rows, ending.removesuffix(".gz")))
    (tmp_path / ("rows" + ending)).write_bytes(whole[:int(share * len(whole))])
    with pytest.raises(DataError, match=rf"rows\{ending}: not a valid gzip file"):
        rows_of(tmp_path / ("rows" + ending))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".csv.gz"])
@pytest.mark.parametrize("place", [-6, 10], ids=["in the checksum", "in the body"])
def test_a_gzip_file_with_changed_bytes_is_named(tmp_path, ending, place):
    packed = bytearray(gzip.compress(as_bytes(ROWS * 20, ending.removesuffix(".gz"))))
    packed[place] = 0xFF - packed[place] if place < 0 else 0xFF  # 0xFF begins no block
    (tmp_path / ("rows" + ending)).write_bytes(packed)
    with pytest.raises(DataError, match=rf"rows\{ending}: not a valid gzip file"):
        rows_of(tmp_path / ("rows" + ending))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".csv.gz"])
def test_a_plain_file_that_is_called_gz_is_named(tmp_path, ending):
    (tmp_path / ("rows" + ending)).write_bytes(as_bytes(ROWS, ending.removesuffix(".gz")))
    with pytest.raises(DataError, match=rf"rows\{ending}: not a valid gzip file"):
        rows_of(tmp_path / ("rows" + ending))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_a_gzip_file_that_is_not_called_gz_is_named(tmp_path, ending):
    (tmp_path / ("rows" + ending)).write_bytes(gzip.compress(as_bytes(ROWS, ending)))
    with pytest.raises(DataError, match=rf"rows\{ending}, .*not valid"):
        rows_of(tmp_path / ("rows" + ending))


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("line", [b'{"prompt": "q"', b"prompt,response", b"{'prompt': 'q'}",
                                  b"\xff", b"{} {}", b"[1,]"])
def test_a_broken_line_is_named_with_its_number(write, line, gz):
    path = write("rows.jsonl" + gz, b'{"a": 1}\n\n{"a": 2}\n' + line + b'\n{"a": 3}\n')
    with pytest.raises(DataError, match=r"rows\.jsonl(\.gz)?, line 4: not valid JSON"):
        rows_of(path)


def test_the_rows_before_a_broken_line_come_out_first(write):
    rows = read_rows(write("rows.jsonl", b'{"a": 1}\nnothing\n'))
    assert next(rows) == ("line 1", {"a": 1})
    with pytest.raises(DataError, match="line 2"):
        next(rows)


def test_blank_lines_between_rows_are_counted_but_are_no_rows(write):
    path = write("rows.jsonl", b'\n \t\n{"a": 1}\r\n\r\n{"a": 2}')
    assert list(read_rows(path)) == [("line 3", {"a": 1}), ("line 5", {"a": 2})]


def test_other_line_separators_do_not_end_a_json_line(write):
    row = {"a": "one\u2028two\u2029three\x85four"}
    assert list(read_rows(write("rows.jsonl", as_bytes([row], ".jsonl")))) == [("line 1", row)]


@pytest.mark.parametrize("deep", [b"[" * 100_000, b'{"a":' * 100_000,
                                  b"[" * 100_000 + b"]" * 100_000])
@pytest.mark.parametrize(("name", "before", "where"), [("rows.jsonl", b"{}\n", "line 2"),
                                                       ("rows.json", b"", "whole file")])
def test_json_nested_without_end_is_no_recursion_error(write, name, before, where, deep):
    with pytest.raises(DataError, match=f"{name}, {where}: not valid JSON"):
        rows_of(write(name, before + deep))


@pytest.mark.parametrize(("content", "kind"), [
    (b'{"prompt": "q"}', "dict"), (b'"text"', "str"), (b"3", "int"), (b"null", "NoneType")])
def test_json_that_is_no_list_is_named_with_what_it_is(write, content, kind):
    with pytest.raises(DataError, match=rf"rows\.json, whole file: expected a list.*found {kind}"):
        rows_of(write("rows.json", content))


@pytest.mark.parametrize("content", [b"", b"\n", b"[1, 2", b"[1] [2]", b'{"a": 1}\n{"a": 2}\n',
                                     b"\xff\xfe\xfa", b"[" + b"1" * 5000 + b"]"])
def test_broken_json_is_named(write, content):
    with pytest.raises(DataError, match=r"rows\.json, whole file: not valid JSON"):
        rows_of(write("rows.json", content))


def test_what_a_list_holds_is_left_for_the_caller_to_judge(write):
    assert list(read_rows(write("rows.json", b'[1, null, [], {"a": []}]'))) == [
        ("row 0", 1), ("row 1", None), ("row 2", []), ("row 3", {"a": []})]


# --- CSV ------------------------------------------------------------------------------------------


def test_commas_quotes_and_line_breaks_stand_inside_quotes(write):
    path = write("rows.csv", HEAD + b'"Say ""hi"", please","hi\nthere"\n x ,"\r\n"\n')
    assert rows_of(path) == [{"prompt": 'Say "hi", please', "response": "hi\nthere"},
                             {"prompt": " x ", "response": "\r\n"}]


def test_quotes_within_an_unquoted_cell_are_text(write):
    assert rows_of(write("rows.csv", HEAD + b'it is 5" long,a "b" c\n')) == [
        {"prompt": 'it is 5" long', "response": 'a "b" c'}]


def test_a_row_of_several_lines_is_named_by_its_last_and_the_next_row_by_its_own(write):
    path = write("rows.csv", HEAD + b'"q\nr\ns",a\nx,y\n')
    assert list(read_rows(path)) == [("line 4", {"prompt": "q\nr\ns", "response": "a"}),
                                     ("line 5", {"prompt": "x", "response": "y"})]


def test_blank_lines_of_a_csv_file_are_counted_but_are_no_rows(write):
    path = write("rows.csv", HEAD + b"\n\nq,a\n\r\nx,y\n\n")
    assert list(read_rows(path)) == [("line 4", {"prompt": "q", "response": "a"}),
                                     ("line 6", {"prompt": "x", "response": "y"})]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_is_fine_in_csv(write, end):
    path = write("rows.csv", (HEAD + b"q,a\nx,y\n").replace(b"\n", end))
    assert list(read_rows(path)) == [("line 2", {"prompt": "q", "response": "a"}),
                                     ("line 3", {"prompt": "x", "response": "y"})]


def test_a_csv_file_may_end_without_a_line_break(write):
    assert rows_of(write("rows.csv", HEAD + b"q,a")) == [{"prompt": "q", "response": "a"}]


@pytest.mark.parametrize("gz", ["", ".gz"])
def test_too_many_cells_are_named_with_their_line_and_the_way_out(write, gz):
    path = write("rows.csv" + gz, HEAD + b"q,a\nq,well, no\n")
    message = r"rows\.csv(\.gz)?, line 3: more cells than the 2 columns.*quotes"
    with pytest.raises(DataError, match=message):
        rows_of(path)


def test_too_few_cells_leave_none_in_the_row(write):
    assert rows_of(write("rows.csv", HEAD + b"q\n")) == [{"prompt": "q", "response": None}]


def test_a_quote_that_never_closes_is_named_with_the_line_it_stands_on(write):
    with pytest.raises(DataError, match=r"rows\.csv, line 3: not valid CSV"):
        rows_of(write("rows.csv", HEAD + b'q,a\nq,"a\nx,y\n'))


def test_text_behind_a_closing_quote_is_named_with_its_line(write):
    with pytest.raises(DataError, match=r"rows\.csv, line 3: not valid CSV"):
        rows_of(write("rows.csv", HEAD + b'q,a\nq,"a" b\nx,y\n'))


def test_broken_csv_behind_blank_lines_is_named_with_its_line(write):
    with pytest.raises(DataError, match=r"rows\.csv, line 5: not valid CSV"):
        rows_of(write("rows.csv", HEAD + b'q,a\n\n\nq,"a" b\nx,y\n'))


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("bad", [b"\xff", b"\xe6\x97", "é".encode("latin-1"), b"\xed\xa0\x80"])
def test_bytes_that_are_no_utf8_are_named_in_csv(write, bad, gz):
    with pytest.raises(DataError, match=r"rows\.csv(\.gz)?, line \d+: not valid CSV .*utf-8"):
        rows_of(write("rows.csv" + gz, HEAD + b"q,a\nx," + bad + b"\n"))


@pytest.mark.parametrize("before", [0, 1, 50, 5000])
def test_bytes_that_are_no_utf8_are_named_with_their_line_in_csv(write, before):
    with pytest.raises(DataError, match=rf"rows\.csv, line {before + 2}: not valid CSV"):
        rows_of(write("rows.csv", HEAD + b"q,a\n" * before + b"x,\xff\n" + b"q,a\n" * 3))


def test_a_first_line_alone_has_no_rows(write):
    assert rows_of(write("rows.csv", HEAD)) == []


# --- writing --------------------------------------------------------------------------------------


def test_what_is_saved_is_one_line_a_row_and_reads_back(tmp_path):
    rows = [{"prompt": "日本?\n", "response": "\u2028 \\ \" é 🙂"}, *ROWS]
    save_jsonl(rows, tmp_path / "new" / "folder" / "rows.jsonl")
    content = (tmp_path / "new" / "folder" / "rows.jsonl").read_bytes()
    assert content.count(b"\n") == len(rows) and "日本".encode() in content
    assert list(read_rows(tmp_path / "new" / "folder" / "rows.jsonl")) == [
        (f"line {number}", row) for number, row in enumerate(rows, start=1)]
