"""The log of a run: metrics.jsonl and TensorBoard."""

import dataclasses
import json

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from training import read_metrics

from rmood.runlog import RunLog, discard_log


@pytest.fixture
def write_log(tmp_path, process):
    """write_log([1, 2]): a log of these steps in tmp_path, after `last_step` earlier ones."""

    def write_log(steps, last_step: int = 0):
        log = RunLog(str(tmp_path), process, last_step=last_step)
        for step in steps:
            log.write({"step": step, "loss": 1 / step}, timing={"pairs_per_s": 8.0})
        log.close()

    return write_log


def steps_logged(folder) -> list[int]:
    return [line["step"] for line in read_metrics(folder)]


def test_a_line_has_its_metrics_first_and_its_timing_last(write_log, tmp_path):
    write_log([4])
    line = json.dumps({"step": 4, "loss": 0.25, "pairs_per_s": 8.0})
    assert (tmp_path / "metrics.jsonl").read_text() == line + "\n"


def test_lines_of_steps_that_run_again_are_removed(write_log, tmp_path):
    write_log([1, 2, 3, 4, 5])
    write_log([4, 5, 6], last_step=3)
    assert steps_logged(tmp_path) == [1, 2, 3, 4, 5, 6]


def test_a_line_cut_short_by_a_kill_is_left_out(write_log, tmp_path):
    write_log([1, 2])
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "lo')
    write_log([3], last_step=3)
    assert steps_logged(tmp_path) == [1, 2, 3]


def test_a_new_run_begins_with_an_empty_file(write_log, tmp_path):
    write_log([1, 2])
    write_log([1])
    assert steps_logged(tmp_path) == [1]


def test_only_rank_0_writes(tmp_path, process):
    log = RunLog(str(tmp_path / "rm"), dataclasses.replace(process, rank=1))
    log.write({"step": 1, "loss": 0.5})
    log.histogram("rewards/eval", np.zeros((3, 2)), step=1)
    log.close()
    assert not (tmp_path / "rm").exists()


def test_tensorboard_groups_steps_and_the_parts_of_an_epoch(tmp_path, process):
    log = RunLog(str(tmp_path), process)
    log.write({"step": 1, "grad_norm": 0.5}, timing={"pairs_per_s": 8.0})
    parts = {"running": {"loss": 0.75}, "eval": {"reward_mean": 0.25}}
    parts["eval_hh"] = {"scale": None, "scale_word": "cannot tell", "bits": 1}
    log.write_parts({"step": 2, "epoch": 1}, parts)
    log.histogram("rewards/eval", np.array([[1.0, 0.0], [3.0, 1.0]]), step=2)
    log.close()
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    tags = set(board.Tags()["scalars"])
    assert {"step/grad_norm", "step/pairs_per_s", "running/loss", "eval/reward_mean"} <= tags
    assert {tag for tag in tags if "hh" in tag} == {"eval_hh/bits"}  # no word, no None
    line = read_metrics(tmp_path)[1]
    assert line == {
        "step": 2,
        "epoch": 1,
        "running_loss": 0.75,
        "eval_reward_mean": 0.25,
        "eval_hh_scale": None,
        "eval_hh_scale_word": "cannot tell",
        "eval_hh_bits": 1,
    }
    assert board.Scalars("running/loss")[0].value == 0.75
    assert board.Scalars("running/loss")[0].step == 2
    histograms = {f"rewards/eval_{side}" for side in ("chosen", "rejected", "margin")}
    assert set(board.Tags()["histograms"]) == histograms
    assert board.Histograms("rewards/eval_margin")[0].histogram_value.max == 2.0


def test_discarding_the_log_leaves_all_other_files(write_log, tmp_path):
    write_log([1, 2])
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    discard_log(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.json"]
    discard_log(str(tmp_path))  # nothing there: no error
