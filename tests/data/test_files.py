import csv
import gzip
import io
import json
import sys
import warnings

import numpy as np
import pytest

from data import DataError
from data.files import ENDINGS as ACCEPTED
from data.files import files_of, read_rows, rows_of_columns, save_jsonl

ROWS = [{"prompt": "q", "response": "a"}, {"prompt": "日本?", "response": "é, \"quoted\" 🙂"},
        {"prompt": "x", "response": "y"}]
ENDINGS = [kind + gz for kind in (".jsonl", ".ndjson", ".json", ".csv", ".tsv")
           for gz in ("", ".gz")]
HEAD = b"prompt,response\n"


def as_bytes(rows, kind):
    if kind in (".jsonl", ".ndjson"):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if kind == ".json":
        return json.dumps(rows, ensure_ascii=False).encode()
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0].keys(), delimiter="\t" if kind == ".tsv" else ",")
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
    assert {ending.removesuffix(".gz") for ending in ENDINGS} | {".parquet"} == set(ACCEPTED)


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
    (".csv", ["line 2", "line 3", "line 4"]), (".tsv", ["line 2", "line 3", "line 4"])])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_every_row_comes_with_where_it_stands(write, ending, places, gz):
    path = write("rows" + ending + gz, as_bytes(ROWS, ending))
    assert [place for place, _ in read_rows(path)] == places


@pytest.mark.parametrize("name", ["ROWS.JSONL", "Rows.Csv", "rows.JSON.GZ", "my.rows.v2.jsonl"])
def test_neither_capitals_nor_further_dots_in_a_name_matter(tmp_path, name):
    content = as_bytes(ROWS, "." + name.lower().removesuffix(".gz").rpartition(".")[2])
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".GZ") else content)
    assert rows_of(tmp_path / name) == ROWS


@pytest.mark.parametrize("name", ["rows.txt", "rows", "rows.gz", "rows.jsonl.zip", "rows.xlsx",
                                  "jsonl"])
def test_an_unknown_ending_is_named_with_those_accepted(write, name):
    message = r"unknown kind of file.*\.jsonl, \.ndjson, \.json, \.csv, \.tsv, \.parquet.*\.gz"
    with pytest.raises(DataError, match=message) as error:
        rows_of(write(name, as_bytes(ROWS, ".jsonl")))
    assert name in str(error.value)


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_missing_file_is_a_file_not_found_error(tmp_path, ending):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rows_of(tmp_path / ("nowhere" + ending))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("content", [b"", b"\n", b"\n\r\n\n"])
def test_a_file_of_blank_lines_alone_has_no_rows(write, ending, content):
    assert rows_of(write("rows" + ending, content)) == []


@pytest.mark.parametrize("ending", [".json", ".json.gz", ".jsonl"])
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
    with pytest.raises(DataError, match=rf"rows\{ending}: not a whole gzip file"):
        rows_of(tmp_path / ("rows" + ending))


@pytest.mark.parametrize("ending", [".jsonl.gz", ".json.gz", ".csv.gz"])
@pytest.mark.parametrize("place", [-6, 10], ids=["in the checksum", "in the body"])
def test_a_gzip_file_with_changed_bytes_is_named(tmp_path, ending, place):
    packed = bytearray(gzip.compress(as_bytes(ROWS * 20, ending.removesuffix(".gz"))))
    packed[place] = 0xFF - packed[place] if place < 0 else 0xFF  # 0xFF begins no block
    (tmp_path / ("rows" + ending)).write_bytes(packed)
    with pytest.raises(DataError, match=rf"rows\{ending}: not a whole gzip file"):
        rows_of(tmp_path / ("rows" + ending))


@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv"])
def test_gzip_is_known_by_its_first_bytes_whatever_the_name_says(tmp_path, ending):
    content = as_bytes(ROWS, ending)
    (tmp_path / f"plain{ending}.gz").write_bytes(content)
    (tmp_path / f"packed{ending}").write_bytes(gzip.compress(content))
    assert rows_of(tmp_path / f"plain{ending}.gz") == rows_of(tmp_path / f"packed{ending}") == ROWS


# --- JSON -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("line", [b'{"prompt": "q"', b"prompt,response", b"{'prompt': 'q'}",
                                  b"{} {}", b"[1,]"])
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
                                                       ("rows.json", b"", "line 1")])
