"""Training pairs against the gold rewards that they were made from."""

import pytest

from rmood.diagnosis.pairs import label_noise, pairs_against_gold, sides_in_row
from rmood.files.tables import Pair


def pair(i: int, chosen: str, rejected: str, **more) -> Pair:
    prompt = [{"role": "user", "content": f"prompt {i}"}]
    sides = [[*prompt, {"role": "assistant", "content": text}] for text in (chosen, rejected)]
    return Pair(*sides, **more)


PROMPTS = [[{"role": "user", "content": f"prompt {i}"}] for i in range(4)]
RESPONSES = [["a", "b"], ["c", "d"], ["e", "e"], ["g", "h"]]
GOLD = [[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [5.0, 4.0]]
GOOD = [pair(0, "a", "b", index=0), pair(1, "d", "c", index=1), pair(3, "g", "h", index=3)]


def failures(
    pairs, responses=RESPONSES, gold=GOLD, prompts=PROMPTS, **made_with
) -> dict[str, list[str]]:
    checks = pairs_against_gold(pairs, prompts, responses, gold, **made_with)
    return {name: wrong for name, wrong, _ in checks if wrong}


@pytest.mark.parametrize("prompts", [PROMPTS, None])
def test_pairs_as_gold_makes_them_pass_with_and_without_an_index(prompts):
    assert failures(GOOD, prompts=prompts) == {}
    without_index = [pair(0, "a", "b"), pair(1, "d", "c"), pair(3, "g", "h")]
    assert failures(without_index, prompts=prompts) == {}


def test_what_passed_is_said_in_numbers():
    said = {name: words for name, _, words in pairs_against_gold(GOOD, PROMPTS, RESPONSES, GOLD)}
    assert said["texts are those of their row"] == "3 pairs found among 4 rows"
    assert said["chosen is what gold prefers"] == "3 of 3 pairs"
    assert said["rewards in the pairs are gold's"] == "the pairs hold none"
    assert said["no pair is missing"] == "1 gold ties left out"


PREFERS = "chosen is what gold prefers"
TEXTS = "texts are those of their row"


@pytest.mark.parametrize(
    "pairs, check, line",
    [
        (
            [GOOD[0], pair(1, "c", "d", index=1), GOOD[2]],
            PREFERS,
            "pair 1 (row 1): gold gives the chosen 0, the rejected 3",
        ),
        ([GOOD[0], pair(1, "d", "x", index=1), GOOD[2]], TEXTS, "pair 1 (row 1)"),
        ([pair(9, "a", "b", index=0), *GOOD[1:]], TEXTS, "pair 0 (row 0)"),  # another prompt
        ([*GOOD, pair(3, "g", "h", index=99)], TEXTS, "pair 3 (row 99)"),
        (
            [GOOD[1], GOOD[0], GOOD[2]],
            "pairs follow the order of the rows",
            "pair 1 (row 0) follows row 1",
        ),
        (GOOD[:2], "no pair is missing", "row 3: gold gives 5 and 4"),
        ([*GOOD, GOOD[2]], "no pair twice", "pair 3 (row 3) repeats pair 2"),
        (
            [pair(0, "a", "b", index=0, chosen_reward=2.0, rejected_reward=1.5), *GOOD[1:]],
            "rewards in the pairs are gold's",
            "pair 0 (row 0): 2 and 1.5 in the pair, 2 and 1 by gold",
        ),
        (
            [Pair(GOOD[0].chosen, GOOD[1].rejected, index=0), *GOOD[1:]],
            "same prompt on both sides",
            "pair 0",
        ),
    ],
)
def test_each_fault_of_the_pairs_is_named_with_its_row(pairs, check, line):
    assert failures(pairs)[check] == [line]


def test_a_fault_fails_no_other_check():
    assert failures([GOOD[1], GOOD[0], GOOD[2]]).keys() == {"pairs follow the order of the rows"}
    assert failures(GOOD[:2]).keys() == {"no pair is missing"}
    assert failures([*GOOD, GOOD[2]]).keys() == {"no pair twice"}


def test_pairs_left_out_on_purpose_are_not_missing():
    """Gold margins 1, 3, tie, 1: a minimum margin of 2 leaves the pair of row 1 alone."""
    assert failures([GOOD[1]], min_margin=2.0) == {}
    checks = pairs_against_gold([GOOD[1]], PROMPTS, RESPONSES, GOLD, min_margin=2.0)
    words = "1 gold ties left out, and 2 pairs that preprocess.py was told to leave out"
    assert checks[-1] == ("no pair is missing", [], words)
    gold = [*GOLD[:2], [1.0, 2.0], GOLD[3]]  # now prefers one of the identical responses
    assert failures(GOOD, gold=gold, drop_identical=True) == {}
    assert failures(GOOD, gold=gold).keys() == {"no pair is missing"}


def test_three_responses_make_up_to_three_pairs_of_a_row():
    responses, gold = [["a", "b", "c"]], [[1.0, 3.0, 2.0]]
    pairs = [pair(0, "b", "a"), pair(0, "c", "a"), pair(0, "b", "c")]
    assert failures(pairs, responses, gold, PROMPTS[:1]) == {}
    missing = failures(pairs[:2], responses, gold, PROMPTS[:1])
    assert missing == {"no pair is missing": ["row 0: gold gives 3 and 2"]}


def test_equal_responses_make_several_readings_of_which_gold_s_best_counts():
    """Responses a, b, a with gold rewards 0, 1, 2: a beats b only as the third response."""
    pairs = [pair(0, "a", "b")]
    assert sides_in_row(pairs[0], None, ["a", "b", "a"]) == [(0, 1), (2, 1)]
    wrong = failures(pairs, [["a", "b", "a"]], [[0.0, 1.0, 2.0]], PROMPTS[:1])
    assert PREFERS not in wrong and TEXTS not in wrong


def test_labels_are_compared_with_the_gold_file_or_the_pairs_own_rewards():
    good, bad = pair(0, "a", "b", index=0), pair(1, "c", "d", index=1)
    responses, gold = [["a", "b"], ["c", "d"]], [[2.0, 1.0], [1.0, 2.0]]
    found = label_noise([good, bad], None, responses, gold)
    assert (found["label_noise"], found["with_gold"]) == (0.5, 2)
    assert found["least_loss"] == pytest.approx(0.6931, abs=1e-4)
    assert label_noise([good, bad], None, None, None) == {}
    own = [
        pair(0, "x", "y", chosen_reward=1.0, rejected_reward=2.0),
        pair(1, "x", "y", chosen_reward=2.0, rejected_reward=1.0),
    ]
    assert label_noise(own, None, None, None)["label_noise"] == 0.5
