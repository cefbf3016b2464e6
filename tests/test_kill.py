"""kill -9 at random moments, run again, and compare every byte with a run that was not killed; and
signals that ask a script to stop.

Each attempt is forked from a process that has imported torch already: it is killed at work, not at
its imports. scripts/torture.sh sets:

    RMOOD_KILLS      kills for each case (2 in the ordinary tests)
    RMOOD_KILL_SEED  seed of the moments
    RMOOD_KILL_LOG   a file that gets a line for each kill
"""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_pairs, make_prompt

from rmood.errors import run_script
from rmood.export import save_reward_model
from rmood.files.rows import write_json, write_jsonl
from rmood.loading import load_reward_model

KILLS = int(os.environ.get("RMOOD_KILLS", 2))
SEED = os.environ.get("RMOOD_KILL_SEED", "0")
CASES = [  # script, processes
    ("sample.py", 1),
    ("label.py", 1),
    ("label.py", 2),
    ("preprocess.py", 1),
    ("train.py", 1),
    ("train.py", 2),
]
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["sample", "label", "preprocess", "train"])


# ---- small work in many pieces ----


@pytest.fixture(scope="module")
def inputs(toy_model_folder, toy_tokenizer, tmp_path_factory) -> Path:
    """A folder with what each script reads, and a gold model."""
    folder = tmp_path_factory.mktemp("inputs")

    def write(name: str, rows: list) -> None:
        write_json(str(folder / name), rows)

    write("prompts.json", [{"messages": make_prompt(i)} for i in range(60)])
    write(
        "responses.json",
        [{"response_1": "cat " * (i % 7 + 1), "response_2": f"dog {i}"} for i in range(60)],
    )
    write("many-prompts.json", [{"messages": make_prompt(i)} for i in range(6000)])
    write(
        "many-responses.json",
        [{"response_1": f"cat {i} " * 20, "response_2": f"dog {i}"} for i in range(6000)],
    )
    write("many-rewards.json", [[float(i % 3), 1.0] for i in range(6000)])
    write_jsonl(str(folder / "pairs.jsonl"), make_pairs(60))
    model = load_reward_model(toy_model_folder, seed=0)
    save_reward_model(str(folder / "gold"), model, toy_tokenizer, torch.float32, {})
    return folder


def arguments(script: str, inputs: Path, model: str, output: Path) -> list[str]:
    """Arguments that make small work in many pieces, so that a kill falls between any two."""
    of_script = {
        "sample.py": f"""
            --model-name {model} --prompts-path {inputs}/prompts.json
            --target-path {output}/sft.json
            --backend transformers --max-tokens 24 --batch-size 4 --device cpu
        """,
        "label.py": f"""
            --model-name {inputs}/gold --prompts-path {inputs}/prompts.json
            --responses-path {inputs}/responses.json --target-path {output}/rewards.json
            --tokens-per-pass 60 --device cpu
        """,
        "preprocess.py": f"""
            --prompts-path {inputs}/many-prompts.json
            --responses-path {inputs}/many-responses.json
            --rewards-path {inputs}/many-rewards.json --target-path {output}/pairs.jsonl
        """,
        "train.py": f"""
            --model-name {model} --data-path {inputs}/pairs.jsonl --output-dir {output}
            --lr 3e-3 --epochs 4 --batch-size 4 --tokens-per-pass 128
            --save-every 3 --keep 2 --resume auto --eval-share 0.1 --device cpu
        """,
    }
    return of_script[script].split()


# ---- processes ----


def work(script: str, argv: list[str], rank: int, world_size: int, port: int, log: str) -> None:
    """What a forked process does: the script, as torchrun would start it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    # Tests that run in the background ignore SIGINT.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world_size),
            "LOCAL_WORLD_SIZE": str(world_size),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    sys.argv = [script, *argv]
    main = importlib.import_module(script.removesuffix(".py")).main
    run_script(main, "--resume auto" if script == "train.py" else "")


def start(script: str, argv: list[str], world_size: int, log: Path) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [
        forked.Process(target=work, args=(script, argv, rank, world_size, port, str(log)))
        for rank in range(world_size)
    ]
    for process in processes:
        process.start()
    return processes


def wait(processes: list, seconds: float) -> bool:
    """Whether all have ended within the time."""
    end = time.perf_counter() + seconds
    for process in processes:
        process.join(max(0.0, end - time.perf_counter()))
    return all(process.exitcode is not None for process in processes)


def check_success(processes: list, log: Path) -> None:
    assert all(process.exitcode == 0 for process in processes), log.read_text()[-9000:]


def finish(script: str, argv: list[str], world_size: int, log: Path) -> float:
    """Run it to its end; the seconds it took."""
    began = time.perf_counter()
    processes = start(script, argv, world_size, log)
    assert wait(processes, 300), log.read_text()[-9000:]
    check_success(processes, log)
    return time.perf_counter() - began


# ---- comparing two runs ----


def contents(folder: Path) -> dict[str, object]:
    """Every file below, by name: its bytes, but for the times that it holds."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {
        str(path.relative_to(folder)): content(path)
        for path in files
        if "tensorboard" not in path.parts
    }


def content(path: Path) -> object:
    if path.name.endswith("run.json"):
        facts = json.loads(path.read_text())
        for name in ("time", "commit"):  # the code may be worked on meanwhile
            facts.pop(name, None)
        return facts
    if path.name == "metrics.jsonl":
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        return [
            {name: value for name, value in line.items() if not name.endswith("_per_s")}
            for line in lines
        ]
    return path.read_bytes()