def test_json_nested_without_end_is_no_recursion_error(write, name, before, where, deep):
    with pytest.raises(DataError, match=f"{name}, {where}: not valid JSON"):
        rows_of(write(name, before + deep))


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize(("content", "row"), [
    (b'{"prompt": "q"}', {"prompt": "q"}), (b'{\n "prompt": "q"\n}\n', {"prompt": "q"}),
    (b'"text"', "text"), (b"3", 3), (b"null", None)])
def test_json_that_is_no_list_is_a_single_row(write, name, content, row):
    assert rows_of(write(name, content)) == [row]


@pytest.mark.parametrize(("content", "line"), [
    (b"[1, 2", 1), (b"[1] [2]", 1), (b"[1]\n[2]\n", 2), (b'[\n{"a": 1}\n{"a": 2}\n]', 3),
    (b'{\n "a": 1\n}\n{\n "a": 2\n}\n', 4), (b'{\n "a": 1,\n}', 3), (b"[" + b"1" * 5000 + b"]", 1),
    (b'{"a": 1\n{"a": 2}\n{"a": 3}\n', 1)])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_broken_json_is_named_with_its_line(write, name, content, line):
    with pytest.raises(DataError, match=rf"{name}, line {line}: not valid JSON"):
        rows_of(write(name, content))


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
def test_too_many_cells_come_as_an_error_with_the_way_out_and_the_rows_go_on(write, gz):
    path = write("rows.csv" + gz, HEAD + b"q,a\nq,well, no\nx,y\n")
    (_, first), (place, error), (_, last) = read_rows(path)
    assert (first, place, last) == ({"prompt": "q", "response": "a"}, "line 3",
                                    {"prompt": "x", "response": "y"})
    assert isinstance(error, DataError) and "more cells than the 2 columns" in str(error)
    assert "quotes" in str(error)


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
    message = r"rows\.csv(\.gz)?, line 3: not UTF-8.*save the file as UTF-8"
    with pytest.raises(DataError, match=message):
        rows_of(write("rows.csv" + gz, HEAD + b"q,a\nx," + bad + b"\n"))


@pytest.mark.parametrize("before", [0, 1, 50, 5000])
def test_bytes_that_are_no_utf8_are_named_with_their_line_in_csv(write, before):
    with pytest.raises(DataError, match=rf"rows\.csv, line {before + 2}: not UTF-8"):
        rows_of(write("rows.csv", HEAD + b"q,a\n" * before + b"x,\xff\n" + b"q,a\n" * 3))


def test_a_first_line_alone_has_no_rows(write):
    assert rows_of(write("rows.csv", HEAD)) == []


# --- what a file is, is seen in its content -------------------------------------------------------

LINES, LIST = as_bytes(ROWS, ".jsonl"), json.dumps(ROWS, indent=1).encode()
TABLES = {
    "columns of lists": {name: [row[name] for row in ROWS] for name in ROWS[0]},
    "pandas": {name: {str(n): row[name] for n, row in enumerate(ROWS)} for name in ROWS[0]},
    "pandas, orient=index": {str(n): row for n, row in enumerate(ROWS)},
    "pandas, orient=split": {"columns": list(ROWS[0]), "index": [0, 1, 2],
                             "data": [list(row.values()) for row in ROWS]},
    "pandas, orient=table": {"schema": {"fields": [{"name": "prompt"}]}, "data": ROWS}}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.ndjson", "rows.json", "rows.json.gz"])
@pytest.mark.parametrize("content", [LINES, LIST, LINES.rstrip(), b"\n\n" + LINES, b" " + LIST,
                                     json.dumps(ROWS).encode()])
def test_json_lines_and_a_list_are_told_apart_by_their_content(write, name, content):
    assert rows_of(write(name, content)) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
@pytest.mark.parametrize("table", TABLES)
def test_a_table_in_one_object_is_its_rows(write, table, name, indent):
    content = json.dumps(TABLES[table], indent=indent).encode()
    assert list(read_rows(write(name, content))) == [
        (f"row {n}", row) for n, row in enumerate(ROWS)]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("wrapper", ["data", "rows", "examples", "train", "test"])
@pytest.mark.parametrize("inside", [ROWS, TABLES["columns of lists"]])
def test_rows_inside_an_object_are_found(write, wrapper, inside, indent):
    content = json.dumps({"version": "1.0", wrapper: inside}, indent=indent).encode()
    assert rows_of(write("rows.json", content)) == ROWS


