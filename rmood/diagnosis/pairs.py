"""Training pairs against the responses and the gold rewards that they were made from.

A row is a prompt with its K responses. The sides of a pair are the places of its two texts among
the responses of its row; equal responses make several readings of one pair.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import combinations, permutations
from typing import NamedTuple

import numpy as np

from ..files.tables import Conversation, Pair
from .measures import least_loss
from .scale import mean, share

Sides = tuple[int, int]  # places of the chosen and of the rejected text in a row
Check = tuple[str, list[str], str]  # name, a line for each failure, words for success


class Located(NamedTuple):
    """A pair that was found in a row."""

    number: int  # among the pairs
    name: str  # for messages: "pair 3 (row 7)"
    pair: Pair
    row: int
    readings: list[Sides]
    sides: Sides  # of the readings the one with the largest gold margin


# ---- where a pair comes from ---------------------------------------------------------------------


def sides_in_row(pair: Pair, prompt: Conversation | None, texts: list[str]) -> list[Sides]:
    """Every place of the chosen and the rejected text among the responses; empty if not there.

    prompt: that of the row, which must be the pair's; None is not compared.
    """
    if prompt is not None and prompt != pair.chosen[:-1]:
        return []
    places = permutations(range(len(texts)), 2)
    return [(i, j) for i, j in places if (texts[i], texts[j]) == _texts(pair)]


def rows_of(
    pairs: list[Pair], prompts: list[Conversation] | None, responses: list[list[str]]
) -> list[int | None]:
    """The row of each pair, or None where there is none.

    It is the pair's `index`; without one, the next row that holds both texts (pairs are written in
    the order of the rows).
    """
    rows_with: dict[tuple[str, str], list[int]] = defaultdict(list)  # two texts -> rows with both
    if any(pair.index is None for pair in pairs):
        for row, texts in enumerate(responses):
            for both in set(permutations(texts, 2)):
                rows_with[both].append(row)

    one_pair_a_row = len(responses[0]) == 2
    rows: list[int | None] = []
    start = 0  # the first row in which the next pair is expected
    for pair in pairs:
        row = pair.index
        if row is None:
            candidates = rows_with.get(_texts(pair), [])
            if prompts is not None:
                candidates = [i for i in candidates if prompts[i] == pair.chosen[:-1]]
            row = _first_from(start, candidates)
        if not isinstance(row, int) or not 0 <= row < len(responses):
            rows.append(None)
            continue
        rows.append(row)
        start = row + 1 if one_pair_a_row else row
    return rows


def _first_from(start: int, rows: list[int]) -> int | None:
    """The first of the rows, in rising order, that is not before start; else the first of all."""
    for row in rows:
        if row >= start:
            return row
    return rows[0] if rows else None


def best_side(sides: list[Sides], rewards: list[float]) -> Sides:
    """The reading with the largest gold margin, where equal texts make several."""
    return max(sides, key=lambda side: rewards[side[0]] - rewards[side[1]])


def _texts(pair: Pair) -> tuple[str, str]:
    return pair.chosen[-1]["content"], pair.rejected[-1]["content"]


# ---- checks of validate --------------------------------------------------------------------------


def pairs_against_gold(
    pairs: list[Pair],
    prompts: list[Conversation] | None,
    responses: list[list[str]],
    gold: list[list[float]],
    min_margin: float = 0.0,
    drop_identical: bool = False,
) -> list[Check]:
    """Are these the pairs that gold makes of the responses?

    min_margin, drop_identical: what preprocess.py was told to leave out; a pair is missing if it is
    neither that nor a gold tie.
    """
    located, lost = _locate(pairs, prompts, responses, gold)
    found = f"{len(located):,} pairs found among {len(responses):,} rows"
    preferred = f"{len(located):,} of {len(located):,} pairs"
    rewards_known = any(pair.chosen_reward is not None for pair in pairs)
    missing, left_out = _missing(located, responses, gold, min_margin, drop_identical)
    return [
        ("same prompt on both sides", _of_two_prompts(pairs), "yes"),
        ("texts are those of their row", lost, found),
        ("chosen is what gold prefers", _swapped(located, gold), preferred),
        (
            "rewards in the pairs are gold's",
            _other_rewards(located, gold),
            "yes" if rewards_known else "the pairs hold none",
        ),
        ("pairs follow the order of the rows", _out_of_order(located), "yes"),
        ("no pair twice", _repeated(located), "yes"),
        ("no pair is missing", missing, left_out),
    ]


def _of_two_prompts(pairs: list[Pair]) -> list[str]:
    return [
        f"pair {number}"
        for number, pair in enumerate(pairs)
        if pair.chosen[:-1] != pair.rejected[:-1]
    ]


def _locate(
    pairs: list[Pair],
    prompts: list[Conversation] | None,
    responses: list[list[str]],
    gold: list[list[float]],
) -> tuple[list[Located], list[str]]:
    """The pairs whose texts are in their row, and the names of the others."""
    located = []
    lost = []
    for number, (pair, row) in enumerate(zip(pairs, rows_of(pairs, prompts, responses))):
        name = f"pair {number} (row {pair.index if row is None else row})"
        readings = []
        if row is not None:
            prompt = None if prompts is None else prompts[row]
            readings = sides_in_row(pair, prompt, responses[row])
        if readings:
            sides = best_side(readings, gold[row])
            located.append(Located(number, name, pair, row, readings, sides))
        else:
            lost.append(name)
    return located, lost


def _swapped(located: list[Located], gold: list[list[float]]) -> list[str]:
    lines = []
    for found in located:
        chosen, rejected = (gold[found.row][side] for side in found.sides)
        if chosen <= rejected:
            lines.append(
                f"{found.name}: gold gives the chosen {chosen:g}, the rejected {rejected:g}"
            )
    return lines


def _other_rewards(located: list[Located], gold: list[list[float]]) -> list[str]:
    """Pairs that hold rewards which gold gives under no reading of them."""
    lines = []
    for found in located:
        pair, rewards = found.pair, gold[found.row]
        if pair.chosen_reward is None:
            continue
        by_gold = [(rewards[i], rewards[j]) for i, j in found.readings]
        if (pair.chosen_reward, pair.rejected_reward) not in by_gold:
            chosen, rejected = (rewards[side] for side in found.sides)
            lines.append(
                f"{found.name}: {pair.chosen_reward:g} and {pair.rejected_reward:g} in the pair, "
                f"{chosen:g} and {rejected:g} by gold"
            )
    return lines


def _out_of_order(located: list[Located]) -> list[str]:
    lines = []
    last = 0
    for found in located:
        if found.row < last:
            lines.append(f"{found.name} follows row {last}")
        last = found.row
    return lines


def _repeated(located: list[Located]) -> list[str]:
    lines = []
    first: dict[tuple[int, ...], int] = {}  # row and both places -> number of the pair
    for found in located:
        key = (found.row, *sorted(found.sides))
        if key in first:
            lines.append(f"{found.name} repeats pair {first[key]}")
        else:
            first[key] = found.number
    return lines


def _missing(
    located: list[Located],
    responses: list[list[str]],
    gold: list[list[float]],
    min_margin: float,
    drop_identical: bool,
) -> tuple[list[str], str]:
    """Pairs that gold makes and the file does not have; in words, those that were left out."""
    present = {(found.row, *sorted(found.sides)) for found in located}
    ties = 0
    as_told = 0
    missing = []
    for row, (rewards, texts) in enumerate(zip(gold, responses)):
        for i, j in combinations(range(len(rewards)), 2):
            if rewards[i] == rewards[j]:
                ties += 1
            elif abs(rewards[i] - rewards[j]) < min_margin:
                as_told += 1
            elif drop_identical and texts[i] == texts[j]:
                as_told += 1
            elif (row, i, j) not in present:
                missing.append(f"row {row}: gold gives {rewards[i]:g} and {rewards[j]:g}")
    left_out = f"{ties:,} gold ties left out"
    if as_told:
        left_out += f", and {as_told:,} pairs that preprocess.py was told to leave out"
    return missing, left_out


# ---- label noise ---------------------------------------------------------------------------------


def label_noise(
    pairs: list[Pair],
    prompts: list[Conversation] | None,
    responses: list[list[str]] | None,
    gold: list[list[float]] | None,
) -> dict[str, float]:
    """Do the training labels agree with gold? {} where gold's rewards of no pair are known.

    with_gold     number of pairs whose gold rewards are known: by the gold file for their texts,
                  else by the rewards that the pairs hold
    label_noise   share of them in which gold prefers the rejected side
    least_loss    the least loss that such labels allow, nats
    scores_against, scores_against_low   share of the pairs that hold rewards themselves in which
                  these prefer the rejected side: soft labels and margins are made of them
    """
    rows = [None] * len(pairs)
    if responses and gold:
        rows = rows_of(pairs, prompts, responses)
    known = 0
    wrong = 0
    scores_against = []
    for pair, row in zip(pairs, rows):
        chosen, rejected = pair.chosen_reward, pair.rejected_reward
        if chosen is not None and rejected is not None:
            scores_against.append(float(chosen < rejected))
        if row is not None:
            prompt = None if prompts is None else prompts[row]
            readings = sides_in_row(pair, prompt, responses[row])
            if readings:
                chosen, rejected = (gold[row][side] for side in best_side(readings, gold[row]))
        if chosen is None or rejected is None:
            continue
        known += 1
        wrong += chosen < rejected
    if known == 0:
        return {}
    noise = wrong / known
    found = {"label_noise": noise, "with_gold": known, "least_loss": least_loss(noise)}
    if scores_against:
        of_scores = share(np.array(scores_against), np.arange(len(scores_against)))
        found |= {"scores_against": of_scores.value, "scores_against_low": of_scores.low}
    return found


# ---- texts ---------------------------------------------------------------------------------------


def not_of_their_row(
    pairs: list[Pair], prompts: list[Conversation] | None, responses: list[list[str]]
) -> dict[str, float]:
    """Are the texts of the pairs those of the row that they were made from?

    prompts: as many as responses, or None.

    foreign_share, foreign_share_low   of the pairs that name their row, those whose two responses
                                       are not both there, or whose question is not, where the
                                       prompts are known; {} where none names one
    """
    foreign = []
    for pair in pairs:
        if pair.index is None or not 0 <= pair.index < len(responses):
            continue
        own = bool(sides_in_row(pair, None, responses[pair.index]))
        if prompts is not None:
            own &= _question(pair.chosen[:-1]) == _question(prompts[pair.index])
        foreign.append(not own)
    if not foreign:
        return {}
    found = share(np.array(foreign, dtype=float), np.arange(len(foreign)))
    return {"foreign_share": found.value, "foreign_share_low": found.low}


def equal_sides(pairs: list[Pair]) -> dict[str, float]:
    """equal_sides, equal_sides_low: share of the pairs whose two responses are the same text."""
    same = [float(chosen == rejected) for chosen, rejected in map(_texts, pairs)]
    found = share(np.array(same), np.arange(len(same)))
    return {"equal_sides": found.value, "equal_sides_low": found.low}


def repeats_prompt(conversation: Conversation) -> bool:
    """Does the response begin with the whole of the last question?"""
    question = _question(conversation[:-1])
    return bool(question) and conversation[-1]["content"].lstrip().startswith(question)


def _question(prompt: Conversation) -> str:
    """The user's last turn; "" without one."""
    questions = [one["content"].strip() for one in prompt if one["role"] == "user"]
    return questions[-1] if questions else ""


