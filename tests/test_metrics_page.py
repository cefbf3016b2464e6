"""docs/metrics.md names every number that is logged or measured, and none that is not."""

import re

import numpy as np
from conftest import REPOSITORY

from rmood import diagnostics, faults

PAGE = (REPOSITORY / "docs" / "metrics.md").read_text(encoding="utf-8")
NAMED = set(re.findall(r"`([a-z0-9_]+)`", PAGE))


def explained(name: str) -> bool:
    """Named, or the same measure of gold or of an epoch's part."""
    twins = [name.replace("gold_", "proxy_", 1), name.removeprefix("train_"), name.removeprefix("eval_")]
    return name in NAMED or any(twin in NAMED for twin in twins)


def test_every_measurement_is_on_the_page():
    rng = np.random.default_rng(0)
    gold = rng.normal(size=(60, 2))
    texts = [["a" * rng.integers(1, 9), "b"] for _ in range(59)] + [["c", "c"]]
    measured = diagnostics.compare(gold + rng.normal(size=gold.shape), gold, texts).keys() | diagnostics.pair_quality(gold, gold).keys()
    measured |= diagnostics.expected_best_of_n(gold, gold)[0].keys() - {"n"}
    measured |= {name for rule in faults.RULES for name in rule.when} - {"falls_short", "centring_gap"}
    assert [name for name in sorted(measured) if not explained(name)] == []


def test_every_logged_name_is_on_the_page(toy_model_folder, tmp_path, monkeypatch):
    from conftest import make_pairs
    from test_train import train_here

    from rmood import records

    path = str(tmp_path / "pairs.jsonl")
    records.write_jsonl(path, make_pairs(16))
    lines = train_here(monkeypatch, toy_model_folder, path, tmp_path / "rm", "--eval-path", path)
    logged = set().union(*lines)
    assert {"loss", "eval_loss", "lost_updates_norms", "tokens_per_s"} <= logged
    assert [name for name in sorted(logged) if not explained(name)] == []


def test_the_page_names_nothing_that_the_code_does_not_know():
    code = "".join(path.read_text(encoding="utf-8") for path in [*(REPOSITORY / "rmood").glob("*.py"), REPOSITORY / "train.py", REPOSITORY / "evaluate.py"])
    kinds = ("head", "backbone", "embeddings", "attention", "mlp", "norms")
    made = {f"{what}_{kind}" for what in ("grad_norm", "lost_updates") for kind in kinds}
    made |= {f"{side}_{name}" for side in ("proxy", "gold", "train", "eval") for name in ("std", "margin_std", "across_std", "mean", "min", "max", "q05", "q25", "q50", "q75", "q95", "bf16_share", "loss", "accuracy", "length_correlation", "ties")}
    made |= {f"{way}_{of}" for way in ("token", "cut", "plain") for of in ("accuracy", "gain", "gain_z", "words")} | {"std_ratio", "margin_std_ratio", "across_std_ratio"}
    made |= {f"explained_by_{way}" for way in ("token", "cut", "plain")}
    assert [name for name in sorted(NAMED - made) if name not in code] == []
