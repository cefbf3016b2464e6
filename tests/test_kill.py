"""kill -9 at random moments, run again, and compare every byte with a run that was left alone; and signals that ask first.

Each attempt is forked from a process that has imported torch already: it is killed at work, not at its imports. Set by
scripts/torture.sh: RMOOD_KILLS, kills a row (2 in the ordinary tests); RMOOD_KILL_SEED; RMOOD_KILL_LOG, a line a kill.
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
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_pairs, make_prompt

from rmood import records
from rmood.config import run_script
from rmood.model import load_reward_model, save_reward_model

KILLS = int(os.environ.get("RMOOD_KILLS", 2))
SEED = os.environ.get("RMOOD_KILL_SEED", "0")
ROWS = [("sample.py", 1), ("label.py", 1), ("label.py", 2), ("preprocess.py", 1), ("train.py", 1), ("train.py", 2)]  # script, processes
forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(["sample", "label", "preprocess", "train"])


@pytest.fixture(scope="module")
def inputs(toy_model_folder, toy_tokenizer, tmp_path_factory) -> Path:
    """A folder with what each script reads, and a gold model."""
    folder = tmp_path_factory.mktemp("inputs")
    rows = range(60)
    records.write_json(str(folder / "prompts.json"), [{"messages": make_prompt(i)} for i in rows])
    records.write_json(str(folder / "responses.json"), [{"response_1": "cat " * (i % 7 + 1), "response_2": f"dog {i}"} for i in rows])
    records.write_json(str(folder / "many-prompts.json"), [{"messages": make_prompt(i)} for i in range(6000)])
    records.write_json(str(folder / "many-responses.json"), [{"response_1": f"cat {i} " * 20, "response_2": f"dog {i}"} for i in range(6000)])
    records.write_json(str(folder / "many-rewards.json"), [[float(i % 3), 1.0] for i in range(6000)])
    records.write_jsonl(str(folder / "pairs.jsonl"), make_pairs(60))
    model = load_reward_model(toy_model_folder, seed=0)
    save_reward_model(str(folder / "gold"), model.state_dict(), model, toy_tokenizer, torch.float32, {})
    return folder


def command(script: str, inputs: Path, model: str, output: Path) -> list[str]:
    """The arguments: small work in many pieces, so that a kill falls between any two of them."""
    flags = {
        "sample.py": f"--model-name {model} --prompts-path {inputs}/prompts.json --target-path {output}/sft.json --backend transformers --max-tokens 24 --batch-size 4",
        "label.py": f"--model-name {inputs}/gold --prompts-path {inputs}/prompts.json --responses-path {inputs}/responses.json --target-path {output}/rewards.json --tokens-per-pass 60",
        "preprocess.py": f"--prompts-path {inputs}/many-prompts.json --responses-path {inputs}/many-responses.json --rewards-path {inputs}/many-rewards.json --target-path {output}/pairs.jsonl",
        "train.py": f"--model-name {model} --data-path {inputs}/pairs.jsonl --output-dir {output} --lr 3e-3 --epochs 4 --batch-size 4 --tokens-per-pass 128 --save-every 3 --keep 2 --resume auto --eval-share 0.1",
    }[script]
    return flags.split() + ([] if script == "preprocess.py" else ["--device", "cpu"])


def work(script: str, argv: list[str], rank: int, world_size: int, port: int, said: str) -> None:
    """What a forked process does: the script, as torchrun would start it."""
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background ignore it
    torch.set_num_threads(1)
    if world_size > 1:
        os.environ |= dict(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    sys.argv = [script, *argv]
    run_script(importlib.import_module(script.removesuffix(".py")).main, "--resume auto" if script == "train.py" else "")


def start(script: str, argv: list[str], world_size: int, said: Path) -> list:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [forked.Process(target=work, args=(script, argv, rank, world_size, port, str(said))) for rank in range(world_size)]
    for process in processes:
        process.start()
    return processes


def wait(processes: list, seconds: float) -> bool:
    """Whether all have ended within the time."""
    end = time.perf_counter() + seconds
    for process in processes:
        process.join(max(0.0, end - time.perf_counter()))
    return all(process.exitcode is not None for process in processes)


def finish(script: str, argv: list[str], world_size: int, said: Path) -> float:
    """Run it to its end; the seconds it took."""
    began, processes = time.perf_counter(), start(script, argv, world_size, said)
    ended = wait(processes, 300)
    assert ended and not any(process.exitcode for process in processes), said.read_text()[-3000:]
    return time.perf_counter() - began


def contents(output: Path) -> dict[str, object]:
    """Every file below, by name: its bytes, but for the times that it holds."""
    found = {}
    for path in sorted(path for path in output.rglob("*") if path.is_file() and "tensorboard" not in path.parts):
        value: object = path.read_bytes()
        if path.name.endswith("run.json"):
            value = {name: fact for name, fact in json.loads(path.read_text()).items() if name not in ("time", "commit")}  # the code may be worked on meanwhile
        if path.name == "metrics.jsonl":
            value = [{name: number for name, number in json.loads(line).items() if not name.endswith("_per_s")} for line in path.read_text().splitlines()]
        found[str(path.relative_to(output))] = value
    return found


def same(output: Path, whole: Path) -> None:
    mine, its = contents(output), contents(whole)
    assert mine.keys() == its.keys()  # nothing is missing, nothing half-written is left
    different = [name for name in mine if mine[name] != its[name]]
    assert different == [], [(mine[name], its[name]) for name in different if not isinstance(mine[name], bytes)]
    assert not list(output.parent.glob("output.*"))


@pytest.fixture
def whole(request, inputs, toy_model_folder, tmp_path):
    """(script, arguments, processes, seconds, output folder, folder of the run that was left alone). All runs write to one
    path, so that even the files that name it are equal."""
    script, world_size = request.param
    output = tmp_path / "output"
    argv = command(script, inputs, toy_model_folder, output)
    seconds = finish(script, argv, world_size, tmp_path / "said")
    output.rename(tmp_path / "whole")
    return script, argv, world_size, seconds, output, tmp_path / "whole"


def ids(row) -> str:
    return f"{row[0]}-{row[1]}"


@pytest.mark.parametrize("whole", ROWS, indirect=True, ids=ids)
def test_killed_at_random_moments_it_ends_with_the_same_bytes(whole, tmp_path):
    script, argv, world_size, seconds, output, alone = whole
    rng, said, kills = random.Random(f"{script} {world_size} {SEED}"), tmp_path / "said", 0
    while kills < KILLS:
        processes = start(script, argv, world_size, said)
        if wait(processes, rng.uniform(0, seconds)):
            assert not any(process.exitcode for process in processes), said.read_text()[-3000:]
            same(output, alone)
            shutil.rmtree(output)  # it came to its end between two kills: once more from the start
            continue
        rng.shuffle(processes)
        for process in processes:
            process.kill()
            time.sleep(rng.choice([0, 0.3]) if world_size > 1 else 0)  # the others may notice, or not
        wait(processes, 60)
        kills += 1
        if log := os.environ.get("RMOOD_KILL_LOG"):
            with open(log, "a") as file:
                print(f"{script} with {world_size} process{'es' * (world_size > 1)}", file=file)
    finish(script, argv, world_size, said)
    same(output, alone)


def kept(output: Path) -> int:
    """Pieces of work on disk: lines of the journals and of the metrics."""
    return sum(path.read_bytes().count(b"\n") for pattern in ("*.journal-*", "metrics.jsonl") for path in output.glob(pattern))


@pytest.mark.parametrize(
    "whole, number",
    [(("sample.py", 1), signal.SIGTERM), (("label.py", 1), signal.SIGINT), (("train.py", 1), signal.SIGINT), (("train.py", 2), signal.SIGTERM)],
    indirect=["whole"],
)
def test_a_signal_keeps_the_work_and_says_the_command_that_goes_on(whole, number, tmp_path):
    script, argv, world_size, _, output, alone = whole
    said = tmp_path / "said-after-signal"
    processes = start(script, argv, world_size, said)
    while kept(output) < 10 and not wait(processes, 0.01):
        pass
    os.kill(processes[-1].pid, number)  # to one of them: all leave
    assert wait(processes, 60), f"hangs: {said.read_text()[-3000:]}"
    assert processes[-1].exitcode == 128 + number and all(process.exitcode in (130, 128 + number) for process in processes), said.read_text()[-3000:]
    letters = [line for line in said.read_text().splitlines() if line.startswith("interrupted: finished work is kept; go on with: ")]
    started = "python" if world_size == 1 else "torchrun --nproc-per-node 2"
    assert len(letters) == 1 and letters[0].endswith(f"{started} {script} {' '.join(argv)}") and "Traceback" not in said.read_text()
    if script == "train.py":
        newest = sorted((output / "checkpoints").iterdir())[-1]
        assert json.loads((newest / "checkpoint.json").read_text())["step"] == json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    finish(script, argv, world_size, tmp_path / "said")
    same(output, alone)


def test_torchrun_hands_a_signal_on_and_all_processes_save(inputs, toy_model_folder, tmp_path):
    argv = command("train.py", inputs, toy_model_folder, tmp_path / "rm")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py", *argv, "--epochs", "400", "--save-every", "0"]
    agent = subprocess.Popen(words, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    while kept(tmp_path / "rm") < 5 and agent.poll() is None:
        time.sleep(0.05)
    agent.terminate()
    said = agent.communicate(timeout=120)[1]
    assert said.count("go on with: torchrun --nproc-per-node 2 train.py") == 1, said[-3000:]
    assert [path.name for path in (tmp_path / "rm" / "checkpoints").iterdir()][0].startswith("step-0")
