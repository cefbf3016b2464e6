"""docs/metrics.md and [numbers] in faults.toml name every number that is measured, and no other."""

import re
import tomllib

import numpy as np
import pytest
from conftest import REPOSITORY, make_pairs
from test_pairs import GOLD, GOOD, RESPONSES

from rmood.diagnosis import faults
from rmood.diagnosis.measures import compare, expected_best_of_n, training_summary
from rmood.diagnosis.pairs import label_noise
from rmood.files.rows import write_jsonl
from rmood.metrics import HEALTHY, healthy_range, pair_metrics

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
TABLE = tomllib.loads(faults.TABLE.read_text(encoding="utf-8"))
CODE = "".join(
    path.read_text(encoding="utf-8")
    for path in [
        *(REPOSITORY / "rmood").rglob("*.py"),
        REPOSITORY / "train.py",
        REPOSITORY / "evaluate.py",
    ]
)


def explained(name: str) -> bool:
    """Named, or the same measure of gold or of an epoch's part."""
    twins = [
        name.replace("gold_", "proxy_", 1),
        name.removeprefix("running_"),
        name.removeprefix("eval_"),
        name.removeprefix("train_"),
    ]
    return name in NAMED or any(twin in NAMED for twin in twins)


def compared() -> dict:
    """The numbers of a comparison in which all of them can be measured."""
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(60, 2))
    texts = [["a" * rng.integers(1, 9), "b"] for _ in range(59)] + [["c", "c"]]
    return compare(gold + rng.normal(size=gold.shape), gold, texts)


def summarised() -> dict:
    names = ["loss", "accuracy", "lost_updates", "update_kept", "update_ratio", "learning_rate"]
    names += ["reward_mean", "std_within"]
    line = dict.fromkeys([*names, "grad_norm_backbone"], 0.5)
    return training_summary([line | {"step": step, "epoch": 1} for step in range(1, 9)])


def test_every_measurement_is_on_the_page():
    gold = np.eye(4)[:, :2]
    measured = compared().keys() | summarised().keys()
    measured |= label_noise(GOOD, None, RESPONSES, GOLD).keys()
    measured |= pair_metrics(gold, gold[:, 0] - gold[:, 1]).keys()
    measured |= expected_best_of_n(gold, gold)[0].keys() - {"n"}
    measured |= {name for fault in faults.read_faults() for name in fault.when}
    measured |= HEALTHY.keys()
    assert [name for name in sorted(measured) if not explained(name)] == []


def test_every_logged_name_is_on_the_page(toy_model_folder, tmp_path, monkeypatch):
    from test_train import train_here

    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, make_pairs(16))
    lines = train_here(monkeypatch, toy_model_folder, path, tmp_path / "rm", "--eval-path", path)
    logged = set().union(*lines)
    assert {"loss", "objective", "eval_loss", "running_loss"} <= logged
    assert {"lost_updates_norms", "tokens_per_s"} <= logged
    assert [name for name in sorted(logged) if not explained(name)] == []


def composed_names() -> set[str]:
    """Names that the code puts together from a prefix and a measure."""
    kinds = ("head", "backbone", "embeddings", "attention", "mlp", "norms")
    names = {f"{what}_{kind}" for what in ("grad_norm", "lost_updates") for kind in kinds}
    summary = ("mean", "std", "min", "max", "q05", "q25", "q50", "q75", "q95", "bf16_share")
    names |= {f"{side}_{name}" for side in ("proxy", "gold") for name in summary}
    names |= {f"{part}_{name}" for part in ("running", "eval") for name in ("loss", "accuracy")}
    names |= {f"run_{name}" for name in ("lr", "epochs", "batch_size", "precision", "weight_decay")}
    for side in ("proxy", "gold"):
        names |= {f"{side}_at_ends", f"{side}_repeated"}
        names |= {f"{side}_repeated_{what}" for what in ("value", "over")}
    measures = ("accuracy", "gain", "gain_z", "words")
    for reading in ("token", "cut", "plain"):
        names |= {f"{reading}_{measure}" for measure in measures}
        names.add(f"explained_by_{reading}")
    for measure in ("loss", "gain", "fall"):
        names |= {f"curve_{measure}{end}" for end in ("", "_low", "_high")}
    names |= {"curve_word", "curve_steps", "curve_pairs"}
    return names


def is_known(name: str) -> bool:
    """Is it in the code, or put together there: a bound of an interval, of training pairs?"""
    stem = re.sub("_(low|high)$", "", name)
    candidates = {name, stem, stem.removeprefix("train_"), stem.removeprefix("last_")}
    return bool(candidates & composed_names()) or any(f'"{word}"' in CODE for word in candidates)


def test_the_page_names_nothing_that_the_code_does_not_know():
    assert [name for name in sorted(NAMED) if name not in CODE and not is_known(name)] == []


@pytest.mark.parametrize("group", TABLE["numbers"])
def test_faults_know_no_number_that_is_not_measured(group):
    assert [name for name in sorted(TABLE["numbers"][group]) if not is_known(name)] == []


def test_faults_know_every_number_of_the_comparison_and_the_run():
    """Each scalar of compare and training_summary can be used in a fault; lists of bins cannot."""
    numbers = TABLE["numbers"]
    scalars = {name for name, value in compared().items() if not isinstance(value, list)}
    assert set(numbers["against_gold"]) == scalars
    assert set(numbers["training_run"]) >= summarised().keys()
    assert set(numbers["training_pairs"]) >= label_noise(GOOD, None, RESPONSES, GOLD).keys()
    groups = ("against_gold", "training_run", "training_pairs")
    all_of_it = dict.fromkeys([name for group in groups for name in numbers[group]], 0.5)
    followed = faults.derived(all_of_it | {"score_noise": 0.1})
    assert set(numbers["derived"]) == followed.keys()


def test_faults_name_a_healthy_bound_instead_of_repeating_its_number():
    repeated = []
    named = 0
    for block in TABLE["fault"]:
        for name, condition in block["when"].items():
            healthy = healthy_range(name)
            named += "healthy." in condition
            if healthy:
                own = (healthy.low, healthy.high, healthy.short, healthy.poor, healthy.failed)
                numbers = [float(n) for n in re.findall(r"(?<![\w.-])\d[\de.-]*", condition)]
                repeated += [f"{block['id']}: {name}" for n in numbers if n in own]
    assert repeated == []
    assert named > 10
