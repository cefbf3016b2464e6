"""Probes: scores computed by the model in other ways.

At which token does its head read the reward, and was it trained on that one? How much of a reward
is rounding? Each probe scores some of the data in another way and returns plain numbers for the
rules of faults.toml. One packed pass gives the rewards at all tokens of its conversations, so that
the readings of a conversation at other tokens, or cut short, cost nothing more.

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

from ..batching import Batch, Group, pack, plan_scoring
from ..files.tables import Conversation, Pair
from ..loading import load_reward_model
from ..model import RewardModel
from ..progress import progress_bar
from ..scoring import Scorer
from ..tokenization import encode, render
from .measures import compare_with_model, within_prompt_margins
from .scale import mean, share, towards_gold

OTHER_TOKENS = {  # where else a reward may be read: its index once a pad follows the row
    "the third token from the end": -4,
    "the token before the last": -3,
    "a pad after the end": -1,
}
PLAIN_SAMPLE = 40  # pairs on which the best of the plain texts is chosen
RIDGE = 0.1  # of the features' mean square norm, added to the diagonal of the linear probe
PROBED_RESPONSES = 4  # test responses to a prompt that the linear probe reads: six pairs
FOLDS = 5  # of the linear probe's test on the training pairs themselves


# ---- rewards at every token, and states, of packed passes ----------------------------------------


def _passes(scorer: Scorer, groups: list[Group], desc: str) -> Iterator[tuple[list[int], Batch]]:
    """The groups of each pass and its Batch, with a progress bar."""
    planned = plan_scoring([group.tokens for group in groups], scorer.tokens_per_pass)
    is_quiet = not scorer.process.is_main
    bar = progress_bar(total=len(groups), desc=desc, unit="prompt", disable=is_quiet, delay=1)
    for members in planned:
        yield members, pack([groups[i] for i in members]).to(scorer.process.device)
        bar.update(len(members))
    bar.close()


def _in_order(groups: list[Group], found: dict[int, list]) -> list:
    """Of each group a list -> one list, in the order of the groups."""
    return [value for i in range(len(groups)) for value in found[i]]


@torch.no_grad()
def token_rewards(scorer: Scorer, groups: list[Group], desc: str = "scoring") -> list[np.ndarray]:
    """Groups of N conversations -> N arrays (L,) of rewards: the head applied at each token.

    The head is trained at the last token only. As a token sees those before it alone, the reward at
    a token is that of the conversation cut there.
    """
    found = {}
    for members, batch in _passes(scorer, groups, desc):
        every_token = dataclasses.replace(batch, last=batch.keys)
        rewards, _ = scorer.model(every_token)  # (R,) of each conversation's tokens in turn
        lengths = [len(row) for i in members for row in groups[i].rows]
        rows = iter(np.split(rewards.cpu().numpy(), np.cumsum(lengths)[:-1]))
        for i in members:
            found[i] = [next(rows) for _ in groups[i].rows]
    return _in_order(groups, found)


@torch.no_grad()
def last_states(scorer: Scorer, groups: list[Group], desc: str = "reading states") -> np.ndarray:
    """Groups of N conversations -> (N, D) hidden states of their last tokens: all the head sees."""
    found = {}
    for members, batch in _passes(scorer, groups, desc):
        _, pooled = scorer.model(batch)
        states = pooled.float().cpu().numpy()
        rows = iter(states)
        for i in members:
            found[i] = [next(rows) for _ in groups[i].rows]
    return np.array(_in_order(groups, found))


def rewards_of(scorer: Scorer, groups: list[Group], desc: str = "scoring") -> np.ndarray:
    """Groups of N conversations -> (N,) rewards, packed as label.py packs them."""
    found = {}
    with torch.no_grad():
        for members, batch in _passes(scorer, groups, desc):
            rewards = iter(scorer.model(batch)[0].tolist())
            for i in members:
                found[i] = [next(rewards) for _ in groups[i].rows]
    return np.array(_in_order(groups, found))


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
def plain_token_rewards(scorer: Scorer, rows: list[Sequence[int]]) -> list[np.ndarray]:
    """N rows of token ids -> N arrays (L,): `token_rewards` by transformers' own attention, rows
    one by one. The packed passes are compared with it."""
    rewards = []
    with plain_attention(scorer.model) as backbone:
        for row in rows:
            input_ids = torch.tensor([list(row)], device=scorer.process.device)
            hidden = backbone(input_ids=input_ids, use_cache=False).last_hidden_state[0]  # (L, D)
            rewards.append(scorer.model.score(hidden.float())[:, 0].cpu().numpy())
    return rewards


def last_rewards(scorer: Scorer, rows: list[Sequence[int]]) -> np.ndarray:
    """N rows of token ids -> (N,) rewards at their last tokens, rows one by one."""
    return np.array([rewards[-1] for rewards in plain_token_rewards(scorer, rows)])


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


# ---- rounding, and what a reward depends on ------------------------------------------------------


@contextlib.contextmanager
def in_dtype(model: RewardModel, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the backbone computes in another dtype; afterwards its weights are as before.

    The parameters alone change: rotary frequencies and the head stay float32. Memory for a second
    copy of the weights is needed where `dtype` is the narrower one, which cannot be undone.
    """
    stay_float32 = model.backbone._keep_in_fp32_modules_strict or ()
    parameters = []
    for name, parameter in model.backbone.named_parameters():
        if parameter.is_floating_point() and not any(part in name for part in stay_float32):
            parameters.append(parameter)
    own = [parameter.dtype for parameter in parameters]
    narrower = torch.finfo(dtype).bits < torch.finfo(own[0]).bits
    kept = [parameter.data if narrower else None for parameter in parameters]
    for parameter in parameters:
        parameter.data = parameter.data.to(dtype)
    try:
        yield
    finally:
        for parameter, before, own_dtype in zip(parameters, kept, own):
            parameter.data = parameter.data.to(own_dtype) if before is None else before


