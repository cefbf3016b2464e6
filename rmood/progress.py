"""Progress bars on stderr: on a terminal as usual, in a log file a line every half minute."""

import sys

from tqdm import tqdm

LOG_SECONDS = 30.0  # between two lines in a log file


class _Lines:
    """A log file for tqdm, which writes its bar over the last one: here each is a line."""

    def __init__(self, file):
        self._file = file

    def write(self, text: str) -> None:
        if text.strip():
            self._file.write(text.strip() + "\n")

    def __getattr__(self, name: str):
        return getattr(self._file, name)


def progress_bar(iterable=None, **settings) -> tqdm:
    """tqdm(iterable, **settings), for people who watch and for log files.

    It is shown after two seconds of work and disappears at the end, unless `delay` and `leave` say
    otherwise.
    """
    settings = {"delay": 2, "leave": False} | settings
    if not sys.stderr.isatty():
        every = {"mininterval": LOG_SECONDS, "maxinterval": LOG_SECONDS}
        settings = settings | every | {"file": _Lines(sys.stderr)}
    return tqdm(iterable, **settings)
