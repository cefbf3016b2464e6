"""Probes: scores computed by the model in other ways.

At which token does its head read the reward, and was it trained on that one? Each probe scores some
of the data in another way and returns plain numbers for the rules of faults.toml. They cost a few
hundred forward passes of single conversations.

N conversations, L tokens, D hidden size, P prompts with K responses each
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from ..batching import Group, pack
from ..files.tables import Conversation, Pair
from ..loading import load_reward_model
from ..model import RewardModel
from ..scoring import Scorer, score_groups
from ..tokenization import encode, render
from .measures import rank_correlation, within_prompt_margins

SAME = 0.02  # of the rewards' spread: two ways of scoring that agree to this are the same way
OTHER_TOKENS = {  # where else a reward may be read: its index once a pad follows the row
    "the third token from the end": -4,
    "the token before the last": -3,
    "a pad after the end": -1,
}
RIDGE = 0.1  # of the features' mean square norm, added to the diagonal of the linear probe


# ---- rewards, scored in a plain way ------------------------------------------------------------


@contextlib.contextmanager
def plain_attention(model: RewardModel) -> Iterator[torch.nn.Module]:
    """Inside, the backbone uses transformers' own attention, with the mask that it is given."""
    model.backbone.set_attn_implementation("sdpa")
    try:
        yield model.backbone
    finally:
        model.backbone.set_attn_implementation("rmood")


def token_rows(scorer: Scorer, conversations: list[Conversation]) -> list[Sequence[int]]:
    """N conversations -> N rows of token ids, as they are scored."""
    groups, _ = scorer.groups([[conversation] for conversation in conversations])
    return [group.rows[0] for group in groups]


@torch.no_grad()
def token_rewards(scorer: Scorer, rows: list[Sequence[int]]) -> list[np.ndarray]:
    """N rows of token ids -> N arrays (L,) of rewards: the head applied at each token.

    The head is trained at the last token only. By transformers' own attention, rows one by one: the
    packed pass is compared with it.
    """
    rewards = []
    with plain_attention(scorer.model) as backbone:
        for row in rows:
            hidden = _hidden_states(backbone, row, scorer.process.device)
            rewards.append(scorer.model.score(hidden.float())[:, 0].cpu().numpy())
    return rewards


@torch.no_grad()
def last_hidden_states(scorer: Scorer, rows: list[Sequence[int]]) -> np.ndarray:
    """N rows of token ids -> (N, D) hidden states of their last tokens: all that the head sees."""
    states = []
    with plain_attention(scorer.model) as backbone:
        for row in rows:
            hidden = _hidden_states(backbone, row, scorer.process.device)
            states.append(hidden[-1].float().cpu().numpy())
    return np.array(states)


def _hidden_states(backbone, row: Sequence[int], device: torch.device) -> torch.Tensor:
    """One row of token ids -> (L, D)."""
    input_ids = torch.tensor([row], device=device)
    return backbone(input_ids=input_ids, use_cache=False).last_hidden_state[0]


def last_rewards(scorer: Scorer, rows: list[Sequence[int]]) -> np.ndarray:
    """N rows of token ids -> (N,) rewards at their last tokens, rows one by one."""
    return np.array([rewards[-1] for rewards in token_rewards(scorer, rows)])


@torch.no_grad()
def packed_rewards(scorer: Scorer, rows: list[Sequence[int]]) -> np.ndarray:
    """N rows of token ids -> (N,) rewards, all rows in one packed pass."""
    batch = pack([Group([row]) for row in rows]).to(scorer.process.device)
    rewards = scorer.model(batch)[0]
    return np.array(rewards.tolist())


