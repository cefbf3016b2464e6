import sys

import pytest
from conftest import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import vs_trl
from rmood.batching import Group, pack
from rmood.tokenization import encode, render

PAIRS = [Group([[7, 900, 11, 5], [7, 900, 12]]), Group([[7, 8, 3], [7, 8, 900, 900, 3]])]


def test_words_give_back_the_same_pairs_to_any_tokenizer():
    """Ids 7, 900, 11, 5 become the words "7 900" and "11 5", and those one token each: another id, the same lengths and prefixes."""
    tokenizer = vs_trl.tokenizer_of_words(PAIRS)
    assert len(tokenizer) == 2 + 7  # pad, eos, and 3 5 7 8 11 12 900
    for pair in PAIRS:
        row = vs_trl.as_words(pair)
        ids = encode([render(row[side], tokenizer) for side in ("chosen", "rejected")], tokenizer)
        assert [tokenizer.convert_ids_to_tokens(side) for side in ids] == [list(map(str, side)) for side in pair.rows]
        assert Group(ids).prefix == pair.prefix and min(map(min, ids)) > 1
        assert tokenizer.apply_chat_template(row["chosen"], tokenize=True)["input_ids"] == ids[0]  # TRL's way


def test_padding_counts_what_a_padded_pass_computes():
    """16 short pairs (2 + 3 tokens) and one of 30 + 4, in passes of 16: as they come 2 * 16 * 30 + 2 * 3, longest first 2 * 16 * 30
    + 2 * 3 too; with the long pair alone at the end 2 * 16 * 3 + 2 * 30. Unique tokens: 16 * 4 (one is shared) + 33."""
    short, long = Group([[7, 1], [7, 2, 3]]), Group([[7, *range(1, 30)], [7, 50, 51, 52]])
    unique = 16 * 4 + 33
    assert vs_trl.padded([long] + [short] * 16, grouped=False) == (2 * 16 * 30 + 2 * 3) / unique
    assert vs_trl.padded([short] * 16 + [long], grouped=False) == (2 * 16 * 3 + 2 * 30) / unique
    assert vs_trl.padded([short] * 16 + [long], grouped=True) == (2 * 16 * 30 + 2 * 3) / unique


def test_steps_have_the_pairs_that_they_should():
    """2 timed steps and a first one: 192 pairs, all different; of the first 64, each is shorter than the others on average."""
    rows, groups, tokenizer, _ = vs_trl.speed_rows(2, seed=0)
    assert len(rows) == len(groups) == 192
    assert len({str(row) for row in rows}) > 180  # a few real prompts have the same two answers
    tokens = [group.tokens for group in groups]
    assert max(tokens[:64]) < sum(tokens[64:]) / 128
    assert pack(groups[:2]).input_ids.numel() == tokens[0] + tokens[1]


def test_ratios_are_total_pairs_over_total_seconds():
    """2 pairs in 1 + 3 seconds are 0.5 pairs/s; TRL's defaults took 12 s, its best 6 s: 3.0 and 1.5 times less."""
    field = vs_trl.contestants("cpu")
    assert field[0].name == "train.py, defaults" and not field[0].settings and not field[1].settings
    step = lambda seconds, loss=0.7: dict(seconds=seconds, loss=loss, tokens=10, cpu_seconds=2 * seconds, peak_rss=2**30, peak_cuda=0)  # noqa: E731
    slow = {one.name: [step(99.0), step(5.0), step(7.0)] for one in field}
    slow |= {"train.py, bf16": [step(50.0), step(1.0), step(3.0)], "TRL, bf16": [step(50.0, 0.7007), step(2.0), step(4.0)]}
    numbers = vs_trl.measure(field, slow, PAIRS)
    assert numbers["contestants"]["train.py, bf16"]["pairs_per_s"] == 0.5
    assert numbers["ratio_default"] == pytest.approx(3.0) and numbers["ratio_best"] == pytest.approx(1.5) and numbers["sides"]["ratio_best"] == ("train.py, bf16", "TRL, bf16")
    assert numbers["cpu_ratio_default"] == pytest.approx(3.0)
    assert numbers["same_work"] and numbers["first_loss_spread_bf16"] == pytest.approx(1e-3)
    slow["TRL, float32"][0]["loss"] = 0.702  # 0.3% off in float32: not the same work
    assert not vs_trl.measure(field, slow, PAIRS)["same_work"]
