"""Progress bars in log files; and how long threads wait busily."""

import os
import subprocess
import sys
from types import SimpleNamespace

from conftest import REPOSITORY

import train
from rmood.progress import progress_bar


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, monkeypatch, now: float = 1000.0):
        self.now = now
        monkeypatch.setattr("tqdm.std.time", lambda: self.now)


def test_a_log_file_gets_a_line_every_half_minute(monkeypatch, capsys):
    """400 steps of half a second: tqdm itself would write ten lines a second."""
    clock = Clock(monkeypatch)
    for _ in progress_bar(range(400), desc="labelling", unit="prompt"):
        clock.now += 0.5
    written = capsys.readouterr().err
    lines = written.splitlines()
    assert 5 <= len(lines) <= 8  # 200 seconds
    assert all(line.startswith("labelling: ") and "/400" in line for line in lines)
    assert "\r" not in written


def test_the_numbers_beside_the_bar_of_training_write_no_lines_of_their_own(monkeypatch, capsys):
    clock = Clock(monkeypatch)
    run = SimpleNamespace(total_steps=400, process=SimpleNamespace(is_main=True))
    progress = train.Progress(run, SimpleNamespace(step=0))
    for _ in range(400):
        clock.now += 0.5
        progress.add(pairs=8, tokens=100)
        progress.show({"loss": 0.5, "accuracy": 0.8, "learning_rate": 1e-3})
    lines = capsys.readouterr().err.splitlines()
    assert 5 <= len(lines) <= 8
    assert "loss=0.500, accuracy=0.80" in lines[-1]


def test_short_work_writes_nothing(capsys):
    assert list(progress_bar(range(5), desc="quick")) == list(range(5))
    assert capsys.readouterr().err == ""


def test_a_bar_that_is_to_stay_ends_with_its_total(capsys):
    with progress_bar(total=3, desc="training", leave=True, delay=0) as bar:
        bar.update(3)
    assert "3/3" in capsys.readouterr().err.splitlines()[-1]


def test_on_a_terminal_the_bar_is_tqdms_own(monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert progress_bar(range(1)).mininterval == 0.1


THREADS = """
import sys
if {first!r}: import rmood
import os, torch
torch.set_num_threads(2)
torch.manual_seed(0)
layer = torch.nn.Linear(300, 300)
optimizer = torch.optim.AdamW(layer.parameters())
x = torch.randn(400, 300)
for _ in range(8):
    layer(x).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()
print(os.environ.get("GOMP_SPINCOUNT"), layer.weight.double().sum().item().hex())
"""


def run_threads(first: bool, **environment: str) -> list[str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("GOMP", "OMP"))}
    # without these MKL promises no equal bits from one run to the next
    clean |= {"MKL_CBWR": "COMPATIBLE", "MKL_DYNAMIC": "FALSE"}
    done = subprocess.run(
        [sys.executable, "-c", THREADS.format(first=first)],
        cwd=REPOSITORY,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    return done.stdout.split()


def test_threads_that_wait_for_a_shorter_time_compute_the_same():
    """Bit for bit. What the user has set stays."""
    spins, short = run_threads(True)
    default, plain = run_threads(False)
    assert (spins, default) == ("1000", "None")
    assert short == plain
    assert run_threads(True, GOMP_SPINCOUNT="7") == ["7", plain]
    assert run_threads(True, OMP_WAIT_POLICY="passive") == ["None", plain]