def text_shift(pairs: list[Pair], conversations: list[list[Conversation]]) -> dict[str, float]:
    """Are the test texts of the kind that the training pairs are of?

    unknown_turns         share of the test prompts with a number of turns that no training pair has
    unseen_words, ...     share of the words in the test responses that no pair of the first half of
                          the training pairs has; with _low and _high
    train_unseen_words, ...   the same of the responses of the second half
    """
    turns = {_turns(pair.chosen) for pair in pairs}
    unknown = [_turns(row[0]) not in turns for row in conversations]
    found = {"unknown_turns": float(np.mean(unknown))}
    known = {
        word
        for pair in pairs[::2]
        for side in (pair.chosen, pair.rejected)
        for turn in side
        for word in _words(turn["content"])
    }

    def unseen(conversation: Conversation) -> float:
        words = _words(conversation[-1]["content"])
        return float(np.mean([word not in known for word in words])) if words else 0.0

    of_test = np.array([[unseen(one) for one in row] for row in conversations])
    row = np.arange(len(of_test)).repeat(of_test.shape[1])
    found |= mean(of_test.ravel(), row).as_numbers("unseen_words")
    rest = pairs[1::2]
    if not rest:
        return found
    of_rest = np.array([[unseen(pair.chosen), unseen(pair.rejected)] for pair in rest])
    _, prompt = np.unique([pair.prompt_key for pair in rest], return_inverse=True)
    return found | mean(of_rest.ravel(), prompt.repeat(2)).as_numbers("train_unseen_words")


