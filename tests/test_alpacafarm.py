import json
import re
import sys

import pytest
from conftest import DATA, needs_data

from rmood import BadInput, alpacafarm, records


def convert(monkeypatch, tmp_path, rows: list) -> tuple[list, list]:
    """The training and the test prompts made from the same rows."""
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    paths = dict(preference="rows", val="rows", prompts="train", test_prompts="test")
    argv = [word for flag, name in paths.items() for word in (f"--{flag.replace('_', '-')}-path", str(tmp_path / f"{name}.json"))]
    monkeypatch.setattr(sys, "argv", ["alpacafarm", *argv])
    assert alpacafarm.main() == 0
    return tuple(json.loads((tmp_path / f"{name}.json").read_text()) for name in ("train", "test"))


@needs_data
def test_the_reference_s_own_prompts_come_back_letter_for_letter(monkeypatch, tmp_path):
    wanted = json.loads((DATA / "alpacafarm" / "test_prompts.json").read_text())
    rows = []
    for row in wanted:
        found = re.fullmatch(r"(?s).*?### Instruction:\n(.*?)(?:\n\n### Input:\n(.*))?\n\n### Response:", row["messages"][1]["content"])
        rows.append({"instruction": found[1], "input": found[2] or "", "output": "not looked at"})
    assert sum(bool(row["input"]) for row in rows) == 394
    train, test = convert(monkeypatch, tmp_path, rows + rows[:5])
    assert test == wanted and train == wanted + wanted[:5]  # all of preference, the first 1,000 of val
    assert records.check_lineage(str(tmp_path / "test.json"), instructions=str(tmp_path / "rows.json"))


def test_an_instruction_may_hold_braces_and_no_input(monkeypatch, tmp_path):
    train, test = convert(monkeypatch, tmp_path, [{"instruction": "{input}", "input": None}, {"instruction": "a", "input": "{b}"}])
    assert [row["messages"][1]["content"].partition("### ")[2] for row in train] == [
        "Instruction:\n{input}\n\n### Response:",
        "Instruction:\na\n\n### Input:\n{b}\n\n### Response:",
    ]
    assert test == train and records.read_prompts(str(tmp_path / "train.json"))[0][0] == {"role": "system", "content": ""}


def test_rows_of_another_kind_are_refused(monkeypatch, tmp_path):
    with pytest.raises(BadInput, match="row 0: needs an 'instruction'"):
        convert(monkeypatch, tmp_path, [{"prompt": "a"}])


def test_without_the_hub_the_letter_names_the_flag(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["alpacafarm", "--prompts-path", str(tmp_path / "p.json")])
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BadInput, match="preference.json cannot be fetched .*: pass the file by --preference-path"):
        alpacafarm.main()
