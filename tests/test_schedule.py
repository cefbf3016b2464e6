"""The learning rate, by hand and beside transformers' own."""

import math

import pytest

from rmood.schedule import learning_rate, warmup_steps


def test_the_first_step_learns_the_warmup_ends_at_the_peak_and_the_last_step_has_the_floor():
    rates = [learning_rate(step, 100, 5, peak=1.0, floor=0.01) for step in range(1, 101)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[-1] == pytest.approx(0.01)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_halfway_down_the_cosine_is_the_mean_of_peak_and_floor():
    assert learning_rate(52, 100, 4, peak=1.0, floor=0.2) == pytest.approx(0.6)


def test_it_is_hugging_faces_cosine_one_step_later():
    """It counts from 0: s / w, then (1 + cos(pi (s - w) / (T - w))) / 2, s = 0 ... T - 1."""
    total = 40
    warmup = 8
    theirs = []
    for s in range(total):
        if s < warmup:
            theirs.append(s / warmup)
        else:
            theirs.append((1 + math.cos(math.pi * (s - warmup) / (total - warmup))) / 2)
    ours = [learning_rate(step, total, warmup, peak=1.0) for step in range(1, total + 1)]
    assert ours[:-1] == pytest.approx(theirs[1:])


@pytest.mark.parametrize("total", [1, 2, 3])
def test_tiny_runs_start_at_the_peak(total):
    assert warmup_steps(total, 0.05) == 1
    assert learning_rate(1, total, 1, peak=3.0) == 3.0
