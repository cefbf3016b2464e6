import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY

from rmood import distributed


@pytest.fixture
def handlers():
    """The handlers of this process are put back after the test."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_signals_are_caught_and_only_a_second_sigint_interrupts(handlers):
    signals = distributed.catch_signals()
    assert signals == []
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        os.kill(os.getpid(), number)
    assert signals == [signal.SIGTERM, signal.SIGTERM, signal.SIGINT]
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


def test_one_process_has_a_group_too(process, capsys):
    assert process.is_main and process.world_size == 1
    assert process.sum(torch.ones(2)).tolist() == [1, 1]
    process.print("progress")
    process.result("result")
    out, err = capsys.readouterr()
    assert out == "result\n" and err == "progress\n"


SCRIPT = """
import time, torch, torch.distributed as dist
from rmood import distributed

process = distributed.start("cpu")
process.barrier()
seconds = []
for wait in (lambda: dist.all_reduce(torch.zeros(1)), process.barrier):
    if process.rank == 1:
        time.sleep(1.0)  # the other rank comes late
    began = time.perf_counter()
    wait()
    seconds.append(time.perf_counter() - began)
    process.barrier()
process.result(*seconds)
process.finish()
"""


def test_a_collective_is_no_barrier_but_a_barrier_is_one(collectives, tmp_path):
    """Rank 0 waits a second for rank 1 at the barrier; at a collective only with gloo's meaning."""
    (tmp_path / "script.py").write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    path = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(tmp_path / "script.py")],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    collective, barrier = map(float, done.stdout.split())
    assert (collective < 0.5) == ("RMOOD_TEST_UNWAITED" in os.environ)
    assert barrier > 0.9