def rounding_numbers(scorer: Scorer, conversations: list[list[Conversation]]) -> dict:
    """How much of a reward is rounding: the same conversations in bf16 and in float32.

    reward_noise        root mean square of what bf16 changes in a reward
    score_noise        the same of a margin, over all pairs of a prompt
    batch_dependence    in float32 the largest difference between five ways to score the same
                        conversation (packed with the others; packed in reverse order; alone; padded
                        on the right; padded on the left), over the rewards' std
    batch_over_rounding the same difference over the largest that bf16 makes. Float32 rounds 65,536
                        times finer than bf16, so above 1 it is no rounding: a reward depends on the
                        other rows of its batch.

    conversations: P prompts of K; the five ways use two responses to each of the first eight.
    """
    groups, _ = scorer.groups(conversations)
    rows = [row for group in groups[:8] for row in group.rows[:2]]
    five_ways = (
        lambda: packed_rewards(scorer, rows),
        lambda: packed_rewards(scorer, rows[::-1])[::-1],
        lambda: last_rewards(scorer, rows),
        lambda: padded_rewards(scorer, rows, "right"),
        lambda: padded_rewards(scorer, rows, "left"),
    )
    with in_dtype(scorer.model, torch.float32):
        exact = rewards_of(scorer, groups, "rounding: float32")
        bar = progress_bar(five_ways, desc="packed, padded and alone", unit="way")
        ways = np.array([rewards() for rewards in bar])  # (5, N)
    with in_dtype(scorer.model, torch.bfloat16):
        rounded = rewards_of(scorer, groups, "rounding: bf16")
    change = (rounded - exact).reshape(len(groups), -1)  # (P, K)
    largest = float(np.ptp(ways, axis=0).max())
    numbers = {
        "reward_noise": _root_mean_square(change),
        "score_noise": _root_mean_square(within_prompt_margins(change)),
        "batch_dependence": largest / (float(exact.std()) or 1.0),
    }
    by_rounding = float(np.abs(change).max())
    if by_rounding > 0:
        numbers["batch_over_rounding"] = largest / by_rounding
    return numbers


def _root_mean_square(values: np.ndarray) -> float:
    return float(np.sqrt(np.square(values).mean())) if values.size else 0.0


