"""The shell scripts: shellcheck, and what the SLURM scripts would run, without SLURM."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY
from torch.distributed.run import parse_args

import evaluate
import label
import sample
import train
from rmood.cli import parse

SBATCH = sorted((REPOSITORY / "scripts/slurm").glob("*.sbatch"))
SHELL = [*sorted((REPOSITORY / "scripts").glob("*.sh")), *SBATCH]
# Stands for srun: its command line and a variable that the real one reads, as a line of JSON.
SRUN = f"""#!{sys.executable}
import json, os, sys
print(json.dumps([os.environ["SRUN_CPUS_PER_TASK"], *sys.argv[1:]]))
"""


def directives(script: Path) -> dict[str, str]:
    """What the script asks of sbatch: option -> value."""
    found = {}
    for line in script.read_text().splitlines():
        if line.startswith("#SBATCH "):
            option, _, value = line.removeprefix("#SBATCH ").partition("=")
            assert "#" not in value and " " not in value, line
            found[option] = value
    return found


def commands(script: Path, tmp_path: Path, *flags: str) -> list[list[str]]:
    """[CPUs a task, word, word, ...] of each srun, with the variables that SLURM sets."""
    programs = tmp_path / "bin"
    programs.mkdir()
    stand_ins = {"srun": SRUN, "scontrol": "#!/bin/sh\nprintf 'node-1\\nnode-2\\n'\n"}
    for name, text in stand_ins.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    asked = directives(script)
    slurm = {
        "SLURM_SUBMIT_DIR": str(REPOSITORY),
        "SLURM_JOB_ID": "17",
        "SLURM_JOB_NODELIST": "node-[1-2]",
        "SLURM_NNODES": asked.get("--nodes", "1"),
        "SLURM_GPUS_ON_NODE": asked.get("--gpus-per-node", "1"),
        "SLURM_CPUS_PER_TASK": asked["--cpus-per-task"],
        "SLURM_ARRAY_TASK_ID": "3",
        "RMOOD_VENV": sys.prefix,
        "PATH": f"{programs}:{os.environ['PATH']}",
    }
    activate = Path(sys.prefix, "bin/activate")
    if not activate.exists():  # the tests run in no virtual environment
        slurm["RMOOD_VENV"] = str(tmp_path)
        programs.joinpath("activate").touch()
    result = subprocess.run(
        ["bash", script, *flags], env=os.environ | slurm, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    return [json.loads(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("script", SHELL, ids=lambda script: script.name)
def test_shellcheck_finds_nothing(script):
    """SC1091: the virtual environment that a script activates is no file of the repository."""
    shellcheck = shutil.which("shellcheck", path=f"{sys.prefix}/bin:{os.environ['PATH']}")
    assert shellcheck, "pip install -r requirements-dev.txt"
    command = [shellcheck, "--shell=bash", "--external-sources", "--exclude=SC1091", str(script)]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("script", SBATCH, ids=lambda script: script.name)
def test_a_job_asks_for_memory_and_hands_its_cpus_to_srun(script, tmp_path):
    """SLURM's default is often some GB a CPU; since 22.05 srun does not take --cpus-per-task."""
    asked = directives(script)
    assert "--mem" in asked and "--time" in asked
    for cpus, *_ in commands(script, tmp_path):
        assert cpus == asked["--cpus-per-task"]


def test_the_training_job_runs_train_py_on_all_gpus_of_its_nodes(tmp_path):
    script = REPOSITORY / "scripts/slurm/train.sbatch"
    ((_, program, *words),) = commands(script, tmp_path, "--lr", "1e-5", "--save-minutes", "30")
    assert program == "torchrun"
    launch = parse_args(words)
    assert (launch.nnodes, launch.nproc_per_node) == ("2", "8")
    assert (launch.rdzv_endpoint, launch.rdzv_id) == ("node-1:29500", "17")
    assert launch.training_script == "train.py"
    config = parse(train.Config, "", launch.training_script_args)
    assert (config.replicas, config.resume, config.lr) == (2, "auto", 1e-5)
    assert config.save_minutes == 30 and config.save_every == 0  # the user's flags come last


def test_a_signal_leaves_the_training_job_time_to_save_its_checkpoint(tmp_path):
    """SLURM sends SIGTERM, torchrun hands it on and kills later, SLURM ends the job last."""
    script = REPOSITORY / "scripts/slurm/train.sbatch"
    number, seconds = directives(script)["--signal"].split("@")  # not "B:": srun's tasks get it
    ((_, _, *words),) = commands(script, tmp_path)
    assert number == "TERM"
    assert 300 <= parse_args(words).shutdown_timeout < int(seconds)


def test_the_labelling_job_divides_the_responses_over_its_tasks(tmp_path):
    ((_, _, *words),) = commands(REPOSITORY / "scripts/slurm/label.sbatch", tmp_path)
    launch = parse_args(words)
    assert (launch.training_script, launch.nproc_per_node) == ("label.py", "8")
    assert parse(label.Config, "", launch.training_script_args).shard == "3/4"


def test_the_sampling_job_divides_the_prompts_over_its_tasks(tmp_path):
    ((_, *words),) = commands(REPOSITORY / "scripts/slurm/sample.sbatch", tmp_path)
    assert words[:2] == ["python", "sample.py"]
    assert parse(sample.Config, "", words[2:]).shard == "3/16"


def test_the_evaluation_job_runs_commands_that_there_are(tmp_path):
    for _, *words in commands(REPOSITORY / "scripts/slurm/evaluate.sbatch", tmp_path):
        assert words[:2] == ["python", "evaluate.py"]
        assert words[2] in evaluate.COMMANDS
