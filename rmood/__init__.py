"""A pure-PyTorch reward-model trainer: pairwise Bradley-Terry training in the open.

Floors (a module imports only from lower ones; tests/test_floors.py holds that):
    0  records config schedule loss distributed
    1  tokenization model optim diagnostics generation
    2  batching sharding report
    3  scoring checkpoint
The scripts train.py, sample.py, label.py, preprocess.py and evaluate.py stand on top and never import each other.
"""


class BadInput(ValueError):
    """A letter to the person at the keyboard: where, what, what next. Scripts print it and exit with status 2."""


def one_line(error: Exception, limit: int = 160) -> str:
    """The first line of an error's text, for a letter."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return text if len(text) <= limit else text[:limit] + "..."