def test_rows_in_two_places_of_one_object_are_an_error_that_names_both(write):
    content = json.dumps({"train": ROWS, "test": ROWS[:1]}).encode()
    with pytest.raises(DataError, match=r"rows\.json, line 1: .*\(train, test\)"):
        rows_of(write("rows.json", content))


@pytest.mark.parametrize("row", [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "gpt", "content": "a"}]},
    {"chosen": {"role": "gpt", "content": "a"}, "rejected": {"role": "gpt", "content": "b"}},
    {"prompt": "q", "chosen": "a", "tags": ["x", "y"]}, {"history": [["q", "a"]], "prompt": "q"},
    {"prompt": "q", "data": []}, {"prompt": "q", "rows": "text"}, {"prompt": "q", "train": {}}, {}])
@pytest.mark.parametrize("indent", [None, 2])
def test_a_single_row_is_no_table(write, row, indent):
    assert rows_of(write("rows.json", json.dumps(row, indent=indent).encode())) == [row]


def test_a_column_of_conversations_is_a_column():
    talks = [[{"role": "user", "content": "q"}], [{"role": "user", "content": "r"}]]
    assert rows_of_columns({"messages": talks}) == [{"messages": talk} for talk in talks]


@pytest.mark.parametrize("make", [list, tuple, np.array, lambda cells: dict(enumerate(cells))])
def test_columns_may_be_lists_tuples_arrays_or_what_pandas_gives(make):
    table = {name: make([row[name] for row in ROWS]) for name in ROWS[0]}
    assert rows_of_columns(table) == ROWS


@pytest.mark.parametrize("table", [
    {}, {"a": []}, {"a": ["x"], "b": []}, {"a": ["x"], "b": "y"}, {"a": [1, 2]}, {"a": [None]}])
def test_what_is_no_table_is_none(table):
    assert rows_of_columns(table) is None


def test_a_null_in_a_column_stays_null():
    assert rows_of_columns({"a": ["x", None], "b": [None, 3]}) == [{"a": "x", "b": None},
                                                                   {"a": None, "b": 3}]


# --- letters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be"])
def test_utf16_is_known_by_its_mark(write, ending, encoding):
    text = as_bytes(ROWS, ending.removesuffix(".gz")).decode()
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    assert rows_of(write("rows" + ending, (mark + text).encode(encoding))) == ROWS


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32", "utf-32-le"])
def test_other_encodings_are_named_with_the_way_out(write, ending, encoding):
    text = as_bytes(ROWS, ending.removesuffix(".gz")).decode()
    with pytest.raises(DataError, match=r"line \d: not UTF-8.*save the file as UTF-8"):
        rows_of(write("rows" + ending, text.encode(encoding)))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("encoding", ["cp1252", "latin-1", "shift_jis"])
def test_letters_of_an_older_encoding_are_named_with_the_way_out(write, ending, encoding):
    rows = [{"prompt": "q", "response": "a"}, {"prompt": "\xb6", "response": "caf\xe9"}]
    if encoding == "shift_jis":
        rows[1] = {"prompt": "q", "response": "日本"}
    content = as_bytes(rows, ending.removesuffix(".gz")).decode().encode(encoding)
    with pytest.raises(DataError, match=r"line \d: not UTF-8.*save the file as UTF-8"):
        rows_of(write("rows" + ending, content))


@pytest.mark.parametrize("ending", [".jsonl", ".csv"])
def test_marks_stay_no_text_where_files_were_joined_or_saved_twice(write, ending):
    one = b"\xef\xbb\xbf" + as_bytes(ROWS, ending)
    assert rows_of(write("twice" + ending, b"\xef\xbb\xbf" + one)) == ROWS
    head = [] if ending == ".jsonl" else [{name: name for name in ROWS[0]}]
    assert rows_of(write("joined" + ending, one + one)) == [*ROWS, *head, *ROWS]


# --- tables as people save them -------------------------------------------------------------------


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("name", ["rows.csv", "rows.tsv", "rows.csv.gz"])
def test_the_separator_is_seen_in_the_first_line(write, name, separator):
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator).writerows([ROWS[0].keys(), *(r.values() for r in ROWS)])
    assert rows_of(write(name, text.getvalue().encode())) == ROWS


def test_separators_inside_quotes_of_the_first_line_do_not_count(write):
    assert rows_of(write("rows.csv", b'"a;b;c",d\n1,2\n')) == [{"a;b;c": "1", "d": "2"}]


