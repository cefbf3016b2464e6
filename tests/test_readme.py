"""README, docs and job files: commands, flags and files that they name exist."""

import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

import evaluate

PAGES = [
    REPOSITORY / "README.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
    *sorted((REPOSITORY / "benchmarks").glob("*.md")),
]
JOBS = sorted((REPOSITORY / "scripts" / "slurm").glob("*.sbatch"))
COMMANDS = list(evaluate.COMMANDS)
SCRIPT = re.compile(
    r"""(
        (?: examples | benchmarks ) / \w+ \.py
        | \b (?: train | sample | label | preprocess | evaluate ) \.py
    )
    ( (?: [ ] (?! \| | && | \# ) [^\s`]+ )* )  # its arguments, up to a pipe, && or a comment
    """,
    flags=re.VERBOSE,
)
BLOCK = re.compile(r"```(?:bash|sh|console)\n(.*?)```", flags=re.DOTALL)
ANY_BLOCK = re.compile(r"```.*?```", flags=re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\]\(([^)#:]+?)(?:#[^)]*)?\)")


def code_of(page) -> str:
    """The shell code of a page: blocks and inline code of Markdown, all of a job file."""
    text = page.read_text().replace("\\\n", " ")
    if page.suffix == ".sbatch":
        return text
    return "\n".join(BLOCK.findall(text) + INLINE.findall(ANY_BLOCK.sub("", text)))


def commands(page) -> list[tuple[str, list[str]]]:
    """(script or 'evaluate.py match', its flags) for each command in the page's code."""
    found = []
    for script, arguments in SCRIPT.findall(code_of(page)):
        words = arguments.split()
        if script == "evaluate.py" and words and words[0] in COMMANDS:
            script = f"evaluate.py {words[0]}"
        flags = [word.partition("=")[0] for word in words if word.startswith("--")]
        found.append((script, flags))
    return found


@pytest.fixture(scope="module")
def help_of():
    """Help text of a script, made once."""
    known: dict[str, str] = {}

    def help_of(script: str) -> str:
        if script not in known:
            result = subprocess.run(
                [sys.executable, *script.split(), "--help"],
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, result.stderr
            known[script] = result.stdout
        return known[script]

    return help_of


@pytest.mark.parametrize("page", PAGES + JOBS, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page, help_of):
    for script, flags in commands(page):
        for flag in flags:
            name = re.escape(flag.replace("_", "-"))
            whole_word = rf"(?<![\w-]){name}(?![\w-])"
            assert re.search(whole_word, help_of(script)), f"{page.name}: {script} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    for target in LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_file_of_the_tree():
    text = (REPOSITORY / "README.md").read_text()
    listed = subprocess.run(
        ["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout.splitlines()
    for file in listed:
        folder, _, name = file.rpartition("/")
        is_script = folder == "" and name.endswith(".py")
        is_in_the_tree = file.startswith(("rmood/", "docs/", "scripts/", "examples/"))
        if is_script or (is_in_the_tree and name != "__init__.py"):
            assert name in text, f"README.md does not name {file}"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_is_valid_bash_and_runs_the_stage_that_names_it(job):
    assert subprocess.run(["bash", "-n", job]).returncode == 0
    scripts = {script.split()[0] for script, _ in commands(job)}
    if job.stem == "evaluate":
        assert scripts == {"evaluate.py", "preprocess.py"}  # its comment names the latter
    else:
        assert scripts == {f"{job.stem}.py"}


def test_there_is_a_job_for_each_stage_that_needs_a_gpu():
    assert [job.stem for job in JOBS] == ["evaluate", "label", "sample", "train"]


def test_the_readme_names_commands():
    """The other tests would pass on a page without any."""
    scripts = {script for script, _ in commands(REPOSITORY / "README.md")}
    assert scripts >= {
        "train.py",
        "sample.py",
        "label.py",
        "preprocess.py",
        "evaluate.py match",
        "evaluate.py diagnose",
    }
