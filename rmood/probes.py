"""Questions that only the model itself can answer: what does the head read, and was it trained reading that?

Each probe scores some of the data in another way and returns plain numbers for the rules of faults.py. They cost a few
hundred forward passes of single conversations. N conversations, D hidden size.
"""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open

from .batching import Group, pack
from .diagnostics import rank_correlation, within_prompt_margins
from .model import RewardModel, load_reward_model
from .records import Pair
from .scoring import Scorer
from .tokenization import encode, render

SAME = 0.02  # of the rewards' spread: two ways of scoring that agree to this are the same way
TOKENS = ("the third token from the end", "the token before the last", "the last token", "a pad after the end")


@torch.no_grad()
def token_rewards(scorer: Scorer, rows: list[list[int]], hidden: list | None = None) -> list[np.ndarray]:
    """N rows of token ids -> N arrays of one reward a token: the head applied at each (it is trained at the last one only).

    By transformers' own attention, rows one by one: what the packed pass is compared with. hidden: gets (D,) of each last token."""
    found = []
    with plain_attention(scorer.model) as backbone:
        for row in rows:
            state = backbone(input_ids=torch.tensor([row], device=scorer.process.device), use_cache=False).last_hidden_state[0]  # (L, D)
            found.append(scorer.model.score(state.float())[:, 0].cpu().numpy())
            if hidden is not None:
                hidden.append(state[-1].float().cpu().numpy())
    return found


def coloured_response(scorer: Scorer, conversation: list[dict]) -> list[tuple[str, float]]:
    """The response and the template's closing tokens: each token's text with the reward that the head gives there."""
    text = render(conversation, scorer.tokenizer)
    encoded = scorer.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    rewards = token_rewards(scorer, [encoded["input_ids"][: scorer.max_length]])[0]
    begin = max(text.rfind(conversation[-1]["content"].strip()), 0)
    spans = [(max(start, begin), end, float(reward)) for (start, end), reward in zip(encoded["offset_mapping"], rewards) if end > begin]
    return [(text[start:end], reward) for start, end, reward in spans]


class plain_attention:
    """Within it the backbone attends as transformers does by itself, with the mask that it is given."""

    def __init__(self, model: RewardModel):
        self.backbone = model.backbone

    def __enter__(self):
        self.backbone.set_attn_implementation("sdpa")
        return self.backbone

    def __exit__(self, *error):
        self.backbone.set_attn_implementation("rmood")


@torch.no_grad()
def company_gap(scorer: Scorer, conversations: list[list[dict]]) -> float:
    """The largest difference that company makes to a reward: packed together; alone; padded on the right; on the left; in
    reverse order. In units of the rewards' std."""
    rows = [group.rows[0] for group in scorer.groups([[c] for c in conversations])[0]]
    device, length = scorer.process.device, max(map(len, rows))
    ways = [scorer.model(pack([Group([row]) for row in some]).to(device))[0].tolist()[::step] for some, step in ((rows, 1), (rows[::-1], -1))]
    ways.append([float(rewards[-1]) for rewards in token_rewards(scorer, rows)])
    pad = scorer.tokenizer.pad_token_id or 0
    with plain_attention(scorer.model) as backbone:
        for left in (False, True):
            padded = [[pad] * (length - len(row)) + list(row) if left else list(row) + [pad] * (length - len(row)) for row in rows]
            mask = [[0] * (length - len(row)) + [1] * len(row) if left else [1] * len(row) + [0] * (length - len(row)) for row in rows]
            ids, mask = torch.tensor(padded, device=device), torch.tensor(mask, device=device)
            state = backbone(input_ids=ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0), use_cache=False).last_hidden_state
            last = torch.tensor([length - 1 if left else len(row) - 1 for row in rows], device=device)
            ways.append(scorer.model.score(state[torch.arange(len(rows), device=device), last].float())[:, 0].tolist())
    ways = np.array(ways)  # (5, N)
    return float(np.ptp(ways, axis=0).max() / (ways[0].std() or 1.0))


