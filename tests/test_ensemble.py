"""evaluate.py bon --combine: several proxies as one."""

import numpy as np
import pytest

import evaluate
from rmood.diagnosis.ensemble import COMBINATIONS, combined, gain_of_pick, standardised
from rmood.errors import UserError
from rmood.files.rows import read_json, write_json


def test_offsets_of_prompts_and_scales_of_models_do_not_count():
    """[1, 3] and [10, 30] + 7 are the same opinion: -1 and 1 after standardising."""
    one = np.array([[1, 3.0], [5, 3.0]])
    other = 10 * one + np.array([[7.0], [-400]])
    assert standardised(one) == pytest.approx(np.array([[-1, 1], [1, -1]]))
    for how in COMBINATIONS:
        assert combined([one, other], how) == pytest.approx(standardised(one))


def test_mean_min_and_mean_less_std_by_hand():
    """Of -1, 1 and 1, -1: the mean is 0 twice, the least -1 twice, mean - std 0 - 1."""
    one, other = np.array([[1, 3.0]]), np.array([[3, 1.0]])
    assert combined([one, other], "mean") == pytest.approx(np.zeros((1, 2)))
    assert combined([one, other], "min") == pytest.approx(-np.ones((1, 2)))
    assert combined([one, other], "mean-std") == pytest.approx(-np.ones((1, 2)))


def noisy_proxies(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    rng = np.random.default_rng(seed)
    gold = rng.normal(size=(400, 8))
    proxies = [gold + 1.5 * rng.normal(size=gold.shape) for _ in range(4)]
    return [scale * proxy for scale, proxy in zip((1, 5, 0.2, 2), proxies)], gold


def test_the_mean_of_independent_errors_picks_better_than_any_one():
    proxies, gold = noisy_proxies(0)
    together = combined(proxies, "mean")
    for proxy in proxies:
        assert gain_of_pick(together, proxy, gold).low > 0


def test_the_command_adds_a_curve_and_what_it_gains(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    proxies, gold = noisy_proxies(1)
    paths = []
    for number, proxy in enumerate(proxies[:2]):
        paths.append(str(tmp_path / f"proxy{number}.json"))
        write_json(paths[-1], proxy.tolist())
    write_json(str(tmp_path / "gold.json"), gold.tolist())
    argv = ["bon", "--rewards-path", *paths, "--gold-path", str(tmp_path / "gold.json")]
    argv += ["--report", str(tmp_path / "bon.html"), "--json", str(tmp_path / "out.json")]
    assert evaluate.main([*argv, "--combine", "mean"]) == 0
    numbers = read_json(str(tmp_path / "out.json"))
    last = {name: curve[-1]["gold"] for name, curve in numbers["curves"].items()}
    for path in paths:
        gain = numbers["gains"][path]
        assert gain["gain"] == pytest.approx(last["mean of 2"] - last[path])
        assert gain["gain_low"] < gain["gain"] < gain["gain_high"]
    assert "minus that of" in capsys.readouterr().out
    with pytest.raises(UserError, match="pass two or more"):
        evaluate.main(["bon", *argv[1:2], paths[0], *argv[4:], "--combine", "min"])
    write_json(paths[1], np.ones_like(gold).tolist())
    with pytest.raises(UserError, match="proxy1.json: all responses to a prompt have the same"):
        evaluate.main([*argv, "--combine", "min"])
