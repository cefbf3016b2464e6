import ast

import pytest
from conftest import REPOSITORY

FLOORS = [
    ["formats", "schedule", "loss", "distributed"],
    ["records", "config"],
    ["tokenization", "model", "optim", "diagnostics", "generation", "alpacafarm"],
    ["batching", "sharding", "report", "faults"],
    ["scoring", "checkpoint"],
    ["probes"],
]
SCRIPTS = ["train", "sample", "label", "preprocess", "evaluate"]
FLOOR = {module: floor for floor, modules in enumerate(FLOORS) for module in modules}


def imports(path) -> set[str]:
    """Names of rmood's modules and of scripts that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").removeprefix("rmood").removeprefix(".")
            if node.level or (node.module or "").startswith("rmood"):
                found |= {base.split(".")[0]} if base else {alias.name for alias in node.names}
            else:
                found.add((node.module or "").split(".")[0])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "rmood").glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_module_imports_only_from_lower_floors(path):
    higher = {name for name in imports(path) & FLOOR.keys() if FLOOR[name] >= FLOOR[path.stem]}
    assert not higher and not imports(path) & set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_never_import_each_other(script):
    assert not imports(REPOSITORY / f"{script}.py") & set(SCRIPTS)


@pytest.mark.parametrize("path", [*(REPOSITORY / "rmood").glob("*.py"), *(REPOSITORY / f"{script}.py" for script in SCRIPTS)], ids=lambda path: path.stem)
def test_no_trainer_library_is_needed(path):
    assert not imports(path) & {"trl", "accelerate", "datasets", "peft", "deepspeed"}
