"""Break each rule of the diagnosis on purpose, and count what tests/test_faults.py does not notice.

    python scripts/mutants.py               some minutes; exit status 1 where a mutant survives
    python scripts/mutants.py --quick       without the tests that take over a tenth of a second

reads   rmood/diagnosis/faults.toml and faults.py
writes  a line for each survivor, and the count; changes no file

Of each condition in faults.toml: the threshold 10% up and 10% down, the sign turned, the word
negated, the condition left out. Of each block: another severity, cause for symptom, nothing in
`unless`. Of faults.py: the replacements in CODE.
"""

import copy
import inspect
import itertools
import sys
import time
import tomllib
import types
from collections.abc import Callable, Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import test_faults

from rmood.diagnosis import faults
from rmood.progress import progress_bar

OPPOSITE = {
    ">": "<",
    ">=": "<",
    "<": ">",
    "<=": ">",
    "yes": "no",
    "no": "yes",
    "is": "not",
    "not": "is",
    "measured": "missing",
    "missing": "measured",
}
CODE = [  # what is replaced in faults.py, and by what
    ("LEARNED * allowed", "LEARNED"),
    ("LEARNED * allowed", "2 * LEARNED * allowed"),
    (">= GRAVE", ">= 2"),
    ('fault.severity == "warning"', "False"),
    ("fault.symptom, -fault.costs(numbers)", "0, -fault.costs(numbers)"),
    ("fault.symptom, -fault.costs(numbers)", "fault.symptom, fault.costs(numbers)"),
    ("fault.symptom, -fault.costs(numbers)", "fault.symptom, 0"),
    ("SEVERITIES.index(fault.severity), fault", "0, fault"),
    ("number == 0", "True"),
    ("number == 0", "number == 1"),
    ("[*named, *shown[number + 1 :]]", "named"),
    ("[*named, *shown[number + 1 :]]", "shown[number + 1 :]"),
    ("if not others & set(fault.unless)", "if True"),
    ('get("scale_prompts", FEWEST_PROMPTS) < FEWEST_PROMPTS', 'get("scale_prompts", 99) < 0'),
    ('get("train_prompts", FEWEST_PROMPTS) < FEWEST_PROMPTS', 'get("train_prompts", 99) < 0'),
    ("first_of_id.setdefault(fault.id, fault)", "first_of_id[fault.id] = fault"),
    ("math.sqrt(2)  #", "2  #"),
    ('n["train_bits"])\n', 'n["train_bits"] - 0.4)\n'),
    ('if not n.get("pairs_are_new")', "if False"),
    ("max(0.0, *shifts)", "min(0.0, *shifts)"),
    ("second.value - half", "second.value + half"),
    ("second.high - second.low) / 2", "second.high - second.low)"),
    ('math.exp(-n["rate_sum"] *', "math.exp(-"),
]


def main() -> int:
    survivors = []
    total = 0
    slow = [test for test in ALL_TESTS if seconds(test) > 0.1]
    ALL_TESTS.sort(key=slow.__contains__)  # the quick ones first
    if "--quick" in sys.argv:
        ALL_TESTS[-len(slow) :] = []
    blocks = tomllib.loads(faults.TABLE.read_text(encoding="utf-8"))
    mutants = [*mutants_of_table(blocks), *mutants_of_code()]
    for words, block, break_it in progress_bar(mutants, desc="mutants", unit="mutant"):
        total += 1
        repair = break_it()
        try:
            if not is_noticed(block):
                survivors.append(words)
        finally:
            repair()
    for words in survivors:
        print(f"survived: {words}")
    print(f"{total} mutants, {len(survivors)} survived")
    return int(bool(survivors))


# ---- mutants: words, the number of the block, and a function that makes it ----------------------


def mutants_of_table(table: dict) -> Iterator[tuple[str, int, Callable]]:
    for number, block in enumerate(table["fault"]):
        for change, broken in broken_blocks(block):
            mutant = copy.deepcopy(table)
            mutant["fault"][number] = broken
            words = f"faults.toml, block {number}, {block['id']} ({block['severity']}): {change}"
            yield words, number, lambda mutant=mutant: use_table(mutant)


