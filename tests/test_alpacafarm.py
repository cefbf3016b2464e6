import importlib
import json
import re
import subprocess
import sys

import pytest
from conftest import DATA, REPOSITORY, needs_data

from rmood.errors import UserError
from rmood.files.provenance import check_lineage
from rmood.files.tables import read_prompts


@pytest.fixture(scope="module")
def alpacafarm():
    """The example, imported as a module."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        return importlib.import_module("alpacafarm")
    finally:
        sys.path.pop(0)


@pytest.fixture
def convert(alpacafarm, monkeypatch, tmp_path):
    """convert(instructions) -> the training and the test prompts made from the same rows."""

    def convert(rows: list) -> tuple[list, list]:
        source = tmp_path / "rows.json"
        train = tmp_path / "train.json"
        test = tmp_path / "test.json"
        source.write_text(json.dumps(rows))
        flags = ["--preference-path", source, "--val-path", source]
        flags += ["--prompts-path", train, "--test-prompts-path", test]
        monkeypatch.setattr(sys, "argv", ["alpacafarm.py", *map(str, flags)])
        assert alpacafarm.main() == 0
        return json.loads(train.read_text()), json.loads(test.read_text())

    return convert


@needs_data
def test_the_reference_s_own_prompts_come_back_letter_for_letter(convert, tmp_path):
    wanted = json.loads((DATA / "alpacafarm" / "test_prompts.json").read_text())
    template = r"(?s).*?### Instruction:\n(.*?)(?:\n\n### Input:\n(.*))?\n\n### Response:"
    rows = []
    for row in wanted:
        found = re.fullmatch(template, row["messages"][1]["content"])
        rows.append({"instruction": found[1], "input": found[2] or "", "output": "not looked at"})
    assert sum(bool(row["input"]) for row in rows) == 394
    train, test = convert(rows + rows[:5])
    assert train == wanted + wanted[:5]  # all of preference
    assert test == wanted  # the first 1,000 of val
    assert check_lineage(str(tmp_path / "test.json"), instructions=str(tmp_path / "rows.json"))


def test_an_instruction_may_hold_braces_and_no_input(convert, tmp_path):
    train, test = convert(
        [{"instruction": "{input}", "input": None}, {"instruction": "a", "input": "{b}"}]
    )
    assert [row["messages"][1]["content"].partition("### ")[2] for row in train] == [
        "Instruction:\n{input}\n\n### Response:",
        "Instruction:\na\n\n### Input:\n{b}\n\n### Response:",
    ]
    assert test == train
    prompts = read_prompts(str(tmp_path / "train.json"))
    assert prompts[0][0] == {"role": "system", "content": ""}


def test_rows_of_another_kind_are_refused(convert):
    for row in ({"prompt": "a"}, {"instruction": "a", "input": 3}, ["a"]):
        with pytest.raises(UserError, match="row 0: needs an 'instruction'"):
            convert([row])


def test_without_the_hub_the_error_names_the_flag(alpacafarm, monkeypatch, tmp_path):
    argv = ["alpacafarm.py", "--prompts-path", str(tmp_path / "p.json")]
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    message = "preference.json cannot be fetched .*: pass the file by --preference-path"
    with pytest.raises(UserError, match=message):
        alpacafarm.main()


def test_the_script_starts_from_any_folder(tmp_path):
    script = str(REPOSITORY / "examples" / "alpacafarm.py")
    result = subprocess.run(
        [sys.executable, script, "--help"], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert "python examples/alpacafarm.py" in result.stdout
