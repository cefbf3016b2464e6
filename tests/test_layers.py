"""Who may import whom: a module imports only from lower layers. README.md shows the same list."""

import ast
import re
import subprocess
import sys

import pytest
from conftest import REPOSITORY

LAYERS = [
    ["errors", "schedule", "loss", "metrics", "model", "distributed", "progress"],
    [
        "files.rows",
        "files.tensors",
        "files.paths",
        "hub",
        "attention",
        "lora",
        "optim",
        "runlog",
        "diagnosis.scale",
    ],
    ["files.tables", "files.provenance", "cli", "loading", "export", "generation"]
    + ["diagnosis.measures", "diagnosis.text", "diagnosis.calibrate"]
    + ["diagnosis.curve"],
    ["tokenization", "sharding", "diagnosis.pairs", "diagnosis.inputs"]
    + ["diagnosis.faults", "diagnosis.figures", "diagnosis.benchmarks", "diagnosis.rates"]
    + ["diagnosis.questions", "trajectories", "average"],
    ["batching", "checkpoint", "remote", "diagnosis.report", "diagnosis.bench"]
    + ["diagnosis.ensemble", "diagnosis.readiness"],
    ["scoring", "pairset"],
    ["diagnosis.probes", "evaluation"],
    ["diagnosis.trained", "rate_probe"],
    ["diagnosis.run"],
    ["diagnosis.checks", "diagnosis.epochs", "diagnosis.suspects"],
]
LAYER = {module: number for number, modules in enumerate(LAYERS) for module in modules}
SCRIPTS = ["train", "sample", "label", "preprocess", "evaluate"]
PACKAGE = REPOSITORY / "rmood"
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path) -> set[str]:
    """Modules of rmood ("files.rows"), scripts and other packages that a file imports anywhere."""
    here = path.relative_to(REPOSITORY).parent.parts  # ("rmood", "files")
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if not isinstance(node, ast.ImportFrom):
            continue
        base = list(here[: len(here) - node.level + 1]) if node.level else []
        base += (node.module or "").split(".") if node.module else []
        full = ".".join(base)
        found |= {full} | {f"{full}.{alias.name}" for alias in node.names}
    names = {name.removeprefix("rmood.") for name in found}
    return names


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_from_lower_layers(path):
    name = name_of(path)
    assert name in LAYER, f"rmood/{name}: give it a layer"
    used = imports(path) & LAYER.keys()
    higher = {other for other in used if LAYER[other] >= LAYER[name]}
    assert not higher and not imports(path) & set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_never_import_each_other(script):
    assert not imports(REPOSITORY / f"{script}.py") & set(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_name_is_imported_from_the_module_that_defines_it(script):
    """And not from one that imported it."""
    for node in ast.walk(ast.parse((REPOSITORY / f"{script}.py").read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rmood."):
            path = REPOSITORY / (node.module.replace(".", "/") + ".py")
            if not path.exists():
                continue  # a package: its modules are imported
            for alias in node.names:
                assert alias.name in defined(path), f"{script}.py: {alias.name} from {node.module}"


def defined(path) -> set[str]:
    """Names that a module defines itself."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets += [node.target] if isinstance(node, ast.AnnAssign) else []
        found |= {leaf.id for t in targets for leaf in ast.walk(t) if isinstance(leaf, ast.Name)}
    return found


@pytest.mark.parametrize("path", [*MODULES, *(REPOSITORY / f"{s}.py" for s in SCRIPTS)], ids=str)
def test_no_trainer_library_is_needed(path):
    tops = {name.partition(".")[0] for name in imports(path)}
    assert not tops & {"trl", "accelerate", "datasets", "peft", "deepspeed", "lightning"}


def test_the_readme_shows_these_layers():
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", (REPOSITORY / "README.md").read_text(), re.M)
    assert [re.findall(r"`([\w.]+)`", cells) for _, cells in rows] == LAYERS


def test_the_algorithm_imports_no_file_format_and_no_command_line():
    """A reader of the algorithm never has to open a file that is not the algorithm."""
    for name in ("loss", "schedule", "metrics", "attention", "model", "optim", "sharding"):
        plumbing = {n for n in imports(PACKAGE / f"{name}.py") if n.startswith(("files", "cli"))}
        assert not plumbing, f"rmood/{name}.py imports {plumbing}"


def test_the_public_names_are_there_and_cost_nothing_until_used():
    code = (
        "import sys, rmood\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
        "assert all(getattr(rmood, name) is not None for name in rmood.__all__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()


if __name__ == "__main__":
    for number, modules in enumerate(LAYERS):
        print(number, " ".join(modules))