def check_same(output: Path, undisturbed: Path) -> None:
    mine = contents(output)
    expected = contents(undisturbed)
    assert mine.keys() == expected.keys()  # nothing is missing, nothing half-written is left
    different = [name for name in mine if mine[name] != expected[name]]
    readable = [
        (mine[name], expected[name]) for name in different if not isinstance(mine[name], bytes)
    ]
    assert different == [], readable
    assert not list(output.parent.glob("output.*"))


@dataclass
class Case:
    script: str
    argv: list[str]
    world_size: int
    seconds: float  # that an undisturbed run takes
    output: Path
    undisturbed: Path  # output of a run that was not killed


@pytest.fixture
def case(request, inputs, toy_model_folder, tmp_path) -> Case:
    """All runs write to one path, so that even the files that name it are equal."""
    script, world_size = request.param
    output = tmp_path / "output"
    undisturbed = tmp_path / "undisturbed"
    argv = arguments(script, inputs, toy_model_folder, output)
    seconds = finish(script, argv, world_size, tmp_path / "log")
    output.rename(undisturbed)
    return Case(script, argv, world_size, seconds, output, undisturbed)


def name_of(parameter) -> str:
    script, world_size = parameter
    return f"{script}-{world_size}"


# ---- kill -9 ----


@pytest.mark.parametrize("case", CASES, indirect=True, ids=name_of)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(case, tmp_path):
    rng = random.Random(f"{case.script} {case.world_size} {SEED}")
    log = tmp_path / "log"
    kills = 0
    while kills < KILLS:
        processes = start(case.script, case.argv, case.world_size, log)
        if wait(processes, rng.uniform(0, case.seconds)):
            # It came to its end between two kills: once more from the start.
            check_success(processes, log)
            check_same(case.output, case.undisturbed)
            shutil.rmtree(case.output)
            continue
        rng.shuffle(processes)
        for process in processes:
            process.kill()
            if case.world_size > 1:
                time.sleep(rng.choice([0, 0.3]))  # the others may notice, or not
        wait(processes, 60)
        kills += 1
        note_kill(case)
    finish(case.script, case.argv, case.world_size, log)
    check_same(case.output, case.undisturbed)


def note_kill(case: Case) -> None:
    path = os.environ.get("RMOOD_KILL_LOG")
    if path:
        processes = "process" if case.world_size == 1 else "processes"
        with open(path, "a") as file:
            print(f"{case.script} with {case.world_size} {processes}", file=file)


# ---- signals ----


def finished_pieces(output: Path) -> int:
    """Pieces of work on disk: lines of the journals and of the metrics."""
    files = [*output.glob("*.journal-*"), *output.glob("metrics.jsonl")]
    return sum(path.read_bytes().count(b"\n") for path in files)


@pytest.mark.parametrize(
    "case, number",
    [
        (("sample.py", 1), signal.SIGTERM),
        (("label.py", 1), signal.SIGINT),
        (("train.py", 1), signal.SIGINT),
        (("train.py", 2), signal.SIGTERM),
    ],
    indirect=["case"],
)
def test_a_signal_keeps_the_work_and_prints_the_command_that_continues(case, number, tmp_path):
    log = tmp_path / "log-of-the-signal"
    processes = start(case.script, case.argv, case.world_size, log)
    while finished_pieces(case.output) < 10 and not wait(processes, 0.01):
        pass
    os.kill(processes[-1].pid, number)  # to one of them: all leave
    assert wait(processes, 60), f"hangs: {log.read_text()[-3000:]}"
    text = log.read_text()
    exitcodes = [process.exitcode for process in processes]
    assert exitcodes[-1] == 128 + number, text[-3000:]
    assert all(code in (130, 128 + number) for code in exitcodes), text[-3000:]

    beginning = "interrupted: finished work is kept; continue with: "
    messages = [line for line in text.splitlines() if line.startswith(beginning)]
    launcher = "python" if case.world_size == 1 else "torchrun --nproc-per-node 2"
    assert len(messages) == 1
    assert messages[0].endswith(f"{launcher} {case.script} {' '.join(case.argv)}")
    assert "Traceback" not in text

    if case.script == "train.py":
        newest = sorted((case.output / "checkpoints").iterdir())[-1]
        checkpoint = json.loads((newest / "checkpoint.json").read_text())
        last_line = (case.output / "metrics.jsonl").read_text().splitlines()[-1]
        assert checkpoint["state"]["step"] == json.loads(last_line)["step"]
    finish(case.script, case.argv, case.world_size, tmp_path / "log")
    check_same(case.output, case.undisturbed)


def test_torchrun_passes_a_signal_on_and_all_processes_save(
    collectives, inputs, toy_model_folder, tmp_path
):
    output = tmp_path / "rm"
    argv = arguments("train.py", inputs, toy_model_folder, output)
    argv += ["--epochs", "400", "--save-every", "0"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    agent = subprocess.Popen(
        [*torchrun, "--nproc-per-node", "2", "train.py", *argv],
        cwd=REPOSITORY,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    while finished_pieces(output) < 5 and agent.poll() is None:
        time.sleep(0.05)
    agent.terminate()
    text = agent.communicate(timeout=120)[1]
    assert text.count("continue with: torchrun --nproc-per-node 2 train.py") == 1, text[-3000:]
    saved = [path.name for path in (output / "checkpoints").iterdir()]
    assert saved[0].startswith("step-0")
