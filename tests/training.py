"""For tests of train.py: run it in this process or by torchrun, and read what it logged."""

import contextlib
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from conftest import REPOSITORY, make_pairs
from transformers import AutoModelForCausalLM

import train
from rmood.files.rows import write_jsonl
from rmood.runlog import RunLog

SETTINGS = "--lr 3e-3 --epochs 2 --batch-size 8 --tokens-per-pass 256 --device cpu"


def command_line(model: str, pairs: str, output: Path, flags: tuple[str, ...]) -> list[str]:
    """The words after the script's name. flags: words, or several in one string."""
    paths = f"--model-name {model} --data-path {pairs} --output-dir {output}"
    return " ".join([paths, SETTINGS, *flags]).split()


def train_here(monkeypatch, model: str, pairs: str, output: Path, *flags: str) -> list[dict]:
    """Run train.py's main in this process; the lines of its metrics.jsonl."""
    monkeypatch.setattr(sys, "argv", ["train.py", *command_line(model, pairs, output, flags)])
    try:
        assert train.main() == 0
    finally:  # also where the run fails: a checkpoint that was begun is on disk afterwards
        for thread in threading.enumerate():
            if thread.name == "checkpoint writer":
                thread.join()
    return read_metrics(output)


def torchrun(
    world_size: int,
    model: str,
    pairs: str,
    output: Path,
    *flags: str,
    script: str = "train.py",
    fails: bool = False,
) -> subprocess.CompletedProcess:
    """Run train.py, or another script with its flags, in several processes on this machine."""
    launcher = f"{sys.executable} -m torch.distributed.run --standalone"
    result = subprocess.run(
        f"{launcher} --nproc-per-node {world_size} {script}".split()
        + command_line(model, pairs, output, flags),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": "1"},
        timeout=600,
    )
    assert (result.returncode != 0) == fails, result.stderr[-4000:]
    return result


def read_metrics(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def losses(metrics: list[dict]) -> list[float]:
    """The loss of each logged step; the lines of whole epochs have none."""
    return [line["loss"] for line in metrics if "loss" in line]


def write_pairs(path: Path, rows: list[dict]) -> str:
    write_jsonl(str(path), rows)
    return str(path)


@pytest.fixture
def pairs_path(tmp_path) -> str:
    return write_pairs(tmp_path / "pairs.jsonl", make_pairs(44))


@pytest.fixture
def nan_model(toy_model_folder, toy_tokenizer, tmp_path) -> str:
    """The toy model with NaN for the embedding of "~": what contains it has no finite reward."""
    (token,) = toy_tokenizer.encode("~", add_special_tokens=False)
    model = AutoModelForCausalLM.from_pretrained(toy_model_folder)
    model.get_input_embeddings().weight.data[token] = math.nan
    model.save_pretrained(tmp_path / "nan")
    toy_tokenizer.save_pretrained(tmp_path / "nan")
    return str(tmp_path / "nan")


@pytest.fixture
def train_to(monkeypatch, toy_model_folder, pairs_path, tmp_path):
    """train_to("rm", "--epochs 1"): the metrics of a model trained into tmp_path / "rm"."""

    def run(name: str, *flags: str, model: str = toy_model_folder, pairs: str = pairs_path):
        return train_here(monkeypatch, model, pairs, tmp_path / name, *flags)

    return run


class Killed(Exception):
    pass


@pytest.fixture
def killed_at(monkeypatch):
    """`with killed_at(7): ...`: the run ends abruptly once step 7 has been logged.

    That is before a checkpoint of that step; as by kill -9, but within this process.
    """

    @contextlib.contextmanager
    def killed_at(step: int):
        write = RunLog.write

        def write_then_die(log, metrics, timing=None):
            write(log, metrics, timing)
            if metrics["step"] == step:
                raise Killed

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(RunLog, "write", write_then_die)
            yield
        for thread in threading.enumerate():  # of the killed run; kill -9 would end it, too
            if thread.name == "checkpoint writer":
                thread.join()

    return killed_at


@pytest.fixture(params=["collectives wait", "collectives return at once"])
def collectives(request, monkeypatch):
    """Processes started by the test have gloo's collectives, then ones with the meaning of NCCL's:
    they return before they are done (tests/unwaited/sitecustomize.py)."""
    if request.param == "collectives return at once":
        monkeypatch.setenv("RMOOD_TEST_UNWAITED", "1")
        monkeypatch.setenv("PYTHONPATH", str(REPOSITORY / "tests" / "unwaited"))


@pytest.fixture
def torchrun_to(collectives, toy_model_folder, pairs_path, tmp_path):
    """torchrun_to(2, "rm", "--epochs 1"): the same in two processes; the finished torchrun."""

    def run(
        world_size: int,
        name: str,
        *flags: str,
        model: str = toy_model_folder,
        pairs: str = pairs_path,
        **options,
    ):
        return torchrun(world_size, model, pairs, tmp_path / name, *flags, **options)

    return run
