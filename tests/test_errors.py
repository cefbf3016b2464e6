import errno
import os
import shlex
import signal
import subprocess
import sys

import pytest
from conftest import REPOSITORY

from rmood.errors import NothingKept, UserError, is_main_process, no_such_file, one_line, run_script


@pytest.fixture(autouse=True)
def restore_signals():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def run(monkeypatch, capsys):
    """run(what main does, rank, go_on) -> (exit status, what was printed on stderr)."""

    def run(
        main,
        rank: str | None = None,
        go_on: str = "",
        argv=("train.py", "--lr", "1e-3"),
        keeps: bool = True,
    ):
        monkeypatch.setattr(sys, "argv", list(argv))
        for name in ("RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name, raising=False)
        if rank is not None:
            monkeypatch.setenv("RANK", rank)
            monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
        with pytest.raises(SystemExit) as stop:
            run_script(main, go_on, keeps)
        return stop.value.code, capsys.readouterr().err

    return run


def raises(error: BaseException):
    def main():
        raise error

    return main


def test_what_main_returns_is_the_exit_status(run):
    assert run(lambda: 0) == (0, "")
    assert run(lambda: 1) == (1, "")


def test_bad_input_is_one_line_and_status_2_from_the_main_process_alone(run):
    main = raises(UserError("a.json: no such file: check the path"))
    assert run(main) == (2, "a.json: no such file: check the path\n")
    assert run(main, rank="0") == (2, "a.json: no such file: check the path\n")
    assert run(main, rank="1") == (2, "")


def test_a_misspelt_folder_is_answered_by_the_name_that_is_meant(tmp_path):
    (tmp_path / "toy" / "rm").mkdir(parents=True)
    said = str(no_such_file(f"{tmp_path}/tooy/rm/rm_prompts.json"))
    assert f"did you mean {tmp_path}/toy?" in said
    said = str(no_such_file(f"{tmp_path}/toy/rms/rm_prompts.json"))
    assert f"did you mean {tmp_path}/toy/rm?" in said
    assert "check the path" in str(no_such_file(f"{tmp_path}/other/rm.json"))
    (tmp_path / "gold_rewards.json").touch()  # of two files, neither is meant by the other's name
    assert "check the path" in str(no_such_file(f"{tmp_path}/old_rewards.json"))


def test_an_interruption_says_how_to_continue(run):
    status, said = run(raises(KeyboardInterrupt()), go_on="--resume auto")
    assert status == 130
    assert said == (
        "\ninterrupted: finished work is kept; "
        "continue with: python train.py --lr 1e-3 --resume auto\n"
    )
    argv = ["train.py", "--overwrite", "--resume", "auto", "--data-path", "a b"]
    _, said = run(raises(KeyboardInterrupt()), rank="0", go_on="--resume auto", argv=argv)
    assert said.endswith(
        "continue with: torchrun --nproc-per-node 2 train.py --resume auto --data-path 'a b'\n"
    )
    assert run(raises(KeyboardInterrupt()), rank="1") == (130, "")


def test_a_script_that_keeps_nothing_does_not_promise_it(run):
    _, said = run(raises(KeyboardInterrupt()), argv=("evaluate.py", "diagnose"), keeps=False)
    assert said == (
        "\ninterrupted: nothing was written; begin again with: python evaluate.py diagnose\n"
    )


def test_work_that_keeps_nothing_says_so_in_a_script_that_otherwise_does(run):
    argv = ("train.py", "--rate-probe", "6")
    status, said = run(raises(NothingKept(signal.SIGTERM)), argv=argv, go_on="--resume auto")
    assert status == 143
    assert said == (
        "\ninterrupted: nothing was written; begin again with: python train.py --rate-probe 6\n"
    )


def test_sigterm_is_an_interruption_with_its_own_status(run):
    status, said = run(lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert status == 143 and "interrupted: finished work is kept" in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError(errno.EFBIG, "File too large"),
        RuntimeError("I/O error: No space left on device (os error 28)"),  # safetensors
    ],
)
def test_a_full_disk_is_one_line_and_status_2(error, run):
    status, said = run(raises(error))
    assert status == 2 and said.count("\n") == 1
    assert said.startswith("train.py: its output cannot be written (")
    assert said.endswith("what was finished is kept; run the same command again to continue\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_script(lambda: 1 / 0)
    with pytest.raises(OSError):
        run_script(raises(OSError(errno.EACCES, "Permission denied")))


def test_the_main_process_is_rank_0_or_the_only_one(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    assert is_main_process()
    monkeypatch.setenv("RANK", "0")
    assert is_main_process()
    monkeypatch.setenv("RANK", "1")
    assert not is_main_process()


def test_an_error_s_text_is_quoted_on_one_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(ValueError("")) == "ValueError"
    assert one_line(ValueError("x" * 200)) == "x" * 160 + "..."


def test_out_of_memory_on_the_device_is_one_line_that_names_the_flag(run):
    """torch's error, by its name: errors.py does not import torch."""

    class OutOfMemoryError(RuntimeError):
        pass

    def main():
        raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    status, message = run(main)
    assert status == 2 and message.count("\n") == 1
    assert "Tried to allocate 2.00 GiB" in message and "lower --tokens-per-pass" in message


def test_a_reader_that_leaves_early_is_no_traceback():
    """python evaluate.py ... | head: as with other commands, nothing is said."""
    code = (
        "from rmood.errors import run_script\n"
        "def main():\n"
        "    for number in range(100_000):\n"
        "        print(number)\n"
        "run_script(main)\n"
    )
    command = f"{sys.executable} -c {shlex.quote(code)} | head -1"
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")