def _turns(conversation: Conversation) -> int:
    return sum(turn["role"] != "system" for turn in conversation)


def _words(text: str) -> list[str]:
    return text.lower().split()


# What shows in a text without reading it. Where one of these tells chosen from rejected, a model
# learns it and nothing else (annotation artifacts: Gururangan et al. 2018).
CUES = {
    "it ends in white space": lambda text: text != text.rstrip(),
    "it begins with white space": lambda text: text != text.lstrip(),
    "its last character is none of . ! ?": lambda text: text.rstrip()[-1:] not in (*".!?",),
    "it begins with a small letter": lambda text: text[:1].islower(),
    "it has several lines": lambda text: "\n" in text.strip(),
    "it has Markdown": lambda text: bool(re.search(r"\*\*|^#|```", text, re.MULTILINE)),
    "it has a template's token": lambda text: bool(re.search(r"<\|.*?\|>|</?s>|\[/?INST", text)),
}
COMMON_WORDS = 10  # so many of the commonest first words, and of the last, are cues too


def cue_numbers(
    pairs: list[Pair], responses: list[list[str]], gold: np.ndarray
) -> dict[str, float | str]:
    """Does one look at a training pair tell which side is the chosen one? Length is not among CUES.

    responses, (P, K) gold: of the test prompts.

    cue                     in words: the cue that orders the training pairs best
    cue_right, _low, _high  share of them that it orders right; those whose sides both have it, or
                            both do not, count half
    cue_test_right, ...     the same of the test pairs that gold orders
    """
    test_pairs, test_prompt = _ordered_pairs(responses, gold)
    if not test_pairs:
        return {}
    train_pairs = [_texts(pair) for pair in pairs]
    _, prompt = np.unique([pair.prompt_key for pair in pairs], return_inverse=True)

    cues = CUES | _common_words([text for both in train_pairs for text in both])
    by_cue = {words: _order_by(cue, train_pairs) for words, cue in cues.items()}
    words = max(by_cue, key=lambda words: abs(by_cue[words].mean() - 0.5))
    right = by_cue[words]
    test_right = _order_by(cues[words], test_pairs)
    which = "chosen"
    if right.mean() < 0.5:
        which, right, test_right = "rejected", 1 - right, 1 - test_right
    found = {"cue": f"in the {which} response, {words}"}
    found |= share(right, prompt).as_numbers("cue_right")
    return found | share(test_right, np.array(test_prompt)).as_numbers("cue_test_right")