def backbone_dtype(scorer: Scorer) -> str:
    """ "bf16" or "float32": what its rewards are computed in."""
    dtype = next(scorer.model.backbone.parameters()).dtype
    return "bf16" if dtype == torch.bfloat16 else "float32"


def response_token_rewards(scorer: Scorer, conversation: Conversation) -> list[tuple[str, float]]:
    """Each token of the response and of the template's closing, with the head's reward there."""
    text = render(conversation, scorer.tokenizer)
    encoded = scorer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    [rewards] = token_rewards(scorer, [Group([encoded["input_ids"][: scorer.max_length]])])
    response_begin = max(text.rfind(conversation[-1]["content"].strip()), 0)
    found = []
    for (begin, end), reward in zip(encoded["offset_mapping"], rewards):
        if end > response_begin:
            found.append((text[max(begin, response_begin) : end], float(reward)))
    return found


# ---- other ways to read --------------------------------------------------------------------------


def plain_texts(conversation: Conversation) -> list[str]:
    """The conversation without a chat template, in the usual ways."""
    contents = [message["content"] for message in conversation if message["content"]]
    joined = [separator.join(contents) for separator in ("\n\n", "\n", " ", "")]
    return [*joined, contents[-1]]


def readings(
    scorer: Scorer, conversations: list[list[Conversation]], desc: str = "reading other tokens"
) -> dict[str, np.ndarray]:
    """(P, K) rewards by each way to read a conversation, all of one packed scoring.

    read            at the last token of the rendered text, which is the right way
    <OTHER_TOKENS>  at another token
    cut_<tokens>    at the last token of the text cut to so many tokens, for ten lengths
    """
    groups, _ = scorer.groups(conversations)
    pad = scorer.tokenizer.pad_token_id
    padded = []
    for group in groups:
        padded.append(Group([[*row, row[-1] if pad is None else pad] for row in group.rows]))
    by_token = token_rewards(scorer, padded, desc)
    shape = (len(groups), -1)

    found = {"read": np.array([rewards[-2] for rewards in by_token]).reshape(shape)}
    for words, at in OTHER_TOKENS.items():
        of_way = [rewards[max(at, -len(rewards))] for rewards in by_token]
        found[words] = np.array(of_way).reshape(shape)

    lengths = [len(rewards) - 1 for rewards in by_token]
    cuts = {int(np.quantile(lengths, share)) for share in np.linspace(0.05, 0.95, 10)}
    for cut in sorted(cuts):
        ends = [min(cut, length) - 1 for length in lengths]
        of_way = [rewards[end] for rewards, end in zip(by_token, ends)]
        found[f"cut_{cut}"] = np.array(of_way).reshape(shape)
    return found


def plain_readings(
    scorer: Scorer,
    conversations: list[list[Conversation]],
    ways: Sequence[int],
    desc: str = "reading plain text",
) -> dict[str, np.ndarray]:
    """plain_<i>: (P, K) rewards at the last token of plain text, for these of `plain_texts`."""
    found = {}
    for way in ways:
        groups = []
        for row in conversations:
            texts = [plain_texts(conversation)[way] for conversation in row]
            groups.append(Group(encode(texts, scorer.tokenizer)))
        found[f"plain_{way}"] = rewards_of(scorer, groups, desc).reshape(len(groups), -1)
    return found


def kind_of(way: str) -> str:
    """Of a way to read: "token", "cut", "plain" or "read"."""
    return "token" if way in OTHER_TOKENS else way.split("_")[0]