def broken_blocks(block: dict) -> Iterator[tuple[str, dict]]:
    """What is changed, and the block with this change."""
    for name, condition in block["when"].items():
        for instead in broken_conditions(name, condition):
            yield f"{name} {instead}", block | {"when": block["when"] | {name: instead}}
        if len(block["when"]) > 1:
            rest = {other: value for other, value in block["when"].items() if other != name}
            yield f"without {name}", block | {"when": rest}
    for severity in faults.SEVERITIES:
        if severity != block["severity"]:
            yield f"severity {severity}", block | {"severity": severity}
    yield "symptom turned", block | {"symptom": not block.get("symptom", False)}
    if block.get("unless"):
        yield "without unless", block | {"unless": []}


def broken_conditions(name: str, condition: str) -> Iterator[str]:
    first, *rest = condition.split()
    if first in OPPOSITE:
        yield " ".join([OPPOSITE[first], *rest])
    if first not in ("<", "<=", ">", ">="):
        return
    [word] = rest
    value = faults._bound(name, word)
    for factor in (1.1, 0.9):
        yield f"{first} {value * factor if value else factor - 1}"


def use_table(table: dict) -> Callable:
    """Let faults.py read this table instead of its file; a function that undoes it."""
    read = faults._read_table
    faults._read_table = lambda path: table
    faults.read_faults.cache_clear()

    def repair() -> None:
        faults._read_table = read
        faults.read_faults.cache_clear()

    return repair


def mutants_of_code() -> Iterator[tuple[str, int, Callable]]:
    source = inspect.getsource(faults)
    for old, new in CODE:
        assert source.count(old) == 1, f"faults.py holds {old!r} {source.count(old)} times"
        yield f"faults.py: {old!r} -> {new!r}", 0, lambda old=old, new=new: use_code(old, new)


def use_code(old: str, new: str) -> Callable:
    mutant = types.ModuleType(faults.__name__)
    mutant.__package__ = faults.__package__
    mutant.__file__ = faults.__file__
    sys.modules[faults.__name__] = mutant
    exec(compile(inspect.getsource(faults).replace(old, new), "mutant", "exec"), vars(mutant))
    test_faults.faults = mutant

    def repair() -> None:
        sys.modules[faults.__name__] = faults
        test_faults.faults = faults

    return repair


# ---- tests --------------------------------------------------------------------------------------


def is_noticed(block: int) -> bool:
    """Does a test fail? Those of the block first: most mutants fall there."""
    try:
        test_faults.BLOCKS = test_faults.faults.read_faults()
        for test in TESTS_OF_A_BLOCK:
            test(block)
        for test, arguments in ALL_TESTS:
            test(**arguments)
    except Exception:  # a failed assertion, or a mistake that the table's reader finds
        return True
    return False


def seconds(test_and_arguments: tuple[Callable, dict]) -> float:
    """How long a test takes. It passes as long as nothing is broken."""
    test, arguments = test_and_arguments
    began = time.perf_counter()
    test(**arguments)
    return time.perf_counter() - began


def with_arguments(test: Callable) -> Iterator[dict]:
    """The arguments of each case of a test, from its parametrize marks."""
    cases = []
    for mark in getattr(test, "pytestmark", []):
        names, values = mark.args
        names = [name.strip() for name in names.split(",")]
        rows = [value if len(names) > 1 else (value,) for value in values]
        cases.append([dict(zip(names, row)) for row in rows])
    for combination in itertools.product(*cases):
        merged = {}
        for arguments in combination:
            merged |= arguments
        yield merged


TESTS_OF_A_BLOCK = [
    test_faults.test_a_fault_is_named_just_inside_its_threshold_and_not_just_outside,
    test_faults.test_a_finding_says_its_numbers_and_one_of_them_what_to_do,
]
ALL_TESTS = []
for name, test in vars(test_faults).items():
    if name.startswith("test_") and "tmp_path" not in inspect.signature(test).parameters:
        ALL_TESTS += [(test, arguments) for arguments in with_arguments(test)]


if __name__ == "__main__":
    sys.exit(main())