def _ordered_pairs(
    responses: list[list[str]], gold: np.ndarray
) -> tuple[list[tuple[str, str]], list[int]]:
    """((better, worse) texts, row) of all pairs that (P, K) gold orders."""
    texts = []
    rows = []
    for row, (of_row, rewards) in enumerate(zip(responses, gold)):
        for i, j in permutations(range(len(of_row)), 2):
            if rewards[i] > rewards[j]:
                texts.append((of_row[i], of_row[j]))
                rows.append(row)
    return texts, rows


def _order_by(cue: Callable, pairs: list[tuple[str, str]]) -> np.ndarray:
    """(N,) 1 where the first text alone has the cue, 0 where the second alone, else 1/2."""
    has = np.array([[cue(text) for text in both] for both in pairs], dtype=float)
    return (1 + has[:, 0] - has[:, 1]) / 2


def _common_words(texts: list[str]) -> dict[str, Callable]:
    """Words -> cue: the commonest first words, and the commonest last ones."""
    cues = {}
    for words, place in (("it begins with", 0), ("it ends with", -1)):
        counts = Counter(text.split()[place] for text in texts if text.split())
        for word, _ in counts.most_common(COMMON_WORDS):
            cues[f"{words} {word!r}"] = functools.partial(_has_word, place, word)
    return cues


def _has_word(place: int, word: str, text: str) -> bool:
    words = text.split()
    return bool(words) and words[place] == word