def test_a_single_column_needs_no_separator(write):
    assert rows_of(write("rows.csv", b"text\none\ntwo; three\n")) == [{"text": "one"},
                                                                      {"text": "two; three"}]


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_first_line_by_which_excel_knows_its_separator_is_no_head(write, separator):
    content = f"sep={separator}\r\nprompt{separator}response\r\nq{separator}a\r\n"
    assert list(read_rows(write("rows.csv", content.encode()))) == [
        ("line 3", {"prompt": "q", "response": "a"})]


def test_empty_columns_and_rows_of_a_spreadsheet_are_left_out(write):
    content = b"prompt;response;;\nq;a;;\n;;;\nx;y\nz;w;;;\n"
    assert rows_of(write("rows.csv", content)) == [{"prompt": "q", "response": "a"},
                                                   {"prompt": "x", "response": "y"},
                                                   {"prompt": "z", "response": "w"}]


def test_spaces_around_names_are_no_part_of_them(write):
    assert rows_of(write("rows.csv", b" Prompt , RESPONSE\nq, a\n")) == [
        {"Prompt": "q", "RESPONSE": " a"}]


@pytest.mark.parametrize("head", [b"prompt,chosen,chosen", b"a,prompt, Prompt ", b"a,A,b"])
def test_a_column_that_occurs_twice_is_an_error_that_names_it(write, head):
    with pytest.raises(DataError, match=r"rows\.csv, line 1: the column '.*' occurs twice"):
        rows_of(write("rows.csv", head + b"\n1,2,3\n"))


# --- Parquet --------------------------------------------------------------------------------------


def parquet(rows):
    pyarrow, content = pytest.importorskip("pyarrow"), io.BytesIO()
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), content)
    return content.getvalue()


@pytest.mark.parametrize("rows", [ROWS, [{"prompt": "q", "n": None}, {"prompt": None, "n": 3}], [
    {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "日本"}]}]])
def test_rows_come_out_of_parquet_as_they_went_in(write, rows):
    assert list(read_rows(write("rows.parquet", parquet(rows)))) == [
        (f"row {n}", row) for n, row in enumerate(rows)]


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_a_broken_parquet_file_is_named(write, share):
    content = parquet(ROWS)
    with pytest.raises(DataError, match=r"rows\.parquet, not a whole Parquet file"):
        rows_of(write("rows.parquet", content[:int(share * len(content))]))


@pytest.mark.parametrize("place", range(4, 400, 9))
def test_a_parquet_file_with_a_changed_byte_is_rows_or_an_error_that_names_it(write, place):
    content = bytearray(parquet(ROWS))
    content[place] ^= 0xFF
    try:
        rows_of(write("rows.parquet", bytes(content)))
    except DataError as error:
        assert "rows.parquet" in str(error)


def test_without_pyarrow_a_parquet_file_is_refused_with_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DataError, match=r"rows\.parquet.*pyarrow.*pip install"):
        rows_of(write("rows.parquet", b"PAR1"))


# --- several files --------------------------------------------------------------------------------


def test_files_are_taken_as_they_are_given_and_a_folder_in_order_of_names(write, tmp_path):
    for name in ("b.jsonl", "a.csv.gz", "c.parquet", "D.JSON", ".hidden.jsonl", "notes.txt"):
        write(name, b"")
    (tmp_path / "e.jsonl").mkdir()
    inside = [tmp_path / name for name in ("D.JSON", "a.csv.gz", "b.jsonl", "c.parquet")]
    assert files_of([tmp_path]) == files_of([str(tmp_path)]) == inside
    assert files_of([inside[2], tmp_path]) == [inside[2], *inside]


def test_a_folder_without_rows_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no file of rows in this folder \(\.jsonl"):
        files_of([tmp_path])


def test_a_missing_path_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        files_of([tmp_path, tmp_path / "nowhere"] if list(tmp_path.iterdir())
                 else [tmp_path / "nowhere"])


# --- writing --------------------------------------------------------------------------------------


def test_what_is_saved_is_one_line_a_row_and_reads_back(tmp_path):
    rows = [{"prompt": "日本?\n", "response": "\u2028 \\ \" é 🙂"}, *ROWS]
    save_jsonl(rows, tmp_path / "new" / "folder" / "rows.jsonl")
    content = (tmp_path / "new" / "folder" / "rows.jsonl").read_bytes()
    assert content.count(b"\n") == len(rows) and "日本".encode() in content
    assert list(read_rows(tmp_path / "new" / "folder" / "rows.jsonl")) == [
        (f"line {number}", row) for number, row in enumerate(rows, start=1)]