@torch.no_grad()
def padded_rewards(scorer: Scorer, rows: list[Sequence[int]], side: str) -> np.ndarray:
    """N rows of token ids -> (N,) rewards, in one pass, padded on one side: "left" or "right"."""
    device = scorer.process.device
    length = max(len(row) for row in rows)
    pad = scorer.tokenizer.pad_token_id or 0
    input_ids = torch.full((len(rows), length), pad)
    mask = torch.zeros(len(rows), length, dtype=torch.long)
    last = []
    for i, row in enumerate(rows):
        begin = length - len(row) if side == "left" else 0
        end = begin + len(row)
        input_ids[i, begin:end] = torch.tensor(row)
        mask[i, begin:end] = 1
        last.append(end - 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with plain_attention(scorer.model) as backbone:
        hidden = backbone(
            input_ids=input_ids.to(device),
            attention_mask=mask.to(device),
            position_ids=positions.to(device),
            use_cache=False,
        ).last_hidden_state  # (N, L, D)
    pooled = hidden[torch.arange(len(rows)), last]  # (N, D)
    return np.array(scorer.model.score(pooled.float())[:, 0].tolist())


# ---- what does a reward depend on? -------------------------------------------------------------


def batch_dependence(scorer: Scorer, conversations: list[Conversation]) -> float:
    """How much a reward depends on the other rows of its batch, in units of the rewards' std.

    The largest difference between five ways to score the same conversation: packed with the others;
    packed in reverse order; alone; padded on the right; padded on the left.
    """
    rows = token_rows(scorer, conversations)
    ways = np.array(
        [
            packed_rewards(scorer, rows),
            packed_rewards(scorer, rows[::-1])[::-1],
            last_rewards(scorer, rows),
            padded_rewards(scorer, rows, "right"),
            padded_rewards(scorer, rows, "left"),
        ]
    )  # (5, N)
    largest = np.ptp(ways, axis=0).max()
    return float(largest / (ways[0].std() or 1.0))


def response_token_rewards(scorer: Scorer, conversation: Conversation) -> list[tuple[str, float]]:
    """Each token of the response and of the template's closing, with the head's reward there."""
    text = render(conversation, scorer.tokenizer)
    encoded = scorer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    rewards = token_rewards(scorer, [encoded["input_ids"][: scorer.max_length]])[0]
    response_begin = max(text.rfind(conversation[-1]["content"].strip()), 0)
    found = []
    for (begin, end), reward in zip(encoded["offset_mapping"], rewards):
        if end > response_begin:
            found.append((text[max(begin, response_begin) : end], float(reward)))
    return found


def plain_texts(conversation: Conversation) -> list[str]:
    """The conversation without a chat template, in the usual ways."""
    contents = [message["content"] for message in conversation if message["content"]]
    joined = [separator.join(contents) for separator in ("\n\n", "\n", " ", "")]
    return [*joined, contents[-1]]


def readings(scorer: Scorer, conversations: list[Conversation]) -> dict[str, np.ndarray]:
    """(N,) rewards by each way to read a conversation.

    read            at the last token of the rendered text, which is the right way
    <OTHER_TOKENS>  at another token
    cut_<tokens>    at the last token of the text cut to so many tokens, for ten lengths
    plain_<i>       at the last token of plain text, without chat template: `plain_texts`
    """
    rows = token_rows(scorer, conversations)
    pad = scorer.tokenizer.pad_token_id
    padded = [[*row, row[-1] if pad is None else pad] for row in rows]
    by_token = token_rewards(scorer, padded)

    found = {"read": np.array([rewards[-2] for rewards in by_token])}
    for words, at in OTHER_TOKENS.items():
        found[words] = np.array([rewards[max(at, -len(rewards))] for rewards in by_token])

    lengths = [len(row) for row in rows]
    cuts = {int(np.quantile(lengths, share)) for share in np.linspace(0.05, 0.95, 10)}
    for cut in sorted(cuts):
        ends = [min(cut, length) - 1 for length in lengths]
        found[f"cut_{cut}"] = np.array([rewards[end] for rewards, end in zip(by_token, ends)])

    texts_by_way = zip(*[plain_texts(conversation) for conversation in conversations])
    for i, texts in enumerate(texts_by_way):
        found[f"plain_{i}"] = last_rewards(scorer, encode(list(texts), scorer.tokenizer))
    return found


def kind_of(way: str) -> str:
    """Of a way in `readings`: "token", "cut", "plain" or "read"."""
    return "token" if way in OTHER_TOKENS else way.split("_")[0]


def training_reading(scorer: Scorer, pairs: list[Pair]) -> dict:
    """Which way to read its training pairs makes the model right most often?

    read_accuracy     share of pairs ranked right, read at the last token of the rendered text
    <kind>_accuracy   the same for the best way of each kind: token, cut and plain
    <kind>_words      which way that is
    <kind>_gain       for the best kind: its accuracy minus read_accuracy
    <kind>_gain_z     that gain in standard errors (McNemar's test: over the pairs in which just one
                      of the two ways is right)
    """
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    is_right = {}  # way -> (pairs,) 1.0 where the chosen side gets the larger reward
    for way, rewards in readings(scorer, sides).items():
        is_right[way] = (rewards[::2] > rewards[1::2]).astype(float)

    found = {"read_accuracy": float(is_right["read"].mean())}
    best_way = {}
    for kind in ("token", "cut", "plain"):
        ways = [way for way in is_right if kind_of(way) == kind]
        best_way[kind] = max(ways, key=lambda way: is_right[way].mean())
        found[f"{kind}_accuracy"] = float(is_right[best_way[kind]].mean())
        found[f"{kind}_words"] = best_way[kind].removeprefix("cut_")

    kind = max(best_way, key=lambda kind: found[f"{kind}_accuracy"])
    gain = is_right[best_way[kind]] - is_right["read"]
    differing_pairs = max(1.0, np.abs(gain).sum())
    found[f"{kind}_gain"] = float(gain.mean())
    found[f"{kind}_gain_z"] = float(gain.sum() / differing_pairs**0.5)
    return found


def explain_rewards(
    scorer: Scorer,
    conversations: list[list[Conversation]],
    rewards: np.ndarray,
    model: str,
    sample: int = 128,
) -> dict:
    """Does the named model reproduce these (P, K) rewards, and if not, which misreading does?

    reproduced            rank correlation with the model's own rewards
    order_differs         1 if they are the same rewards in another order
    order_same            the share of rows that agree all the same
    explained_by_<kind>   1 if another way to read the conversations gives them: cut, token or plain
    cut_at, cut_share     tokens that are left by a cut, and the share of conversations it shortens
    explained_token       the way to read, in words
    """
    groups, _ = scorer.groups(conversations)
    own = np.array(
        score_groups(
            scorer.model, groups, scorer.process, scorer.tokens_per_pass, desc="scoring again"
        )
    )
    numbers = {
        "model": Path(model).name,
        "reproduced": rank_correlation(rewards.ravel(), own.ravel()),
        "order_differs": 0.0,
    }
    tolerance = SAME * (own.std() or 1.0)
    same = np.abs(rewards - own) < tolerance
    if same.mean() > 0.98:
        return numbers

    difference_in_order = np.abs(np.sort(rewards, axis=None) - np.sort(own, axis=None)).mean()
    if difference_in_order < tolerance:
        order_same = float(same.all(axis=1).mean())
        return numbers | {"order_differs": 1.0, "order_same": order_same}

    lengths = np.array([len(row) for group in groups for row in group.rows]).reshape(own.shape)
    some_agree = same.any() and not same.all()
    if some_agree and lengths[same].max() < lengths[~same].min():  # all short ones, no long one
        return numbers | {
            "explained_by_cut": 1.0,
            "cut_at": float(lengths[same].max()),
            "cut_share": float((~same).mean()),
        }

    sampled = [conversation for row in conversations[:sample] for conversation in row]
    for way, as_read in readings(scorer, sampled).items():
        if np.abs(as_read - rewards[:sample].ravel()).mean() < tolerance:
            kind = kind_of(way)
            numbers |= {f"explained_by_{kind}": 1.0, "explained_token": f"at {way}"}
            if kind == "cut":
                numbers |= {"cut_at": float(way.removeprefix("cut_")), "cut_share": 1.0}
            return numbers
    return numbers


# ---- what did training change? -----------------------------------------------------------------


def moved_weights(folder: str, start: str) -> dict:
    """How far training moved the backbone from the model in the folder `start`.

    backbone_moved     ||after - before|| / ||before|| over all weights compared
    backbone_tensors   how many tensors those are

    Empty where `start` is not a local folder with weights of the same shapes.
    """
    before = _files_of_weights(start)
    after = _files_of_weights(folder)
    square_difference = 0.0
    square_norm = 0.0
    count = 0
    for name in after:
        if name not in before or name.startswith(("score.", "lm_head.")):
            continue
        with safe_open(before[name], "pt") as old, safe_open(after[name], "pt") as new:
            old_weight = old.get_tensor(name)
            new_weight = new.get_tensor(name)
        if old_weight.shape == new_weight.shape:
            # a start in float32 and a result in bf16: rounding is no movement
            old_weight = old_weight.to(new_weight.dtype).float()
            square_difference += (new_weight.float() - old_weight).square().sum().item()
            square_norm += old_weight.square().sum().item()
            count += 1
    if not count:
        return {}
    return {
        "backbone_moved": (square_difference / square_norm) ** 0.5,
        "backbone_tensors": float(count),
        "start": Path(start).name,
    }


def _files_of_weights(folder: str) -> dict[str, Path]:
    """Name of each weight in a model's folder -> the file that holds it."""
    file_of = {}
    for path in sorted(Path(folder).glob("*.safetensors")):
        with safe_open(path, "pt") as tensors:
            file_of |= dict.fromkeys(tensors.keys(), path)
    return file_of


def linear_probe(
    scorer: Scorer,
    start: str,
    pairs: list[Pair],
    conversations: list[list[Conversation]],
    gold: np.ndarray,
) -> dict:
    """probe_match: the match with gold that any training must beat.

    It is that of a linear head on the frozen model in the folder `start`, where training began,
    fitted by ridge regression of the labels on the difference of a training pair's pooled states.
    conversations, gold: the (P, K) test conversations and their gold rewards.
    """
    dtype = next(scorer.model.backbone.parameters()).dtype
    untrained = load_reward_model(start, dtype, seed=0, device=scorer.process.device).eval()
    base = dataclasses.replace(scorer, model=untrained, name=start)

    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    states = last_hidden_states(base, token_rows(base, sides))
    differences = states[::2] - states[1::2]  # (pairs, D); every label is +1
    gram = differences @ differences.T
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    head = differences.T @ np.linalg.solve(gram + penalty, np.ones(len(gram)))  # (D,)

    test = [conversation for row in conversations for conversation in row]
    rewards = last_hidden_states(base, token_rows(base, test)) @ head
    margin = within_prompt_margins(rewards.reshape(gold.shape))
    gold_margin = within_prompt_margins(gold)
    compared = gold_margin != 0
    agree = margin[compared] * gold_margin[compared] > 0
    return {"probe_match": float(agree.mean())}


def config_numbers(folder: str, scorer: Scorer, conversation: Conversation) -> dict:
    """Settings in config.json that can make scoring wrong.

    config_dropout   the largest dropout rate
    pad_is_last      1 where its pad token is the last token of the rendered text
    pad_id           the id of that last token
    """
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    rates = [0.0]
    for name, value in config.items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            rates.append(value)
    last = token_rows(scorer, [conversation])[0][-1]
    return {
        "config_dropout": max(rates),
        "pad_is_last": float(config.get("pad_token_id") == last),
        "pad_id": last,
    }