def plain_texts(conversation: list[dict]) -> list[str]:
    """The conversation without a chat template, in the usual ways."""
    contents = [message["content"] for message in conversation if message["content"]]
    return ["\n\n".join(contents), "\n".join(contents), " ".join(contents), "".join(contents), contents[-1]]


def readings(scorer: Scorer, conversations: list[list[dict]]) -> dict[str, np.ndarray]:
    """(N,) rewards by each way to read a conversation: read (the last token of the rendered text), the other TOKENS, cut at
    some lengths (`cut_<tokens>`), and as plain text (`plain_<i>`)."""
    rows = [group.rows[0] for group in scorer.groups([[c] for c in conversations])[0]]
    pad = scorer.tokenizer.pad_token_id
    by_token = token_rewards(scorer, [[*row, pad if pad is not None else row[-1]] for row in rows])
    found = {"read": np.array([rewards[-2] for rewards in by_token])}
    for place, at in ((0, -4), (1, -3), (3, -1)):
        found[TOKENS[place]] = np.array([rewards[max(at, -len(rewards))] for rewards in by_token])
    lengths = np.array([len(row) for row in rows])
    for cut in sorted({int(np.quantile(lengths, q)) for q in np.linspace(0.05, 0.95, 10)}):
        found[f"cut_{cut}"] = np.array([rewards[min(cut, length) - 1] for rewards, length in zip(by_token, lengths)])
    for i, texts in enumerate(zip(*map(plain_texts, conversations))):
        found[f"plain_{i}"] = np.array([rewards[-1] for rewards in token_rewards(scorer, encode(list(texts), scorer.tokenizer))])
    return found


def training_reading(scorer: Scorer, pairs: list[Pair]) -> dict:
    """Reading its training pairs in which way is the model right most often? Of the best kind of way the gain over the last token
    of the rendered text, and z: that gain over its standard error (McNemar's test: of the pairs in which just one way is right)."""
    ways = readings(scorer, [side for pair in pairs for side in (pair.chosen, pair.rejected)])
    right = {way: (rewards[::2] > rewards[1::2]).astype(float) for way, rewards in ways.items()}  # (pairs,)
    found = {"read_accuracy": float(right["read"].mean())}
    kinds = {"token": TOKENS, "cut": "cut_", "plain": "plain_"}
    best = {kind: max((way for way in right if (way in of if kind == "token" else way.startswith(of))), key=lambda way: right[way].mean()) for kind, of in kinds.items()}
    for kind, way in best.items():
        found |= {f"{kind}_accuracy": float(right[way].mean()), f"{kind}_words": way.removeprefix("cut_")}
    kind = max(kinds, key=lambda kind: found[f"{kind}_accuracy"])
    gain = right[best[kind]] - right["read"]
    return found | {f"{kind}_gain": float(gain.mean()), f"{kind}_gain_z": float(gain.sum() / max(1.0, np.abs(gain).sum()) ** 0.5)}


def explain_rewards(scorer: Scorer, conversations: list[list[list[dict]]], found: np.ndarray, model: str, sample: int = 128) -> dict:
    """(P, K) rewards of a file, and the model that they are said to come from: does it give them, and reading what?

    reproduced: rank correlation with the model's own rewards. Where they differ: order_differs 1 if they are the same rewards
    in another order; explained_by_<cut, token, plain> 1 if reading the conversations in that way gives them."""
    own = np.array(scorer.score(conversations, desc="scoring again"))
    numbers = {"model": Path(model).name, "reproduced": rank_correlation(found.ravel(), own.ravel()), "order_differs": 0.0}
    tolerance = SAME * (own.std() or 1.0)
    same = np.abs(found - own) < tolerance
    if same.mean() > 0.98:
        return numbers
    if np.abs(np.sort(found, axis=None) - np.sort(own, axis=None)).mean() < tolerance:
        return numbers | {"order_differs": 1.0, "order_same": float(same.all(axis=1).mean())}
    lengths = np.array([len(row) for group in scorer.groups(conversations)[0] for row in group.rows]).reshape(found.shape)
    if same.any() and not same.all() and lengths[same].max() < lengths[~same].min():  # all short ones agree, no long one does
        return numbers | {"explained_by_cut": 1.0, "cut_at": float(lengths[same].max()), "cut_share": float((~same).mean())}
    flat = [c for row in conversations[:sample] for c in row]
    for way, rewards in readings(scorer, flat).items():
        if np.abs(rewards - found[:sample].ravel()).mean() < tolerance:
            kind = "token" if way in TOKENS else way.split("_")[0]
            cut = {"cut_at": float(way.split("_")[1]), "cut_share": 1.0} if kind == "cut" else {}
            return numbers | cut | {f"explained_by_{kind}": 1.0, "explained_token": f"at {way}"}
    return numbers


