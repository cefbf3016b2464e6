import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md")), *sorted((REPOSITORY / "benchmarks").glob("*.md"))]
JOBS = sorted((REPOSITORY / "scripts" / "slurm").glob("*.sbatch"))
SCRIPT = re.compile(r"((?:examples|benchmarks)/\w+\.py|\b(?:train|sample|label|preprocess|evaluate)\.py)((?: (?!\||&&|#)[^\s`]+)*)")
COMMANDS = ("match", "quality", "diagnose", "validate", "inspect")


def commands(page) -> list[tuple[str, list[str]]]:
    """(script or 'evaluate.py match', its flags) for each command in the page's code."""
    text = page.read_text().replace("\\\n", " ")
    code = [text] if page.suffix == ".sbatch" else re.findall(r"```(?:bash|sh|console)\n(.*?)```", text, flags=re.S) + re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", text, flags=re.S))
    found = []
    for script, rest in SCRIPT.findall("\n".join(code)):
        words = rest.split()
        if script == "evaluate.py" and words and words[0] in COMMANDS:
            script = f"evaluate.py {words[0]}"
        found.append((script, [word.partition("=")[0] for word in words if word.startswith("--")]))
    return found


@pytest.fixture(scope="module")
def help_of():
    """Help text of a script, asked once."""
    known: dict[str, str] = {}

    def ask(script: str) -> str:
        if script not in known:
            path, *command = script.split()
            result = subprocess.run([sys.executable, path, *command, "--help"], cwd=REPOSITORY, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
            known[script] = result.stdout
        return known[script]

    return ask


@pytest.mark.parametrize("page", PAGES + JOBS, ids=lambda page: page.name)
def test_every_flag_that_a_page_names_exists(page, help_of):
    for script, flags in commands(page):
        for flag in flags:
            assert re.search(rf"(?<![\w-]){re.escape(flag.replace('_', '-'))}(?![\w-])", help_of(script)), f"{page.name}: {script} has no {flag}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_readme_names_every_file_of_the_tree():
    text = (REPOSITORY / "README.md").read_text()
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True).stdout.splitlines()
    for file in listed or []:
        if file.count("/") == 0 and file.endswith(".py") or file.startswith(("rmood/", "docs/", "scripts/", "examples/")) and not file.endswith("__init__.py"):
            assert file.split("/")[-1] in text, f"README.md does not name {file}"


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_a_job_is_valid_bash_and_runs_the_stage_that_names_it(job):
    assert subprocess.run(["bash", "-n", job]).returncode == 0
    assert {script.split()[0] for script, _ in commands(job)} == {f"{job.stem}.py"} or job.stem == "evaluate"
    assert len(JOBS) == 4


def test_the_readme_names_commands(help_of):
    """The other tests would pass on a page without any."""
    scripts = {script for script, _ in commands(REPOSITORY / "README.md")}
    assert scripts >= {"train.py", "sample.py", "label.py", "preprocess.py", "evaluate.py match", "evaluate.py diagnose"}