def training_reading(
    scorer: Scorer, pairs: list[Pair], plain: bool = True
) -> tuple[dict, np.ndarray, np.ndarray]:
    """Which way to read its training pairs makes the model right most often?

    The numbers, (B, 2) rewards of the pairs as they are scored, and those by the best other way.

    read_accuracy     share of pairs ranked right, read at the last token of the rendered text
    <kind>_accuracy   the same for the best way of each kind: token, cut and plain;
                      <kind>_accuracy_low: its lower bound
    <kind>_words      which way that is
    <kind>_gain       for the best kind: its accuracy minus read_accuracy
    <kind>_gain_z     that gain in standard errors (McNemar's test: over the pairs in which just one
                      of the two ways is right)

    plain: also read them as plain text. The best of the five plain texts is chosen on 40 pairs, and
    the others are read so only where it is better than the right way on these.
    """
    conversations = [[pair.chosen, pair.rejected] for pair in pairs]
    by_way = readings(scorer, conversations, "training pairs")
    if plain:
        by_way |= _best_plain_reading(scorer, conversations, by_way["read"])
    is_right = {}  # way -> (B,) 1.0 where the chosen side gets the larger reward
    for way, rewards in by_way.items():
        is_right[way] = (rewards[:, 0] > rewards[:, 1]).astype(float)

    _, prompt = np.unique([pair.prompt_key for pair in pairs], return_inverse=True)
    found = {"read_accuracy": float(is_right["read"].mean())}
    best_way = {}
    for kind in ("token", "cut", "plain"):
        ways = [way for way in is_right if kind_of(way) == kind]
        if ways:
            best_way[kind] = max(ways, key=lambda way: is_right[way].mean())
            accuracy = share(is_right[best_way[kind]], prompt)
            found[f"{kind}_accuracy"] = accuracy.value
            found[f"{kind}_accuracy_low"] = accuracy.low
            found[f"{kind}_words"] = best_way[kind].removeprefix("cut_")

    kind = max(best_way, key=lambda kind: found[f"{kind}_accuracy"])
    gain = is_right[best_way[kind]] - is_right["read"]
    differing_pairs = max(1.0, np.abs(gain).sum())
    found[f"{kind}_gain"] = float(gain.mean())
    found[f"{kind}_gain_z"] = float(gain.sum() / differing_pairs**0.5)
    return found, by_way["read"], by_way[best_way[kind]]


def _best_plain_reading(
    scorer: Scorer, conversations: list[list[Conversation]], read: np.ndarray
) -> dict[str, np.ndarray]:
    """{plain_<i>: (B, 2) rewards} of the best plain text, or {} where none is better than read."""
    some = conversations[:PLAIN_SAMPLE]
    by_way = plain_readings(scorer, some, range(5))

    def accuracy(rewards: np.ndarray) -> float:
        return float((rewards[:, 0] > rewards[:, 1]).mean())

    best = max(by_way, key=lambda way: accuracy(by_way[way]))
    if accuracy(by_way[best]) <= accuracy(read[: len(some)]):
        return {}
    rest = conversations[PLAIN_SAMPLE:]
    rewards = by_way[best]
    if rest:
        of_rest = plain_readings(scorer, rest, [int(best.removeprefix("plain_"))])
        rewards = np.concatenate([rewards, of_rest[best]])
    return {best: rewards}


def explain_rewards(
    scorer: Scorer,
    conversations: list[list[Conversation]],
    rewards: np.ndarray,
    own: np.ndarray,
    noise: float,
    sample: int = 64,
) -> dict:
    """Are these (P, K) finished rewards the model's own, and if not, what explains them?

    own: (P, K) what the model gives. noise: what rounding changes in a reward. sample: rows to read
    again, of those that are not the model's own.
    The numbers of `measures.compare_with_model`; where file_is "other" or "mixed", also whether
    another way to read the conversations gives what is not its own:

    explained_by_<kind>   1 if so: cut, token or plain
    cut_at, cut_share     tokens that are left by a cut, and the share of conversations it shortens
    explained_token       the way to read, in words
    """
    numbers = compare_with_model(rewards, own, noise)
    if numbers["file_is"] not in ("other", "mixed"):
        return numbers
    tolerance = numbers["file_tolerance"]
    same = np.abs(rewards - own) < tolerance
    groups, _ = scorer.groups(conversations)
    lengths = np.array([len(row) for group in groups for row in group.rows]).reshape(own.shape)
    some_agree = same.any() and not same.all()
    if some_agree and lengths[same].max() < lengths[~same].min():  # all short ones, no long one
        return numbers | {
            "file_is": "read otherwise",
            "explained_by_cut": 1.0,
            "cut_at": float(lengths[same].max()),
            "cut_share": float((~same).mean()),
        }

    rows = np.nonzero(~same.all(axis=1))[0][:sample]
    differs = ~same[rows]
    sampled = [conversations[row] for row in rows]
    for way, as_read in _other_readings(scorer, sampled):
        if (np.abs(as_read - rewards[rows]) < tolerance)[differs].mean() > 0.9:
            kind = kind_of(way)
            numbers |= {f"explained_by_{kind}": 1.0, "explained_token": f"at {way}"}
            numbers["file_is"] = "read otherwise"
            if kind == "cut":
                numbers |= {"cut_at": float(way.removeprefix("cut_")), "cut_share": 1.0}
            return numbers
    return numbers