def moved_weights(folder: str, start: str) -> dict:
    """backbone_moved: ||after - before|| / ||before|| of the backbone's weights, and how many tensors were compared; nothing
    where the start is not a local folder of the same shapes. Both are read in the precision they are stored in."""
    before, after = ({name: path for path in sorted(Path(f).glob("*.safetensors")) for name in _names(path)} for f in (start, folder))
    difference = weight = count = 0.0
    for name, path in after.items():
        if name in before and not name.startswith(("score.", "lm_head.")):
            with safe_open(before[name], "pt") as old, safe_open(path, "pt") as new:
                a, b = old.get_tensor(name), new.get_tensor(name)
            if a.shape == b.shape:
                a = a.to(b.dtype).float()  # a start in float32, a result in bf16: rounding is no movement
                difference, weight, count = difference + (b.float() - a).square().sum().item(), weight + a.square().sum().item(), count + 1
    return {"backbone_moved": (difference / weight) ** 0.5, "backbone_tensors": count, "start": Path(start).name} if count else {}


def _names(path: Path) -> list[str]:
    with safe_open(path, "pt") as tensors:
        return list(tensors.keys())


def linear_probe(scorer: Scorer, start: str, pairs: list[Pair], conversations: list[list[list[dict]]], gold: np.ndarray) -> dict:
    """The floor that any training must beat: probe_match, the match on test prompts of a head fitted by ridge regression of the
    labels on the frozen features of the untrained model (the difference of the two pooled states of a training pair)."""
    base = Scorer(load_reward_model(start, next(scorer.model.backbone.parameters()).dtype, seed=0).to(scorer.process.device).eval(), scorer.tokenizer, scorer.process, start, scorer.max_length, scorer.tokens_per_pass)

    def features(flat: list[list[dict]]) -> np.ndarray:  # (N, D)
        hidden: list[np.ndarray] = []
        token_rewards(base, [group.rows[0] for group in base.groups([[c] for c in flat])[0]], hidden)
        return np.array(hidden)

    x = features([side for pair in pairs for side in (pair.chosen, pair.rejected)])
    x = x[::2] - x[1::2]
    gram = x @ x.T
    head = x.T @ np.linalg.solve(gram + 0.1 * np.trace(gram) / len(x) * np.eye(len(x)), np.ones(len(x)))  # every label is +1
    test = (features([c for row in conversations for c in row]) @ head).reshape(gold.shape)
    margin, wanted = within_prompt_margins(test), within_prompt_margins(gold)
    compared = wanted != 0
    return {"probe_match": float((margin[compared] * wanted[compared] > 0).mean())}


def config_numbers(folder: str, scorer: Scorer, conversation: list[dict]) -> dict:
    """What the saved config says that can hurt: config_dropout, the largest; pad_is_last, 1 where its pad token closes the text."""
    config = json.loads(Path(folder, "config.json").read_text(encoding="utf-8"))
    rates = [value for name, value in config.items() if ("dropout" in name or "pdrop" in name) and isinstance(value, float)]
    last = scorer.groups([[conversation]])[0][0].rows[0][-1]
    return {"config_dropout": max([0.0, *rates]), "pad_is_last": float(config.get("pad_token_id") == last), "pad_id": last}
