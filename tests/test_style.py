"""What the formatter does not check: no line is wider than 100 columns."""

import subprocess

import pytest
from conftest import REPOSITORY

LISTED = subprocess.run(
    ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
    cwd=REPOSITORY,
    capture_output=True,
    text=True,
).stdout.split()
FILES = [file for file in LISTED if (REPOSITORY / file).exists()]


@pytest.mark.parametrize("file", FILES)
def test_no_line_is_wider_than_100_columns_but_an_option_s_own(file):
    lines = (REPOSITORY / file).read_text(encoding="utf-8").splitlines()
    wide = [n for n, line in enumerate(lines, 1) if len(line) > 100 and " = opt(" not in line]
    assert not wide, f"{file}: lines {wide}"


def test_there_are_files_to_look_at():
    assert len(FILES) > 50
