"""Errors for the user, and the exit statuses of the scripts."""

import difflib
import errno
import os
import shlex
import signal
import sys
from pathlib import Path

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(ValueError):
    """An error message for the user: one line that says where, what, and what to do next.

    Scripts print it without a traceback and exit with status 2.
    """


class NothingKept(KeyboardInterrupt):
    """An interruption of work that leaves nothing behind, in a script that otherwise does.

    args: the signal's number, where it is known.
    """


def one_line(error: Exception, limit: int = 160) -> str:
    """The beginning of an error's text on one line, to be quoted in an error message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


def no_such_file(path: str) -> UserError:
    """Of a path where nothing is; where a folder on its way is missing, with the nearest name."""
    missing = Path(path)
    while not missing.parent.exists():
        missing = missing.parent
    near = difflib.get_close_matches(missing.name, os.listdir(missing.parent), n=1)
    if near and missing != Path(path):  # the files of a folder have similar names
        meant = f"did you mean {missing.parent / near[0]}?"
        return UserError(f"{path}: no such file: {meant} Else run the script that writes it")
    return UserError(f"{path}: no such file: check the path, or run the script that writes it")


def is_main_process() -> bool:
    """Is this the process that prints and writes? Rank 0 under torchrun; without it, always."""
    return os.environ.get("RANK", "0") == "0"


def run_script(main, go_on: str = "", keeps: bool = True) -> None:
    """Run a script's main() and exit.

    main: returns the exit status.
    go_on: flags that the command needs to continue after an interruption, such as "--resume auto".
    keeps: whether an interrupted run leaves work behind that the next one takes up.

    Bad input (UserError), a full disk, out of memory on the device: status 2, with one line on
    stderr. SIGINT and SIGTERM: status 130 and 143, with the command that continues the work. A bug:
    its traceback, status 1.
    """
    signal.signal(signal.SIGTERM, _raise_interrupt)
    status, message, from_all = _outcome(main, go_on, keeps)
    # What main() had open is closed by now: a progress bar ends before the message.
    if message and (from_all or is_main_process()):
        print(message, file=sys.stderr)
    sys.exit(status)


def _outcome(main, go_on: str, keeps: bool) -> tuple[int, str, bool]:
    """(exit status, message, does every process print it?) of main(). Raises only what is a bug."""
    try:
        return main(), "", False
    except UserError as error:
        return 2, str(error), False
    except KeyboardInterrupt as interrupt:
        # _raise_interrupt gives its signal's number; Python's own handler of SIGINT gives none
        number = interrupt.args[0] if interrupt.args else signal.SIGINT
        command = _command_to_continue("" if isinstance(interrupt, NothingKept) else go_on)
        message = f"\ninterrupted: finished work is kept; continue with: {command}"
        if not keeps or isinstance(interrupt, NothingKept):
            message = f"\ninterrupted: nothing was written; begin again with: {command}"
        return 128 + number, message, False
    except BrokenPipeError:  # the reader of stdout has gone, as in `evaluate.py match | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        return 128 + signal.SIGPIPE, "", False
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's; this module does not import it
            return 2, _out_of_memory(error, keeps), True  # perhaps on this process's device alone
        reason = _why_disk_is_full(error)
        if reason is None:
            raise
        message = (
            f"{sys.argv[0]}: its output cannot be written ({reason}): free some space there; "
            "what was finished is kept; run the same command again to continue"
        )
        return 2, message, True  # the disk may be another machine's, and rank 0 not notice


def _out_of_memory(error: Exception, keeps: bool) -> str:
    return (
        f"{sys.argv[0]}: out of memory on the device ({one_line(error)}): lower --tokens-per-pass; "
        f"docs/memory.md says what fits{'; finished work is kept' if keeps else ''}"
    )


def _raise_interrupt(number, frame):
    raise KeyboardInterrupt(number)


def _why_disk_is_full(error: Exception) -> str | None:
    """The system's words where an error means "no space left", else None.

    Some libraries in Rust (safetensors) report the system's error only in their text.
    """
    for number in DISK_FULL:
        if getattr(error, "errno", 0) == number or f"(os error {number})" in str(error):
            return os.strerror(number)
    return None


def _command_to_continue(go_on: str) -> str:
    """The command line of this process again: without --overwrite, and with the flags of go_on."""
    launcher = "python"
    if "LOCAL_WORLD_SIZE" in os.environ:
        launcher = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    command = shlex.join([word for word in sys.argv if word != "--overwrite"])
    if go_on not in command:
        command = f"{command} {go_on}"
    return f"{launcher} {command}"
