"""Files as people have them, each after a layout or a fault that users of other libraries met.

cases/cases.json says of each what must be read, how many rows must be left out and counted, or
which words the one clear error must contain.
"""

import json
from pathlib import Path

import pytest

from data import DataError, load_preferences, load_sft, load_unpaired

FOLDER = Path(__file__).parent / "cases"
CASES = json.loads((FOLDER / "cases.json").read_text(encoding="utf-8"))
LOADERS = {"preferences": load_preferences, "sft": load_sft, "unpaired": load_unpaired}


def name_of(case):
    return Path(case["file"]).name


@pytest.mark.parametrize("case", [case for case in CASES if "rows" in case], ids=name_of)
def test_the_file_is_read_as_it_is_meant(case, capsys):
    assert LOADERS[case["read"]](FOLDER / case["file"]) == case["rows"]
    if "left_out" in case:
        assert f"left out {case['left_out']} of " in capsys.readouterr().out


@pytest.mark.parametrize("case", [case for case in CASES if "rows" not in case], ids=name_of)
def test_the_file_is_refused_in_words_that_help(case):
    with pytest.raises(DataError) as error:
        LOADERS[case["read"]](FOLDER / case["file"])
    assert all(word in str(error.value) for word in case["error_names"])