def _other_readings(
    scorer: Scorer, conversations: list[list[Conversation]]
) -> Iterator[tuple[str, np.ndarray]]:
    """(way, (P, K) rewards) of each way but the right one; the plain texts, which take a scoring
    each, come last and one by one."""
    by_way = readings(scorer, conversations)
    by_way.pop("read")
    yield from by_way.items()
    for number in range(5):
        yield from plain_readings(scorer, conversations, [number]).items()


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
    rewards: np.ndarray,
    gold: np.ndarray,
) -> dict:
    """The match with gold that any training must exceed: a linear head on the untrained features.

    It is fitted by ridge regression of the labels on the difference of a training pair's pooled
    states of the model in the folder `start`, where training began.

    probe_match, probe_match_low, probe_match_high      its share of test pairs in gold's order; a
                              tie is half
    probe_train_low           the lower bound of the same on training pairs, each by a head that was
                              fitted on the other four fifths of them
    gain_over_probe, gain_over_probe_high   the proxy's share minus the probe's, on the same pairs

    conversations, rewards, gold: the (P, K) test conversations, the proxy's rewards and gold's; the
    first four of each prompt are read. The last five are absent where gold orders none of these.
    """
    conversations = [row[:PROBED_RESPONSES] for row in conversations]
    rewards, gold = rewards[:, :PROBED_RESPONSES], gold[:, :PROBED_RESPONSES]
    dtype = next(scorer.model.backbone.parameters()).dtype
    untrained = load_reward_model(start, dtype, seed=0, device=scorer.process.device).eval()
    base = dataclasses.replace(scorer, model=untrained, name=start)

    groups, _ = base.groups([[pair.chosen, pair.rejected] for pair in pairs])
    states = last_states(base, groups, "linear probe: training pairs")
    differences = states[::2] - states[1::2]  # (B, D); every label is +1
    prompts = [pair.prompt_key for pair in pairs]
    _, prompt = np.unique(prompts, return_inverse=True)
    held_out = np.zeros(len(pairs))
    for fold in range(FOLDS):
        here = prompt % FOLDS == fold
        if here.any() and not here.all():
            held_out[here] = differences[here] @ _ridge(differences[~here])
    found = {"probe_train_low": share((np.sign(held_out) + 1) / 2, prompt).low}

    groups, _ = base.groups(conversations)
    scores = last_states(base, groups, "linear probe: test responses") @ _ridge(differences)
    x, prompt = towards_gold(scores.reshape(gold.shape), gold)
    if not len(x):
        return found
    of_proxy, _ = towards_gold(rewards, gold)
    probe_right = (np.sign(x) + 1) / 2
    gain = mean((np.sign(of_proxy) + 1) / 2 - probe_right, prompt)
    found |= share(probe_right, prompt).as_numbers("probe_match")
    return found | {"gain_over_probe": gain.value, "gain_over_probe_high": gain.high}


def _ridge(differences: np.ndarray) -> np.ndarray:
    """(B, D) differences with the label +1 -> (D,) the head that fits them."""
    gram = differences @ differences.T
    penalty = RIDGE * np.trace(gram) / len(gram) * np.eye(len(gram))
    return differences.T @ np.linalg.solve(gram + penalty, np.ones(len(gram)))


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
