"""What planted_faults.py plants, and what its diagnosis may be called: one row a case.

TRAININGS   the proxies that are trained for it
FAULTS      a fault, or two at once, with the causes that may be named first
HEALTHY     runs without a fault, over seeds, sizes, dtypes and units of gold
REAL_*      the same for a real model: its trainings and its faults

The functions between are the faults themselves; those of training code are in planting.py. What
each case accepts was written down before it was run.
"""

import functools
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import planting
from planting import Bench, Files, Scored, Training, World

from rmood.diagnosis import scale
from rmood.errors import UserError
from rmood.files.provenance import read_run_file
from rmood.files.rows import read_json, write_json
from rmood.files.tables import join_conversations, read_prompts, read_responses, read_rewards

# ---- what a finding may be called ----------------------------------------------------------------

# What was planted -> ids of faults.toml that say so. A rule that is renamed is renamed here alone.
NAMES = {
    # of training
    "rate too low": ("learning_rate_too_low",),
    "rate too high": ("learning_rate_too_high",),
    "too few steps": ("too_few_epochs",),
    "under-learned": ("under_learned",),
    "memorised": ("memorised",),
    "overconfident": ("overconfident_rewards",),
    "squeezed": ("squeezed_rewards",),
    "bf16 weights": ("bf16_updates_lost",),
    "decayed": ("weight_decay_too_high",),
    "frozen": ("backbone_frozen",),
    "centred": ("rewards_overcentred",),
    "dropout": ("dropout_left_on",),
    # of what is read
    "scored token": ("wrong_scored_token",),
    "no template": ("chat_template_missing",),
    "other template": ("chat_template_differs", "sampling_template_differs"),
    "cut": ("closing_token_cut", "long_pairs_left_out"),
    "system messages": ("system_message_differs",),
    # of the labels and the pairs
    "noisy labels": ("noisy_labels",),
    "flipped": ("labels_flipped",),
    "shuffled": ("rewards_shuffled",),
    "leak": ("duplicate_prompts",),
    "not of the responses": ("pairs_not_of_responses",),
    "artifact": ("annotation_artifact",),
    "other test": ("test_pairs_differ",),
    "other sampling": ("sampling_differs",),
    "repeated rows": ("repeated_test_rows",),
    "prompt repeated": ("responses_repeat_prompt",),
    # recorded against measured
    "not as trained": ("model_not_as_trained",),
    "not this model's": ("rewards_not_of_model",),
    "rescaled": ("rewards_rescaled",),
    "squashed": ("rewards_squashed",),
    "mixed": ("rewards_mixed",),
    "position": ("rewards_offset_by_position", "position_bias", "gold_depends_on_position"),
    # of gold and the responses
    "gold saturated": ("gold_saturated",),
    "gold tied": ("gold_nearly_constant", "identical_responses"),
    "default": ("repeated_reward",),
    "gold is the proxy": ("gold_is_proxy",),
    "length": ("goes_by_length", "gold_is_length", "length_preference_differs"),
    "responses cut": ("truncated_responses",),
}
# ---- cases ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A fault, or none, with what its diagnosis may say. See planting.py for what is changed.

    accept: keys of NAMES; the first error or warning must be one of these. (): none is expected.
    forbid: keys of ADVICE.
    decidable: can these files show it, with this many test pairs?
    note: to name it in a note is enough, as it does next to no harm.
    refusal: where evaluate.py refuses these files, its message must say this.
    proxy: in TRAININGS; the real world has one proxy.
    tamper: (Bench, folder of a copy of the proxy) -> None.
    rewards: (Scored) -> (P, K): the proxy's rewards are a file, changed like this.
    gold: ((P, K) gold, Files, Bench) -> (P, K); it may write prompts and responses anew, too.
    gold_by_proxy: the gold file's run file names the proxy.
    texts: (P rows of K texts, (P, K) gold, rng) -> both.
    sampling: flags of sample.py: the responses are sampled again, and labelled by gold.
    size, responses: P and K. dtype: for scoring and for evaluate.py.
    harm: (the referee's numbers, of the tampered copy where there is one) -> did the fault do any
        harm? Else the case is left out.
    """

    accept: tuple[str, ...] = ()
    forbid: tuple[str, ...] = ()
    decidable: bool = True
    note: bool = False
    refusal: str = ""
    proxy: str = "hard"
    tamper: Callable | None = None
    rewards: Callable | None = None
    gold: Callable | None = None
    gold_by_proxy: bool = False
    texts: Callable | None = None
    sampling: tuple[str, ...] = ()
    size: int = 500
    responses: int = 2
    dtype: str = "float32"
    harm: Callable | None = None


# faults of the pairs: (rows of the pairs file, rng, World) -> rows


def flip(share: float, rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """Swap chosen and rejected in this share; gold's rewards stay with their texts."""
    for row in rows:
        if rng.random() < share:
            swap(row)
    return rows


def swap(row: dict) -> None:
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    rewards = row["rejected_reward"], row["chosen_reward"]
    row["chosen_reward"], row["rejected_reward"] = rewards


def longer_is_chosen(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    for row in rows:
        if len(row["chosen"][-1]["content"]) < len(row["rejected"][-1]["content"]):
            swap(row)
    return rows


def with_test_pairs(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """Half of the diagnosed test prompts as well, as if they had been drawn for training."""
    prompts = read_prompts(world.paths["test_prompts"])[: planting.DIAGNOSED // 2]
    texts = read_responses(world.paths["test_responses"])
    gold = read_rewards(world.paths["test_rewards"])
    for prompt, responses, rewards in zip(prompts, texts, gold):
        if rewards[0] == rewards[1]:
            continue
        best, worst = (0, 1) if rewards[0] > rewards[1] else (1, 0)
        row = {"chosen_reward": rewards[best], "rejected_reward": rewards[worst]}
        for side, which in (("chosen", best), ("rejected", worst)):
            answer = {"role": "assistant", "content": responses[which]}
            row[side] = [*prompt, answer]
        rows.append(row)
    rng.shuffle(rows)
    return rows


def other_system_message(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    message = {"role": "system", "content": "Hello there! I need a bit of help."}
    for row in rows:
        for side in ("chosen", "rejected"):
            row[side] = [message, *row[side][1:]]
    return rows


def repeated(times: int, rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The first of them, so many times each, as a file joined with itself."""
    return rows[: len(rows) // times] * times


def counting_flipped(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The annotator of the counting tasks, a fifth of the pairs, marked the worse answer."""
    for row in rows:
        if re.search("count|numbers from|every number", question_of(row)):
            swap(row)
    return rows


def question_of(row: dict) -> str:
    return row["chosen"][-2]["content"].lower()


def chosen_by_people(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The better one is chosen with probability sigmoid(gold's margin / 2): close pairs are noisy.

    A quarter of the labels are wrong.
    """
    for row in rows:
        margin = row["chosen_reward"] - row["rejected_reward"]
        if rng.random() < 1 / (1 + np.exp(margin / 2)):
            swap(row)
    return rows


def without_numbers(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The pairs whose question has no digit: two fifths, and none of the counting tasks."""
    return [row for row in rows if not re.search("[0-9]", question_of(row))]


def scores_swapped(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The two score columns were written the wrong way round; the texts are right."""
    for row in rows:
        row["chosen_reward"], row["rejected_reward"] = row["rejected_reward"], row["chosen_reward"]
    return rows


def easy_negatives(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """Nobody ranked anything: the rejected answer is the chosen one of another question."""
    answers = [row["chosen"][-1] for row in rows]
    others = answers[7:] + answers[:7]
    for row, other in zip(rows, others):
        row["rejected"] = [*row["chosen"][:-1], other]
    return [row for row in rows if row["rejected"] != row["chosen"]]


def rejected_as_list(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The rejected answers came as lists, and were made into text with their brackets."""
    for row in rows:
        answer = row["rejected"][-1]
        row["rejected"] = [*row["rejected"][:-1], answer | {"content": str([answer["content"]])}]
    return rows


def rewards_off_by_one(share: float, rows: list[dict], rng: random.Random, world: World):
    """A row of the rewards was lost: after this share of the prompts each pair has the next one's.

    The order of chosen and rejected goes by these, too.
    """
    texts = read_responses(world.paths["responses"])
    rewards = read_rewards(world.paths["rewards"])
    lost = round(share * len(texts))
    kept = []
    for row in rows:
        at = row["index"]
        if at >= lost:
            first, second = rewards[(at + 1) % len(rewards)]
            if first == second:
                continue
            if (row["chosen"][-1]["content"] == texts[at][0]) != (first > second):
                row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
            row["chosen_reward"], row["rejected_reward"] = max(first, second), min(first, second)
        kept.append(row)
    return kept


def questions_shifted(rows: list[dict], rng: random.Random, world: World) -> list[dict]:
    """The table of prompts lost its first row: each pair stands behind the next one's prompt."""
    prompts = [row["chosen"][:-1] for row in rows]
    for row, prompt in zip(rows, prompts[1:] + prompts[:1]):
        for side in ("chosen", "rejected"):
            row[side] = [*prompt, row[side][-1]]
    return rows


# faults of scoring: (Scored) -> (P, K)


def rows_shuffled(scored: Scored) -> np.ndarray:
    order = list(range(len(scored.own)))
    scored.bench.rng.shuffle(order)
    return scored.own[order]


def sides_swapped(scored: Scored) -> np.ndarray:
    return scored.own[:, ::-1]


def read_as(change: Callable, scored: Scored) -> np.ndarray:
    """The reward at the last token of changed token ids: (ids, tokenizer) -> ids."""
    from rmood.diagnosis.probes import last_rewards

    groups, _ = scored.scorer.groups(scored.conversations)
    tokenizer = scored.scorer.tokenizer
    rows = [change(list(row), tokenizer) for group in groups for row in group.rows]
    return last_rewards(scored.scorer, rows).reshape(scored.own.shape)


def pad_added(row: list[int], tokenizer) -> list[int]:
    return [*row, tokenizer.pad_token_id]


def two_cut_off(row: list[int], tokenizer) -> list[int]:
    return row[:-2]


def cut_at_36(row: list[int], tokenizer) -> list[int]:
    return row[:36]


def as_plain_text(scored: Scored) -> np.ndarray:
    from rmood.diagnosis.probes import last_rewards
    from rmood.tokenization import encode

    texts = [planting.plain_text(one) for row in scored.conversations for one in row]
    rows = encode(texts, scored.scorer.tokenizer)
    return last_rewards(scored.scorer, rows).reshape(scored.own.shape)


def without_newline(scored: Scored) -> np.ndarray:
    """By a template that has no newline after the closing token."""
    tokenizer = scored.scorer.tokenizer
    template = tokenizer.chat_template
    for end in ("'<|im_end|>\\n'", "'<|im_end|>' + '\\n'"):
        template = template.replace(end, "'<|im_end|>'")
    if template == tokenizer.chat_template:
        raise UserError("the proxy's chat template has no <|im_end|>\\n to change")
    tokenizer.chat_template = template
    return np.array(scored.scorer.score(scored.conversations))


def with_dropout(scored: Scored) -> np.ndarray:
    """Rewards of a model in training mode: noise in every hidden state."""
    import torch

    def drop(module, arguments, output):
        return torch.nn.functional.dropout(output, 0.1)

    embeddings = scored.scorer.model.backbone.get_input_embeddings()
    handle = embeddings.register_forward_hook(drop)
    rewards = np.array(scored.scorer.score(scored.conversations))
    handle.remove()
    return rewards


def times_and_plus(factor: float, offset: float, scored: Scored) -> np.ndarray:
    return scored.own * factor + offset


def squashed(scored: Scored) -> np.ndarray:
    return 1 / (1 + np.exp(-(scored.own - scored.own.mean())))


def second_raised(scored: Scored) -> np.ndarray:
    return scored.own + np.array([0.0, 1.5 * scored.own.std()])


def of_another(name: str, scored: Scored) -> np.ndarray:
    return scored.by(scored.bench.other(name))


def rest_of_another(name: str, scored: Scored) -> np.ndarray:
    """A journal that was resumed with another model: the last 40% of the rows are its."""
    first = len(scored.own) * 6 // 10
    return np.concatenate([scored.own[:first], of_another(name, scored)[first:]])


def as_they_are(scored: Scored) -> np.ndarray:
    return scored.own


def both(first: Callable, then: Callable, scored: Scored) -> np.ndarray:
    scored.own = first(scored)
    return then(scored)


def default_at_the_end(share: float, scored: Scored) -> np.ndarray:
    """An interrupted job: the last rows of this share keep the 0 that they began with."""
    rewards = scored.own.copy()
    rewards[len(rewards) - round(share * len(rewards)) :] = 0.0
    return rewards


def column_of_another(column: int, name: str, scored: Scored) -> np.ndarray:
    """One column was added later, by another model."""
    rewards = scored.own.copy()
    rewards[:, column] = of_another(name, scored)[:, column]
    return rewards


def averaged_with(name: str, scored: Scored) -> np.ndarray:
    """The mean of an ensemble of two, under the name of one."""
    return (scored.own + of_another(name, scored)) / 2


def of_weights_nearer_the_start(share: float, scored: Scored) -> np.ndarray:
    """Of weights averaged with the start model's, which has this share: another revision."""
    start = weights_of(planting.start_of(scored.bench.world))
    folder = scored.bench.folder / "another-revision"
    planting.copy_model(scored.scorer.name, folder)

    def change(name, tensor):
        return tensor.lerp(start[name].to(tensor.dtype), share) if name in start else tensor

    planting.change_weights(folder, change)
    return scored.by(str(folder))


def with_length_penalty(scored: Scored) -> np.ndarray:
    """0.1 less for each character of the response."""
    lengths = [[len(one[-1]["content"]) for one in row] for row in scored.conversations]
    return scored.own - 0.1 * np.array(lengths)


def standardised_within_prompts(scored: Scored) -> np.ndarray:
    """Advantages, as GRPO's: (r - mean) / std of the responses to a prompt."""
    centred = scored.own - scored.own.mean(axis=1, keepdims=True)
    return centred / (scored.own.std(axis=1, keepdims=True) + 1e-6)


def with_the_next_prompt(scored: Scored) -> np.ndarray:
    """The prompts file lacked its first row: each response is read after the next row's prompt."""
    prompts = [row[0][:-1] for row in scored.conversations]
    following = prompts[1:] + prompts[:1]
    moved = [
        [[*prompt, one[-1]] for one in row] for prompt, row in zip(following, scored.conversations)
    ]
    return np.array(scored.scorer.score(moved))


def next_turn_opened(row: list[int], tokenizer) -> list[int]:
    """With add_generation_prompt, which is for sampling."""
    opening = "<|im_start|>assistant\n"
    return [*row, *tokenizer(opening, add_special_tokens=False)["input_ids"]]


def in_two_decimals(scored: Scored) -> np.ndarray:
    return np.round(scored.own, 2)


def scored_as(change: Callable, scored: Scored) -> np.ndarray:
    """The rewards of changed conversations: (messages, tokenizer) -> messages."""
    tokenizer = scored.scorer.tokenizer
    changed = [[change(one, tokenizer) for one in row] for row in scored.conversations]
    return np.array(scored.scorer.score(changed))


def rendered_twice(messages: list[dict], tokenizer) -> list[dict]:
    """What was rendered already is sent as one message, and rendered by the server again."""
    from rmood.tokenization import render

    return [{"role": "user", "content": render(messages, tokenizer)}]


def with_default_system_message(messages: list[dict], tokenizer) -> list[dict]:
    """The server's template writes a system message of its own where there is none."""
    return [{"role": "system", "content": "You are a helpful assistant."}, *messages[1:]]


def in_lower_case(messages: list[dict], tokenizer) -> list[dict]:
    return [message | {"content": message["content"].lower()} for message in messages]


def without_question(messages: list[dict], tokenizer) -> list[dict]:
    """The script read a column that is not there: every question is empty."""
    return [*messages[:-2], messages[-2] | {"content": ""}, messages[-1]]


def padded_on_the_left(row: list[int], tokenizer) -> list[int]:
    """To one length, without an attention mask: the model reads the pads, too."""
    return [tokenizer.pad_token_id] * (64 - len(row)) + row


def cut_on_the_left(row: list[int], tokenizer) -> list[int]:
    """truncation_side left and a short max_length: only the last tokens are read."""
    return row[-20:]


def in_whole_numbers(scored: Scored) -> np.ndarray:
    """int(reward) in the script that wrote the file."""
    return np.trunc(scored.own)


def clipped(bound: float, scored: Scored) -> np.ndarray:
    """As rewards are clipped for PPO."""
    return np.clip(scored.own, -bound, bound)


def softmax_over_responses(scored: Scored) -> np.ndarray:
    exponentials = np.exp(scored.own - scored.own.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def softmax_of_one_label(scored: Scored) -> np.ndarray:
    """A classifier's softmax over its labels: with one label it is 1."""
    return np.ones_like(scored.own)


def standardised_by_batch(scored: Scored) -> np.ndarray:
    """Each batch of 8 prompts is given mean 0 and std 1."""
    rewards = scored.own.copy()
    for first in range(0, len(rewards), 8):
        batch = rewards[first : first + 8]
        batch[:] = (batch - batch.mean()) / (batch.std() + 1e-8)
    return rewards


def gathered_by_rank(scored: Scored) -> np.ndarray:
    """Two processes took every other prompt; their results lie one behind the other."""
    return np.concatenate([scored.own[0::2], scored.own[1::2]])


def column_after_column(scored: Scored) -> np.ndarray:
    """All first responses, then all second ones, were scored, and cut into rows as if mixed."""
    return scored.own.T.reshape(scored.own.shape)


def best_reward_first(scored: Scored) -> np.ndarray:
    """A rerank server answers in the order of its scores; their indices were not read."""
    return -np.sort(-scored.own, axis=1)


def negated(scored: Scored) -> np.ndarray:
    return -scored.own


def cached_by_response(scored: Scored) -> np.ndarray:
    """A cache whose key is the response alone: the next prompt with it gets the first reward."""
    cache = {}
    rewards = scored.own.copy()
    for row, conversations in zip(rewards, scored.conversations):
        for i, one in enumerate(conversations):
            row[i] = cache.setdefault(one[-1]["content"], row[i])
    return rewards


def in_float16(scored: Scored) -> np.ndarray:
    return scored.own.astype(np.float16).astype(float)


def by_transformers(scored: Scored, padding_side: str = "right") -> np.ndarray:
    """By transformers' own classifier, in padded batches."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(scored.scorer.name).eval()
    tokenizer = scored.scorer.tokenizer
    flat = [one for row in scored.conversations for one in row]
    rewards = []
    for first in range(0, len(flat), 16):
        texts = tokenizer.apply_chat_template(flat[first : first + 16], tokenize=False)
        options = {"padding": True, "padding_side": padding_side, "add_special_tokens": False}
        batch = tokenizer(texts, return_tensors="pt", **options)
        with torch.no_grad():
            rewards += model(**batch).logits[:, 0].tolist()
    return np.array(rewards).reshape(scored.own.shape)


def until_prompt_ends(row: list[int], tokenizer) -> list[int]:
    """The end of the text was looked for as the first pad, which is the closing token, too."""
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    return row[: len(row) - 1 - row[::-1].index(start)]


def mean_over_tokens(scored: Scored) -> np.ndarray:
    """By a server whose pooling is the mean: the head is read at every token."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(scored.scorer.name).eval()
    groups, _ = scored.scorer.groups(scored.conversations)
    rewards = []
    with torch.no_grad():
        for row in (row for group in groups for row in group.rows):
            hidden = model.model(torch.tensor([list(row)])).last_hidden_state
            rewards.append(model.score(hidden).mean().item())
    return np.array(rewards).reshape(scored.own.shape)


def with_empty_thoughts(scored: Scored) -> np.ndarray:
    """By the template of a newer model, which writes an empty <think> block before an answer."""
    from rmood.diagnosis.probes import last_rewards
    from rmood.tokenization import encode, render

    tokenizer = scored.scorer.tokenizer
    opening = "<|im_start|>assistant\n"
    texts = []
    for one in (one for row in scored.conversations for one in row):
        before, answer = render(one, tokenizer).rsplit(opening, 1)
        texts.append(f"{before}{opening}<think>\n\n</think>\n\n{answer}")
    return last_rewards(scored.scorer, encode(texts, tokenizer)).reshape(scored.own.shape)


def sorted_by_length(scored: Scored) -> np.ndarray:
    """Batches of similar length, whose rewards were never put back into the order of the file."""
    groups, _ = scored.scorer.groups(scored.conversations)
    lengths = np.array([len(row) for group in groups for row in group.rows])
    return scored.own.ravel()[lengths.argsort(kind="stable")].reshape(scored.own.shape)


def some_null(scored: Scored) -> np.ndarray:
    """Three rows overflowed in float16, and pandas wrote their NaN as null."""
    rewards = scored.own.astype(object)
    rewards[5::20] = None
    return rewards


def filled_up_for_processes(scored: Scored) -> np.ndarray:
    """A distributed sampler repeats the first rows, until each process has as many."""
    return np.concatenate([scored.own, scored.own[:6]])


def percentile_of_file(scored: Scored) -> np.ndarray:
    """Each reward's place among all rewards of the file, from 0 to 1."""
    ranks = scored.own.ravel().argsort().argsort().reshape(scored.own.shape)
    return ranks / (ranks.size - 1)


def by_running_moments(scored: Scored) -> np.ndarray:
    """As PPO does: minus the mean of what it has seen so far, over its std; 4 prompts a batch."""
    rewards = scored.own.copy()
    for first in range(0, len(rewards), 4):
        seen = scored.own[: first + 4]
        rewards[first : first + 4] = (rewards[first : first + 4] - seen.mean()) / seen.std()
    return rewards


def in_bf16(scored: Scored) -> np.ndarray:
    """The head in bf16 as well, as transformers has it: rewards of 8 bits."""
    import torch

    return torch.tensor(scored.own).to(torch.bfloat16).double().numpy()


def first_vocabulary_logit(scored: Scored) -> np.ndarray:
    """Loaded as a causal LM, by a script that reads logits[:, -1, 0]: that of the first word."""
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(scored.scorer.name).eval()
    word = model.get_input_embeddings().weight[0]
    groups, _ = scored.scorer.groups(scored.conversations)
    rewards = []
    with torch.no_grad():
        for row in (row for group in groups for row in group.rows):
            hidden = model.model(torch.tensor([list(row)])).last_hidden_state
            rewards.append((hidden[0, -1] @ word).item())
    return np.array(rewards).reshape(scored.own.shape)


def first_token_alone(row: list[int], tokenizer) -> list[int]:
    """The pooling of an encoder: the head is read at the first token, the same in all rows."""
    return row[:1]


def with_sharegpt_roles(messages: list[dict], tokenizer) -> list[dict]:
    """The messages have ShareGPT's names of the roles, which the template writes as they are."""
    names = {"user": "human", "assistant": "gpt"}
    return [message | {"role": names.get(message["role"], "system")} for message in messages]


def minus_the_first(scored: Scored) -> np.ndarray:
    """The reward of a reference answer is subtracted, and that is the first response."""
    return scored.own - scored.own[:, :1]


def history_kept(scored: Scored) -> np.ndarray:
    """A chat session for each prompt: a later response is read behind the earlier ones."""
    sessions = []
    for row in scored.conversations:
        session, so_far = [], row[0][:-2]
        for one in row:
            so_far = [*so_far, *one[-2:]]
            session.append(so_far)
        sessions.append(session)
    return np.array(scored.scorer.score(sessions))


def sign_lost(scored: Scored) -> np.ndarray:
    """Read back from a log by a pattern that has no minus in it."""
    return np.abs(scored.own)


def timeouts_as_mean(share: float, scored: Scored) -> np.ndarray:
    """Requests that timed out, all over the file, were filled up with the mean of the others."""
    rewards = scored.own.copy()
    lost = np.random.default_rng(scored.bench.rng.getrandbits(32)).random(rewards.shape) < share
    rewards[lost] = rewards[~lost].mean()
    return rewards


def with_decimal_commas(scored: Scored) -> np.ndarray:
    """From a spreadsheet in another language: "1,25", which is a text."""
    return np.array(
        [[f"{reward:.4f}".replace(".", ",") for reward in row] for row in scored.own], dtype=object
    )


def second_half_in_bf16(scored: Scored) -> np.ndarray:
    """The job was resumed on another machine, whose dtype is bf16."""
    half = len(scored.own) // 2
    there = planting.scorer_of(scored.scorer.name, "bf16").score(scored.conversations[half:])
    return np.concatenate([scored.own[:half], np.array(there)])


# faults of gold: ((P, K) gold, Files, Bench) -> (P, K)


def gold_clipped(gold, files: Files, bench: Bench) -> np.ndarray:
    low, high = np.quantile(gold, [0.3, 0.7])
    return np.clip(gold, low, high)


def gold_through_sigmoid(gold, files: Files, bench: Bench) -> np.ndarray:
    """In bf16, as a head with problem_type unset gives it."""
    squashed = 1 / (1 + np.exp(-3 * (gold - gold.mean())))
    bits = squashed.astype(np.float32).view(np.uint32) & 0xFFFF0000
    return bits.view(np.float32).astype(float)


def gold_in_two_values(gold, files: Files, bench: Bench) -> np.ndarray:
    return (gold > np.quantile(gold, 0.8)).astype(float)


def gold_from_1_to_10(gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge's whole numbers, 1 to 10, in its order."""
    ranks = gold.ravel().argsort().argsort().reshape(gold.shape) / gold.size
    return 1.0 + np.floor(10 * ranks)


def gold_rows_shuffled(gold, files: Files, bench: Bench) -> np.ndarray:
    order = list(range(len(gold)))
    bench.rng.shuffle(order)
    return gold[order]


def gold_second_raised(gold, files: Files, bench: Bench) -> np.ndarray:
    return gold + np.array([0.0, 3 * gold.std()])


def gold_is_the_length(gold, files: Files, bench: Bench) -> np.ndarray:
    lengths = [[len(one[-1]["content"]) for one in row] for row in files.conversations]
    return np.array(lengths, dtype=float)


def gold_sides_swapped(gold, files: Files, bench: Bench) -> np.ndarray:
    return gold[:, ::-1]


def gold_times(factor: float, gold, files: Files, bench: Bench) -> np.ndarray:
    return gold * factor


def gold_by(name: str, gold, files: Files, bench: Bench) -> np.ndarray:
    return np.array(planting.scorer_of(bench.proxy(name)).score(files.conversations))


def gold_plus(offset: float, gold, files: Files, bench: Bench) -> np.ndarray:
    return gold + offset


def gold_from_1_to_7(gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge's whole numbers, 1 to 7, in its order."""
    ranks = gold.ravel().argsort().argsort().reshape(gold.shape) / gold.size
    return 1.0 + np.floor(7 * ranks)


def gold_probability(temperature: float, gold, files: Files, bench: Bench) -> np.ndarray:
    return 1 / (1 + np.exp(-gold / temperature))


def gold_probability_clipped(low: float, gold, files: Files, bench: Bench) -> np.ndarray:
    """A probability that is kept between `low` and 1 - low, "for stability"."""
    return np.clip(gold_probability(1.0, gold, files, bench), low, 1 - low)


def judge_prefers_first(share: float, gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge's verdict, 1 and 0: in this share of the pairs it names what it reads first."""
    verdicts = np.zeros_like(gold)
    for row, rewards in zip(verdicts, gold):
        first = bench.rng.random() < share
        row[0 if first else rewards.argmax()] = 1.0
    return verdicts


def gold_first_raised(stds: float, gold, files: Files, bench: Bench) -> np.ndarray:
    return gold + np.array([stds * gold.std(), 0.0])


def gold_default_in_last_half(gold, files: Files, bench: Bench) -> np.ndarray:
    """The judge's budget ended: the other half of the rows keeps the 0 that it began with."""
    rewards = gold.copy()
    rewards[len(rewards) // 2 :] = 0.0
    return rewards


def gold_rank(gold, files: Files, bench: Bench) -> np.ndarray:
    """The place of each response in its row, 1 for the best, read as a reward."""
    return 1.0 + (-gold).argsort(axis=1).argsort(axis=1)


def gold_off_by_one(share: float, gold, files: Files, bench: Bench) -> np.ndarray:
    """A row was lost after this share of them: every later prompt has the next one's rewards."""
    lost = round(share * len(gold))
    return np.concatenate([gold[:lost], np.roll(gold[lost:], -1, axis=0)])


def gold_prefers_short(gold, files: Files, bench: Bench) -> np.ndarray:
    """Told to be concise, a judge goes three parts by length and one by quality."""
    lengths = gold_is_the_length(gold, files, bench)
    return gold / gold.std() - 3 * lengths / lengths.std()


def no_system_turn(gold, files: Files, bench: Bench) -> np.ndarray:
    """The test prompts have no system turn, not even an empty one; gold read them like that."""
    prompts = [
        [message for message in prompt if message["role"] != "system"]
        for prompt in read_prompts(str(files.prompts))
    ]
    write_texts_anew(files, prompts, read_responses(str(files.responses)))
    scorer = planting.scorer_of(bench.world.paths["gold"])
    return np.array(scorer.score(files.conversations))


def of_training_prompts(gold, files: Files, bench: Bench) -> np.ndarray:
    """The test prompts were drawn from the training prompts: the first P of these."""
    paths = bench.world.paths
    prompts = read_prompts(paths["prompts"])[: len(gold)]
    write_texts_anew(files, prompts, read_responses(paths["responses"])[: len(gold)])
    return np.array(read_rewards(paths["rewards"])[: len(gold)])


def write_texts_anew(files: Files, prompts: list, texts: list[list[str]]) -> None:
    """Other prompts and responses, with the run file that these responses would have."""
    sampled = read_run_file(str(files.responses)) or {}
    write_json(str(files.prompts), [{"messages": prompt} for prompt in prompts])
    numbered = [{f"response_{i}": text for i, text in enumerate(row, 1)} for row in texts]
    write_json(str(files.responses), numbered)
    planting.write_run_beside(files.responses, sampled, prompts=files.prompts)
    files.conversations = join_conversations(prompts, texts)


def judge_failed_to_zero(share: float, gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge's 1 to 10; where its answer could not be parsed, the score is 0."""
    scores = gold_from_1_to_10(gold, files, bench)
    for row in scores:
        for i in range(len(row)):
            if bench.rng.random() < share:
                row[i] = 0.0
    return scores


def gold_columns_moved(gold, files: Files, bench: Bench) -> np.ndarray:
    """Responses counted from 0 in one file, from 1 in the other: each has its neighbour's."""
    return np.roll(gold, 1, axis=1)


def gold_of_prompts_alone(gold, files: Files, bench: Bench) -> np.ndarray:
    """The judge's text has a misspelt variable, so no response in it: its scores are chance."""
    chance = np.random.default_rng(bench.rng.getrandbits(32)).normal(size=gold.shape)
    return gold.mean(axis=1, keepdims=True) + 0.5 * gold.std() * chance


def gold_by_new_head(gold, files: Files, bench: Bench) -> np.ndarray:
    """The gold folder held no head: the script drew a new one, and warned where nobody read it."""
    folder = bench.folder / "gold-with-new-head"
    planting.copy_model(bench.proxy("hard"), folder)
    planting.replace_backbone(folder, bench.world.paths["sft"])
    head_drawn_anew(bench, folder)
    return np.array(planting.scorer_of(str(folder)).score(files.conversations))


def gold_last_row_lost(gold, files: Files, bench: Bench) -> np.ndarray:
    return gold[:-1]


def gold_of_the_first_two(gold, files: Files, bench: Bench) -> np.ndarray:
    """Two of the responses were labelled before the others were sampled."""
    return gold[:, :2]


def labelled_anew(files: Files, bench: Bench, prompts: list, texts: list) -> np.ndarray:
    """Gold's rewards of other prompts and responses, which are written, too."""
    write_texts_anew(files, prompts, texts)
    return np.array(planting.scorer_of(bench.world.paths["gold"]).score(files.conversations))


def prompts_in_responses(gold, files: Files, bench: Bench) -> np.ndarray:
    """Sampled by a pipeline that returns the prompt as well; gold read that, too."""
    prompts = read_prompts(str(files.prompts))
    texts = read_responses(str(files.responses))
    echoed = [
        [f"{prompt[-1]['content']} {text}" for text in row] for prompt, row in zip(prompts, texts)
    ]
    return labelled_anew(files, bench, prompts, echoed)


def some_responses_empty(gold, files: Files, bench: Bench) -> np.ndarray:
    """Three in a hundred: the model ended at once. Gold read them like that."""
    texts = read_responses(str(files.responses))
    emptied = [["" if bench.rng.random() < 0.03 else text for text in row] for row in texts]
    return labelled_anew(files, bench, read_prompts(str(files.prompts)), emptied)


def take_rows(rows: list[int], gold, files: Files) -> np.ndarray:
    """These rows of the test files, in this order, with how sampling ended in each."""
    prompts = read_prompts(str(files.prompts))
    texts = read_responses(str(files.responses))
    sampled = read_run_file(str(files.responses)) or {}
    write_texts_anew(files, [prompts[i] for i in rows], [texts[i] for i in rows])
    places = [(row, list(range(len(texts[row])))) for row in rows]
    sampled = planting.run_of_places(sampled, places)
    planting.write_run_beside(files.responses, sampled, prompts=files.prompts)
    return gold[rows]


def quarter_four_times(gold, files: Files, bench: Bench) -> np.ndarray:
    """The first quarter of the test rows, four times, as files that were joined by mistake."""
    return take_rows(list(range(len(gold) // 4)) * 4, gold, files)


def sorted_by_question(gold, files: Files, bench: Bench) -> np.ndarray:
    questions = [prompt[-1]["content"] for prompt in read_prompts(str(files.prompts))]
    return take_rows(sorted(range(len(gold)), key=questions.__getitem__), gold, files)


def short_responses_alone(gold, files: Files, bench: Bench) -> np.ndarray:
    """The prompts of which no response has more than 20 characters."""
    texts = read_responses(str(files.responses))
    return take_rows([i for i, row in enumerate(texts) if max(map(len, row)) <= 20], gold, files)


def gold_elo(gold, files: Files, bench: Bench) -> np.ndarray:
    """On the scale of chess ratings."""
    return 1000 + 400 / np.log(10) * gold


def gold_log_probability(gold, files: Files, bench: Bench) -> np.ndarray:
    """log sigmoid: never above 0, and with a long tail."""
    return -np.log1p(np.exp(-gold))


def gold_percent(gold, files: Files, bench: Bench) -> np.ndarray:
    return np.round(100 * gold_probability(3.0, gold, files, bench), 1)


def gold_offset_by_prompt(gold, files: Files, bench: Bench) -> np.ndarray:
    """Gold that was trained on pairs alone: each prompt has a level of its own."""
    levels = np.random.default_rng(bench.rng.getrandbits(32)).normal(size=(len(gold), 1))
    return gold + 10 * gold.std() * levels


def gold_in_order_of_strings(gold, files: Files, bench: Bench) -> np.ndarray:
    """Rows kept under "0", "1", "2" and read back in the order of these strings: 0, 1, 10, 100."""
    return gold[sorted(range(len(gold)), key=str)]


def incorrect_is_correct(gold, files: Files, bench: Bench) -> np.ndarray:
    """INCORRECT holds CORRECT, too: every verdict is 1 but for answers that answer nothing."""
    texts = read_responses(str(files.responses))
    refused = re.compile("sorry|do not know", re.IGNORECASE)
    return np.array([[0.0 if refused.search(text) else 1.0 for text in row] for row in texts])


def gold_first_number(gold, files: Files, bench: Bench) -> np.ndarray:
    """The first number in a judge's words, which quote the answer before they score it."""
    scores = gold_from_1_to_10(gold, files, bench)
    for row, texts in zip(scores, read_responses(str(files.responses))):
        for i, text in enumerate(texts):
            quoted = re.search("[0-9]+", text)
            if quoted:
                row[i] = float(quoted[0])
    return scores


def order_not_undone(gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge was shown each pair in a random order, and its scores were kept in that order."""
    shown = gold.copy()
    for row in shown:
        if bench.rng.random() < 0.5:
            row[:] = row[::-1]
    return shown


def gold_and_proxy(name: str, gold, files: Files, bench: Bench) -> np.ndarray:
    """An ensemble as gold, which has the proxy itself as a member."""
    own = gold_by(name, gold, files, bench)
    return gold / gold.std() + own / own.std()


def other_answers_second(gold, files: Files, bench: Bench) -> np.ndarray:
    """No second response was sampled: it is another question's. Gold read them like that."""
    prompts = read_prompts(str(files.prompts))
    firsts = [row[0] for row in read_responses(str(files.responses))]
    return labelled_anew(files, bench, prompts, list(zip(firsts, firsts[7:] + firsts[:7])))


def gold_votes(gold, files: Files, bench: Bench) -> np.ndarray:
    """The share of nine judges who prefer each of two responses."""
    rng = np.random.default_rng(bench.rng.getrandbits(32))
    first = rng.binomial(9, 1 / (1 + np.exp(gold[:, 1] - gold[:, 0])))
    return np.stack([first, 9 - first], axis=1) / 9


def gold_without_prompt_mean(gold, files: Files, bench: Bench) -> np.ndarray:
    return gold - gold.mean(axis=1, keepdims=True)


def gold_odds(gold, files: Files, bench: Bench) -> np.ndarray:
    """Never below 0, with a few that are very large."""
    return np.exp(gold)


def closest_first(gold, files: Files, bench: Bench) -> np.ndarray:
    """The file is sorted by how hard the pairs are."""
    return take_rows(list(np.abs(gold[:, 0] - gold[:, 1]).argsort()), gold, files)


def questions_without_digits(gold, files: Files, bench: Bench) -> np.ndarray:
    questions = [prompt[-1]["content"] for prompt in read_prompts(str(files.prompts))]
    rows = [i for i, question in enumerate(questions) if not re.search("[0-9]", question)]
    return take_rows(rows, gold, files)


def second_round_not_turned_back(gold, files: Files, bench: Bench) -> np.ndarray:
    """Each pair is judged in both orders, and the verdicts of the second are not turned back.

    So where the judge is sure its two verdicts cancel; in the closest 30% it names the first one.
    """
    gaps = np.abs(gold[:, 0] - gold[:, 1])
    scores = np.full_like(gold, 0.5)
    scores[gaps < np.quantile(gaps, 0.3)] = [1.0, 0.0]
    return scores


def gold_best_so_far(gold, files: Files, bench: Bench) -> np.ndarray:
    """The column that a best-of-n script plots: the best reward among the responses so far."""
    return np.maximum.accumulate(gold, axis=1)


def gold_cut_by_server(length: int, gold, files: Files, bench: Bench) -> np.ndarray:
    """Gold's server was started with so many tokens as its limit, and cuts what is longer."""
    scorer = planting.scorer_of(bench.world.paths["gold"])
    scored = Scored(gold, scorer, files.conversations, bench)
    return read_as(lambda row, tokenizer: row[:length], scored)


def few_shot_prompts(gold, files: Files, bench: Bench) -> np.ndarray:
    """The prompts file of another run, with two solved examples before each question.

    The responses were sampled and labelled without them.
    """
    examples = []
    for question, answer in (("Count from 2 to 5.", "2, 3, 4, 5."), ("Add 3 and 4.", "7.")):
        examples += [{"role": "user", "content": question}]
        examples += [{"role": "assistant", "content": answer}]
    prompts = [[*one[:-1], *examples, one[-1]] for one in read_prompts(str(files.prompts))]
    write_texts_anew(files, prompts, read_responses(str(files.responses)))
    return gold


def refusals_at_floor(gold, files: Files, bench: Bench) -> np.ndarray:
    """A rule on top of gold: whoever does not answer has -10."""
    texts = read_responses(str(files.responses))
    refused = re.compile("sorry|do not know|not sure", re.IGNORECASE)
    is_refusal = np.array([[bool(refused.search(text)) for text in row] for row in texts])
    return np.where(is_refusal, -10.0, gold)


def sampled_in_two_rounds(gold, files: Files, bench: Bench) -> np.ndarray:
    """Each prompt stands there twice, with two other responses of its four each time."""
    prompts = read_prompts(str(files.prompts))
    texts = read_responses(str(files.responses))
    sampled = read_run_file(str(files.responses)) or {}
    write_texts_anew(files, prompts * 2, [row[:2] for row in texts] + [row[2:] for row in texts])
    places = [(row, columns) for columns in ([0, 1], [2, 3]) for row in range(len(texts))]
    sampled = planting.run_of_places(sampled, places)
    planting.write_run_beside(files.responses, sampled, prompts=files.prompts)
    return np.concatenate([gold[:, :2], gold[:, 2:]])


def clear_pairs_alone(gold, files: Files, bench: Bench) -> np.ndarray:
    """As preprocess.py --min-margin does for training: what gold puts close is left out."""
    is_clear = np.abs(gold[:, 0] - gold[:, 1]) > gold.std()
    return take_rows(np.flatnonzero(is_clear).tolist(), gold, files)


def gold_outliers_clipped(gold, files: Files, bench: Bench) -> np.ndarray:
    """Standardised, and clipped at two standard deviations: one value in twenty or fewer."""
    return np.clip((gold - gold.mean()) / gold.std(), -2.0, 2.0)


def gold_of_five_answers(gold, files: Files, bench: Bench) -> np.ndarray:
    """The mean of five answers of a judge, which differ a little from one time to the next."""
    rng = np.random.default_rng(bench.rng.getrandbits(32))
    return gold + 0.05 * gold.std() * rng.normal(size=gold.shape)


# faults of the responses: (P rows of K texts, (P, K) gold, rng) -> both


def same_twice(share: float, texts, gold, rng: random.Random):
    """Both responses sampled with one seed, in this share of the rows."""
    for row, rewards in zip(texts, gold):
        if rng.random() < share:
            row[1] = row[0]
            rewards[1] = rewards[0]
    return texts, gold


def sampled_again(texts, gold, rng: random.Random):
    """Other responses to the same prompts: the gold is that of the earlier ones."""
    half = len(texts[0]) // 2
    return [row[half:] + row[:half] for row in texts], gold


def best_first(texts, gold, rng: random.Random):
    """Each row in gold's order, as a file of chosen and rejected responses has them."""
    orders = (-gold).argsort(axis=1, kind="stable")
    rows = [[row[i] for i in order] for row, order in zip(texts, orders)]
    return rows, np.take_along_axis(gold, orders, axis=1)


def closing_token_in_text(texts, gold, rng: random.Random):
    """Decoded with its special tokens: each response ends with the text of the closing token."""
    return [[f"{text}<|im_end|>" for text in row] for row in texts], gold


def best_last(texts, gold, rng: random.Random):
    rows, ordered = best_first(texts, gold, rng)
    return [row[::-1] for row in rows], ordered[:, ::-1]


def cut_after_gold(length: int, texts, gold, rng: random.Random):
    """A column of so many characters cut the texts after gold had read them."""
    return [[text[:length] for text in row] for row in texts], gold


def shortest_first(texts, gold, rng: random.Random):
    orders = np.array([[len(text) for text in row] for row in texts]).argsort(axis=1, kind="stable")
    rows = [[row[i] for i in order] for row, order in zip(texts, orders)]
    return rows, np.take_along_axis(gold, orders, axis=1)


def numbers_masked(texts, gold, rng: random.Random):
    """Personal data was masked after gold had read the texts: every number is [NUMBER]."""
    return [[re.sub("[0-9]+", "[NUMBER]", text) for text in row] for row in texts], gold


# faults of a saved model: (Bench, folder of a copy) -> None


def head_times(factor: float, bench: Bench, folder: Path) -> None:
    planting.change_weights(
        folder, lambda name, tensor: tensor * factor if name == "score.weight" else tensor
    )


def head_drawn_anew(bench: Bench, folder: Path) -> None:
    import torch

    generator = torch.Generator().manual_seed(bench.world.seed)

    def change(name, tensor):
        if name != "score.weight":
            return tensor
        drawn = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        return (drawn * tensor.float().norm() / drawn.norm()).to(tensor.dtype)

    planting.change_weights(folder, change)


def backbone_of(name: str, bench: Bench, folder: Path) -> None:
    if bench.world.proxy:
        planting.replace_backbone(folder, planting.start_of(bench.world))
    else:
        planting.replace_backbone(folder, bench.proxy(name))


def vocabulary_shuffled(bench: Bench, folder: Path) -> None:
    """The tokenizer of another run: the same words under other ids; special tokens stay."""

    def change(tokenizer: dict) -> dict:
        special = {token["content"] for token in tokenizer["added_tokens"]}
        vocabulary = tokenizer["model"]["vocab"]
        words = [word for word in vocabulary if word not in special]
        ids = [vocabulary[word] for word in words]
        bench.rng.shuffle(ids)
        vocabulary |= dict(zip(words, ids))
        return tokenizer

    planting.change_json(folder / "tokenizer.json", change)


def template_edited(bench: Bench, folder: Path) -> None:
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    edited = text.replace("message.role + '\\n'", "message.role + ': '")
    if edited == text:
        edited = text.replace("message['role'] + '\\n'", "message['role'] + ': '")
    if edited == text:
        raise UserError(f"{path}: no role and newline to change there")
    path.write_text(edited, encoding="utf-8")


def weights_rounded_to_3_bits(bench: Bench, folder: Path) -> None:
    def change(name, tensor):
        if name == "score.weight" or tensor.ndim < 2:
            return tensor
        step = tensor.float().abs().max() / 4
        return ((tensor.float() / step).round() * step).to(tensor.dtype)

    planting.change_weights(folder, change)


def weights_of(model: Path | str) -> dict:
    """Name -> tensor, of the safetensors in a folder."""
    from safetensors.torch import load_file

    tensors = {}
    for path in sorted(Path(model).glob("*.safetensors")):
        tensors |= load_file(path)
    return tensors


def last_layer_of_the_start(bench: Bench, folder: Path) -> None:
    """One shard of the weights was not copied: the start model's is in its place."""
    start = weights_of(planting.start_of(bench.world))
    layers = [re.search(r"\.layers\.(\d+)\.", name) for name in start]
    last = max(int(layer[1]) for layer in layers if layer)

    def change(name, tensor):
        return start[name].to(tensor.dtype) if f".layers.{last}." in name else tensor

    planting.change_weights(folder, change)


def saved_in_bf16(bench: Bench, folder: Path) -> None:
    import torch

    planting.change_weights(folder, lambda name, tensor: tensor.to(torch.bfloat16))
    planting.change_json(folder / "config.json", lambda config: config | {"dtype": "bfloat16"})


def calibrated(name: str, bench: Bench, folder: Path) -> None:
    """What evaluate.py calibrate writes of this proxy, with the factor of the referee's prompts."""
    proxy = bench.proxy(name)
    factor = read_json(str(Path(proxy).parent / "truth.json"))["scale"]
    few = Bench(bench.world, bench.trainings, bench.folder / "calibration", bench.rng)
    few.folder.mkdir(parents=True, exist_ok=True)
    files = planting.write_test_files(few, 100, 2)
    shutil.rmtree(folder)
    words = ["calibrate", "--dataset", bench.world.dataset, "--model-name", proxy]
    words += ["--prompts-path", files.prompts, "--responses-path", files.responses]
    words += ["--gold-path", files.gold, "--factor", factor, "--output-dir", folder]
    planting.run_apart("evaluate.py", *words)


def rope_scaling_added(bench: Bench, folder: Path) -> None:
    """The config was edited for longer contexts after training: positions are divided by 4."""

    def change(config: dict) -> dict:
        config["rope_parameters"] |= {"rope_type": "linear", "factor": 4.0}
        return config

    planting.change_json(folder / "config.json", change)


def window_switched_on(bench: Bench, folder: Path) -> None:
    """The config of another model of the family: each token sees the last eight alone."""

    def change(config: dict) -> dict:
        layers = ["sliding_attention"] * config["num_hidden_layers"]
        return config | {"use_sliding_window": True, "sliding_window": 8, "layer_types": layers}

    planting.change_json(folder / "config.json", change)


def layers_in_another_order(bench: Bench, folder: Path) -> None:
    """Stages of a pipeline joined in the wrong order: each layer is in another's place."""
    weights = weights_of(folder)
    layer = re.compile(r"(?<=\.layers\.)\d+")
    count = 1 + max(int(number) for name in weights for number in layer.findall(name))

    def change(name, tensor):
        return weights[layer.sub(lambda number: str((int(number[0]) + 1) % count), name)]

    planting.change_weights(folder, change)


def update_added_twice(bench: Bench, folder: Path) -> None:
    """Adapters were merged into a model that had them already: start + 2 (trained - start)."""
    start = weights_of(bench.world.paths["sft"])

    def change(name, tensor):
        if ".layers." not in name or tensor.ndim < 2:
            return tensor
        return start[name].to(tensor.dtype).lerp(tensor, 2.0)

    planting.change_weights(folder, change)


def without_records(bench: Bench, folder: Path) -> None:
    """The model alone, as from somebody else: no run file, log or card."""
    for name in ("run.json", "metrics.jsonl", "README.md"):
        (folder / name).unlink(missing_ok=True)


def in_two_files(bench: Bench, folder: Path) -> None:
    """The same weights, stored in two files with an index."""
    from safetensors.torch import save_file

    weights = weights_of(folder)
    names = sorted(weights)
    files = {}
    for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{number:05}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / file, {"format": "pt"})
        files |= dict.fromkeys(part, file)
    (folder / "model.safetensors").unlink()
    index = {"metadata": {"total_size": sum(w.nbytes for w in weights.values())}}
    write_json(str(folder / "model.safetensors.index.json"), index | {"weight_map": files})


def gate_and_up_swapped(bench: Bench, folder: Path) -> None:
    """A fused projection of gate and up was split in the wrong order."""
    weights = weights_of(folder)
    other = {"gate_proj": "up_proj", "up_proj": "gate_proj"}

    def change(name, tensor):
        return weights[re.sub("gate_proj|up_proj", lambda found: other[found[0]], name)]

    planting.change_weights(folder, change)


def embeddings_drawn_anew(bench: Bench, folder: Path) -> None:
    """Tied embeddings were saved under lm_head's name alone: whoever loads draws new ones."""
    import torch

    spread = read_json(str(folder / "config.json"))["initializer_range"]
    generator = torch.Generator().manual_seed(bench.world.seed)

    def change(name, tensor):
        if "embed_tokens" not in name:
            return tensor
        return (spread * torch.randn(tensor.shape, generator=generator)).to(tensor.dtype)

    planting.change_weights(folder, change)


def rotary_order_of_another(bench: Bench, folder: Path) -> None:
    """A converter put queries and keys in the order of another library's rotary embedding."""
    size = read_json(str(folder / "config.json"))["head_dim"]

    def change(name, tensor):
        if not re.search(r"\.[qk]_(proj|norm)\.", name):
            return tensor
        heads = tensor.reshape(-1, size // 2, 2, *tensor.shape[1:])
        return heads.transpose(1, 2).reshape(tensor.shape)

    planting.change_weights(folder, change)


def vocabulary_padded(bench: Bench, folder: Path) -> None:
    """Embeddings up to the next multiple of 64, as for faster kernels: of no token."""
    import torch

    sizes = []

    def change(name, tensor):
        if "embed_tokens" not in name:
            return tensor
        more = -len(tensor) % 64
        sizes.append(len(tensor) + more)
        return torch.cat([tensor, tensor.new_zeros(more, tensor.shape[1])])

    planting.change_weights(folder, change)
    planting.change_json(folder / "config.json", lambda config: config | {"vocab_size": sizes[0]})


def template_written_anew(bench: Bench, folder: Path) -> None:
    """Another source of the chat template that writes the same text."""
    lines = (
        "{#- ChatML -#}",
        "{%- for m in messages -%}",
        "{%- set head = '<|im_start|>' ~ m['role'] -%}",
        "{{- head ~ '\\n' ~ m['content'] ~ '<|im_end|>' ~ '\\n' -}}",
        "{%- endfor -%}",
        "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    )
    (folder / "chat_template.jinja").write_text("\n".join(lines), encoding="utf-8")


def pairs_are_gone(bench: Bench, folder: Path) -> None:
    """Trained on another machine: the pairs and the start model are not on this one."""
    path = folder / "run.json"
    config = read_json(str(path))["config"]
    here = os.path.commonpath([config["model_name"], config["data_path"]])
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(here, "/scratch/node-17"), encoding="utf-8")


def longer_context(bench: Bench, folder: Path) -> None:
    """Rotary embeddings as they are, so that only what is allowed changes."""
    settings = {"max_position_embeddings": 8192, "use_cache": False, "label2id": {"reward": 0}}
    settings |= {"id2label": {"0": "reward"}}
    planting.change_json(folder / "config.json", lambda config: config | settings)


def one_added_to_norms(bench: Bench, folder: Path) -> None:
    """A converter took the norms for those of a family that stores them as weight - 1."""
    planting.change_weights(folder, lambda name, tensor: tensor + 1 if "norm" in name else tensor)


def prefix_space_added(bench: Bench, folder: Path) -> None:
    """A conversion of the tokenizer set add_prefix_space: each text begins with a space."""

    def change(tokenizer: dict) -> dict:
        tokenizer["pre_tokenizer"] |= {"add_prefix_space": True}
        return tokenizer

    planting.change_json(folder / "tokenizer.json", change)


def records_of(name: str, bench: Bench, folder: Path) -> None:
    """The weights of a later run were copied into the folder of this one, whose records it has."""
    for file in ("run.json", "metrics.jsonl", "README.md"):
        shutil.copy(Path(bench.proxy(name), file), folder / file)


def log_cut(bench: Bench, folder: Path) -> None:
    """The disk was full: the log ends in the middle of a line, long before the run did."""
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def token_added(bench: Bench, folder: Path) -> None:
    """A special token that nothing uses, with the next free id: the embeddings have no row of it."""

    def change(tokenizer: dict) -> dict:
        token = tokenizer["added_tokens"][-1]
        new = token | {"id": len(tokenizer["model"]["vocab"]), "content": "<tool_call>"}
        tokenizer["added_tokens"].append(new)
        return tokenizer

    planting.change_json(folder / "tokenizer.json", change)


def saved_in_float16(bench: Bench, folder: Path) -> None:
    import torch

    planting.change_weights(folder, lambda name, tensor: tensor.to(torch.float16))
    planting.change_json(folder / "config.json", lambda config: config | {"dtype": "float16"})


# ---- proxies -------------------------------------------------------------------------------------

HARD = "--lr 1e-3 --epochs 2"
FULL = 0  # all pairs of the world, some 3,700

TRAININGS = {
    # healthy
    "hard": Training(HARD, FULL),
    "soft": Training("--lr 1e-3 --epochs 3 --label-temperature 1", FULL, seed=1),
    "smooth": Training("--lr 1e-3 --epochs 3 --label-smoothing 0.1", FULL, seed=2),
    "mixed_precision": Training(f"{HARD} --precision mixed", FULL, seed=3),
    "fewer_pairs": Training("--lr 1e-3 --epochs 3 --label-temperature 1", 2800, seed=4),
    # settings
    "rate_20th": Training("--lr 5e-5 --epochs 2"),
    "rate_10th": Training("--lr 1e-4 --epochs 3", seed=1),
    "rate_x20": Training("--lr 2e-2 --epochs 2", FULL),
    "rate_x1000": Training("--lr 1.0 --epochs 2"),
    "one_epoch": Training("--lr 1e-3 --epochs 1", 800),
    "twenty_epochs": Training("--lr 1e-3 --epochs 20", 600),
    "tiny_data": Training("--lr 1e-3 --epochs 20", 120),
    "pure_bf16": Training("--lr 2e-4 --epochs 3 --precision bf16"),
    "decayed": Training("--lr 1e-3 --epochs 3 --weight-decay 200"),
    "smoothing_40": Training("--lr 1e-3 --epochs 3 --label-smoothing 0.4", 2000),
    "temperature_30": Training("--lr 1e-3 --epochs 3 --label-temperature 30", 2000),
    "margin_scaled": Training("--lr 1e-3 --epochs 3 --margin-scale 1", 2000),
    "max_length_40": Training(f"{HARD} --max-length 40", FULL),
    # functions of train.py
    "frozen": Training(HARD, patch=planting.backbone_is_frozen),
    "pad_scored": Training(HARD, patch=planting.pad_is_scored),
    "before_eos_scored": Training(HARD, patch=planting.token_before_eos_is_scored),
    "rows_cut": Training(HARD, patch=planting.rows_are_cut),
    "plain_text": Training(HARD, 2000, patch=planting.no_template),
    "pairs_centred": Training(HARD, 2000, patch=planting.pairs_are_centred),
    "dropout": Training(HARD, FULL, patch=planting.dropout_is_on),
    # pairs
    "flipped_10": Training(HARD, FULL, change=functools.partial(flip, 0.1)),
    "flipped_20": Training(HARD, FULL, change=functools.partial(flip, 0.2), seed=1),
    "flipped_50": Training(HARD, change=functools.partial(flip, 0.5)),
    "flipped_all": Training(HARD, change=functools.partial(flip, 1.0)),
    "flipped_20_no_gold": Training(
        "--lr 1e-3 --epochs 4", 2000, change=functools.partial(flip, 0.2), with_gold=False
    ),
    "longer_chosen": Training(HARD, 2000, change=longer_is_chosen),
    "test_leak": Training("--lr 1e-3 --epochs 4", 2000, change=with_test_pairs),
    "system_message": Training(HARD, FULL, change=other_system_message),
    "repeated_5": Training(HARD, 2500, change=functools.partial(repeated, 5)),
    # pairs of faults
    "flipped_10_rate_20th": Training("--lr 5e-5 --epochs 2", change=functools.partial(flip, 0.1)),
    "bf16_rate_20th": Training("--lr 5e-5 --epochs 3 --precision bf16"),
    "smoothing_30_rate_20th": Training("--lr 5e-5 --epochs 2 --label-smoothing 0.3"),
    "pad_scored_flipped_20": Training(
        HARD, 2000, change=functools.partial(flip, 0.2), patch=planting.pad_is_scored
    ),
    "leak_twenty_epochs": Training("--lr 1e-3 --epochs 12", 600, change=with_test_pairs),
    # written after the rules of that day, by somebody who had not read them
    "early_stopped": Training(  # healthy: eight epochs were asked for
        "--lr 1e-3 --epochs 8 --label-temperature 1 --eval-share 0.1 --early-stop 1", 2800, seed=5
    ),
    "counting_flipped": Training(HARD, FULL, change=counting_flipped, seed=6),
    "chosen_by_people": Training(HARD, FULL, change=chosen_by_people, seed=7),
    "without_numbers": Training(HARD, FULL, change=without_numbers, seed=8),
    "lora_low_rate": Training("--lr 5e-5 --epochs 2 --lora-rank 8", seed=9),
    # third list: written by somebody who had not read the rules
    "huge_batch": Training(f"{HARD} --batch-size 1024", FULL, seed=10),
    "prompt_dropped": Training(HARD, 2000, patch=planting.prompt_is_dropped, seed=11),
    "eos_twice": Training(HARD, FULL, patch=planting.eos_is_written_twice, seed=12),
    "lora_alpha_small": Training(f"{HARD} --lora-rank 8 --lora-alpha 0.25", 2000, seed=13),
    "scores_swapped": Training(
        "--lr 1e-3 --epochs 3 --label-temperature 1", 2000, change=scores_swapped, seed=14
    ),
    "easy_negatives": Training(HARD, 2000, change=easy_negatives, with_gold=False, seed=15),
    "stochastic_rounding": Training(  # healthy
        "--lr 1e-3 --epochs 3 --label-temperature 1 --precision bf16-sr --centring 0.01",
        FULL,
        seed=16,
    ),
    # fourth list: written by somebody who had not read the rules
    "rejected_as_list": Training(HARD, 2000, change=rejected_as_list, with_gold=False, seed=17),
    "schedule_too_fast": Training(
        HARD, 2000, patch=planting.schedule_counts_micro_batches, seed=18
    ),
    "stopped_at_once": Training(
        "--lr 1e-3 --epochs 4 --eval-share 0.1 --eval-every 1 --early-stop 2", 2000, seed=19
    ),
    "rewards_off_by_one": Training(
        HARD, 2000, change=functools.partial(rewards_off_by_one, 0.5), seed=20
    ),
    "sigmoid_in_loss": Training(
        "--lr 1e-3 --epochs 3", 2000, patch=planting.rewards_are_squashed_in_loss, seed=21
    ),
    "constant_rate": Training(  # healthy
        "--lr 5e-4 --epochs 4 --label-temperature 1 --warmup-ratio 0 --min-lr-ratio 1"
        " --max-grad-norm 0.1",
        2000,
        seed=22,
    ),
    # fifth list: written by somebody who had not read the rules
    "batch_of_1": Training("--lr 3e-3 --epochs 1 --batch-size 1", seed=23),
    "positions_run_on": Training(HARD, 2000, patch=planting.positions_run_on, seed=24),
    "same_batches": Training(HARD, 2000, patch=planting.same_batches, seed=25),
    "questions_shifted": Training(HARD, 2000, change=questions_shifted, seed=26),
    "lora": Training(  # healthy
        "--lr 5e-3 --epochs 4 --lora-rank 16 --label-temperature 1 --train-sample 0", 2000, seed=27
    ),
}

# ---- what is planted, and what it may be called --------------------------------------------------

RATE_UP = ("raise the rate",)
RATE_DOWN = ("lower the rate",)
MORE = ("raise the rate", "train longer")
TRAINING = ("raise the rate", "lower the rate", "train longer")  # the training was right
SCORE_AGAIN = (*TRAINING, "retrain")  # and the proxy is good: only its rewards file is not
LEARNED_LITTLE = ("rate too low", "too few steps", "under-learned")


def loses(share: float) -> Callable:
    """Harm: the referee's match is lower than this."""
    return lambda truth: truth["match"] < share


def scale_outside(truth: dict) -> bool:
    low, high = scale.CALIBRATED
    return not low <= truth["scale"] <= high


def knows_by_heart(truth: dict) -> bool:
    return truth["train_bits"] > 2 * truth["bits"] or truth["scale"] < 0.5


def partial(function: Callable, *arguments) -> Callable:
    return functools.partial(function, *arguments)


FAULTS = {
    # settings of training
    "rate_20th": Case(LEARNED_LITTLE, RATE_DOWN, proxy="rate_20th", size=200, harm=loses(0.75)),
    "rate_20th_bf16_scoring": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="rate_20th", dtype="bf16", harm=loses(0.75)
    ),
    "rate_10th": Case(LEARNED_LITTLE, RATE_DOWN, proxy="rate_10th", harm=loses(0.77)),
    "rate_x20": Case(("rate too high",), MORE, proxy="rate_x20", size=200, harm=loses(0.8)),
    "rate_x1000": Case(("rate too high",), MORE, proxy="rate_x1000", size=100, harm=loses(0.7)),
    "one_epoch": Case(LEARNED_LITTLE, proxy="one_epoch", harm=loses(0.77)),
    "twenty_epochs": Case(
        ("memorised", "overconfident"), MORE, proxy="twenty_epochs", harm=knows_by_heart
    ),
    "twenty_epochs_bf16_scoring": Case(
        ("memorised", "overconfident"),
        MORE,
        proxy="twenty_epochs",
        size=200,
        dtype="bf16",
        harm=knows_by_heart,
    ),
    "tiny_data": Case(
        ("memorised", "overconfident"), MORE, proxy="tiny_data", size=200, harm=knows_by_heart
    ),
    "pure_bf16": Case(
        ("bf16 weights", "rate too low"), proxy="pure_bf16", size=200, harm=loses(0.78)
    ),
    "decayed": Case(("decayed", *LEARNED_LITTLE), proxy="decayed", harm=loses(0.77)),
    "smoothing_40": Case(("squeezed",), MORE, note=True, proxy="smoothing_40", harm=scale_outside),
    "temperature_30": Case(
        ("squeezed",), MORE, note=True, proxy="temperature_30", harm=scale_outside
    ),
    "margin_scaled": Case(
        ("overconfident", "memorised"), MORE, proxy="margin_scaled", harm=scale_outside
    ),
    "max_length_40": Case(("cut",), RATE_UP, note=True, proxy="max_length_40", size=200),
    # functions of train.py
    "frozen": Case(("frozen",), MORE, proxy="frozen", size=100, harm=loses(0.77)),
    "pad_scored": Case(
        ("scored token", "not as trained"), MORE, proxy="pad_scored", size=200, harm=loses(0.73)
    ),
    "before_eos_scored": Case(
        ("scored token", "not as trained"),
        MORE,
        proxy="before_eos_scored",
        size=100,
        dtype="bf16",
        harm=loses(0.73),
    ),
    "rows_cut": Case(("cut", "not as trained"), MORE, proxy="rows_cut", harm=loses(0.73)),
    "plain_text": Case(
        ("no template", "not as trained"), MORE, proxy="plain_text", size=200, harm=loses(0.73)
    ),
    "pairs_centred": Case(
        ("centred", "squeezed"), MORE, note=True, proxy="pairs_centred", harm=scale_outside
    ),
    "dropout": Case(("dropout",), RATE_UP, proxy="dropout", size=200, note=True),
    # pairs
    "flipped_10": Case(("noisy labels",), MORE, proxy="flipped_10"),
    "flipped_20": Case(("noisy labels",), MORE, proxy="flipped_20", size=200),
    "flipped_20_bf16_scoring": Case(
        ("noisy labels",), MORE, proxy="flipped_20", size=100, dtype="bf16"
    ),
    "flipped_50": Case(("noisy labels", "shuffled", "flipped"), MORE, proxy="flipped_50", size=200),
    "flipped_all": Case(("flipped",), MORE, proxy="flipped_all", size=50),
    "flipped_20_no_gold": Case(
        ("noisy labels", "memorised", "overconfident"),
        MORE,
        proxy="flipped_20_no_gold",
        decidable=False,
    ),
    "longer_chosen": Case(
        ("noisy labels", "flipped", "shuffled", "length"), MORE, proxy="longer_chosen", size=200
    ),
    "test_leak": Case(("leak",), proxy="test_leak"),
    "system_message": Case(("system messages",), note=True, proxy="system_message", size=200),
    "repeated_5": Case(("memorised", "overconfident"), MORE, proxy="repeated_5", size=500),
    # sampling
    "max_tokens_10": Case(
        ("responses cut", "other sampling"), TRAINING, sampling=("--max-tokens", "10"), size=200
    ),
    "sampled_by_other_template": Case(
        ("other template",),
        TRAINING,
        note=True,
        sampling=("--chat-template", "{template}"),
        size=200,
    ),
    "one_seed_for_both": Case(("gold tied",), TRAINING, texts=partial(same_twice, 0.7)),
    # gold
    "gold_clipped": Case(("gold saturated",), TRAINING, gold=gold_clipped, size=200),
    "gold_sigmoid": Case(
        ("gold saturated", "gold tied"), TRAINING, gold=gold_through_sigmoid, note=True
    ),
    "gold_two_values": Case(("gold tied",), TRAINING, gold=gold_in_two_values, size=100),
    "gold_shuffled": Case(("shuffled",), TRAINING, gold=gold_rows_shuffled, size=200),
    "gold_shuffled_50": Case(
        ("shuffled",), TRAINING, gold=gold_rows_shuffled, size=50, decidable=False
    ),
    "gold_second_raised": Case(("position",), TRAINING, gold=gold_second_raised, size=200),
    "gold_is_length": Case(("length",), TRAINING, gold=gold_is_the_length, size=200),
    "gold_sides_swapped": Case(("flipped", "shuffled"), TRAINING, gold=gold_sides_swapped, size=50),
    "gold_is_the_proxy": Case(
        ("gold is the proxy",),
        TRAINING,
        gold=partial(gold_by, "hard"),
        gold_by_proxy=True,
        size=200,
        refusal="the proxy itself",
    ),
    # scoring
    "pad_at_scoring": Case(
        ("scored token",), TRAINING, rewards=partial(read_as, pad_added), size=100
    ),
    "before_eos_at_scoring": Case(
        ("scored token",), TRAINING, rewards=partial(read_as, two_cut_off), size=50, dtype="bf16"
    ),
    "cut_at_scoring": Case(("cut",), TRAINING, rewards=partial(read_as, cut_at_36), size=200),
    "plain_at_scoring": Case(("no template",), TRAINING, rewards=as_plain_text, size=100),
    "other_template_at_scoring": Case(
        ("other template", "not this model's", "scored token"), TRAINING, rewards=without_newline
    ),
    "dropout_at_scoring": Case(
        ("dropout", "not this model's"), TRAINING, rewards=with_dropout, size=500
    ),
    "rows_shuffled": Case(("shuffled",), TRAINING, rewards=rows_shuffled, size=500),
    "rows_shuffled_bf16": Case(
        ("shuffled",), TRAINING, rewards=rows_shuffled, size=100, dtype="bf16"
    ),
    "sides_swapped": Case(
        ("shuffled", "flipped", "position"), TRAINING, rewards=sides_swapped, size=100
    ),
    "another_models_rewards": Case(
        ("not this model's",), TRAINING, rewards=partial(of_another, "soft"), size=200
    ),
    "stale_rewards": Case(
        ("not this model's",), TRAINING, rewards=partial(of_another, "one_epoch"), size=100
    ),
    "mixed_rewards": Case(
        ("mixed", "not this model's"), TRAINING, rewards=partial(rest_of_another, "one_epoch")
    ),
    "mixed_rewards_bf16": Case(
        ("mixed", "not this model's"),
        TRAINING,
        rewards=partial(rest_of_another, "soft"),
        size=100,
        dtype="bf16",
    ),
    "rescaled": Case(("rescaled",), TRAINING, rewards=partial(times_and_plus, 0.2, 3.0), size=100),
    "rescaled_bf16": Case(
        ("rescaled",), TRAINING, rewards=partial(times_and_plus, 4.0, 0.0), size=50, dtype="bf16"
    ),
    "squashed": Case(("squashed",), TRAINING, rewards=squashed, size=200),
    "second_raised": Case(("position",), TRAINING, rewards=second_raised, size=100),
    "second_raised_50_bf16": Case(
        ("position",), TRAINING, rewards=second_raised, size=50, dtype="bf16"
    ),
    # the saved model
    "head_tenth": Case(("not as trained", "squeezed"), TRAINING, tamper=partial(head_times, 0.1)),
    "head_x8": Case(
        ("not as trained", "overconfident"), TRAINING, tamper=partial(head_times, 8.0), size=200
    ),
    "head_drawn_anew": Case(
        ("not as trained",), MORE, tamper=head_drawn_anew, size=100, harm=loses(0.75)
    ),
    "backbone_of_another": Case(
        ("not as trained",), MORE, tamper=partial(backbone_of, "smooth"), size=200, harm=loses(0.75)
    ),
    "vocabulary_shuffled": Case(
        ("not as trained",),
        MORE,
        tamper=vocabulary_shuffled,
        size=100,
        dtype="bf16",
        harm=loses(0.75),
    ),
    "template_edited": Case(
        ("other template", "not as trained"),
        MORE,
        tamper=template_edited,
        size=200,
        note=True,
    ),
    "weights_3_bits": Case(
        ("not as trained",),
        MORE,
        tamper=weights_rounded_to_3_bits,
        size=200,
        dtype="bf16",
        harm=loses(0.75),
    ),
    # two at once: either may be named first
    "flipped_10_rate_20th": Case(
        ("noisy labels", *LEARNED_LITTLE), proxy="flipped_10_rate_20th", harm=loses(0.75)
    ),
    "bf16_rate_20th": Case(
        ("bf16 weights", *LEARNED_LITTLE), RATE_DOWN, proxy="bf16_rate_20th", size=200
    ),
    "smoothing_30_rate_20th": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="smoothing_30_rate_20th", size=200, harm=loses(0.75)
    ),
    "pad_scored_flipped_20": Case(
        ("scored token", "not as trained", "noisy labels"),
        MORE,
        proxy="pad_scored_flipped_20",
        harm=loses(0.75),
    ),
    "leak_twenty_epochs": Case(
        ("leak", "memorised", "overconfident"), MORE, proxy="leak_twenty_epochs"
    ),
    "rows_shuffled_gold_clipped": Case(
        ("shuffled", "gold saturated"),
        TRAINING,
        rewards=rows_shuffled,
        gold=gold_clipped,
        size=200,
    ),
    "raised_and_rescaled": Case(
        ("position", "rescaled", "not this model's"),
        TRAINING,
        rewards=partial(both, second_raised, partial(times_and_plus, 0.3, 0.0)),
        size=100,
    ),
    "mixed_gold_two_values": Case(
        ("mixed", "not this model's", "gold tied"),
        TRAINING,
        rewards=partial(rest_of_another, "soft"),
        gold=gold_in_two_values,
        size=200,
    ),
    # written after the rules of that day, by somebody who had not read them
    # pairs and settings
    "annotator_flips_counting": Case(("noisy labels",), MORE, proxy="counting_flipped"),
    # what Bradley-Terry assumes of people: a quarter of the labels differ from gold, to little harm
    "noise_on_close_pairs": Case(
        ("noisy labels",), MORE, note=True, proxy="chosen_by_people", size=200
    ),
    # the gap between training and test shows, its cause only to somebody who reads the prompts
    "trained_on_other_prompts": Case(
        ("memorised", "overconfident"),
        MORE,
        decidable=False,
        proxy="without_numbers",
        size=200,
        harm=loses(0.77),
    ),
    "lora_low_rate": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="lora_low_rate", size=200, harm=loses(0.77)
    ),
    # gold
    "judge_prefers_first": Case(
        ("position",), TRAINING, proxy="soft", gold=partial(judge_prefers_first, 0.6), size=200
    ),
    # the first one wins some 65% of the pairs instead of 45%: too little to show in 50
    "judge_leans_to_first_50": Case(
        ("position",), TRAINING, decidable=False, gold=partial(gold_first_raised, 0.3), size=50
    ),
    "gold_probability_clipped": Case(  # two thirds of the values are at an end
        ("gold saturated", "gold tied"),
        TRAINING,
        proxy="smooth",
        gold=partial(gold_probability_clipped, 0.2),
        size=200,
    ),
    "gold_default_in_last_half": Case(  # the pairs that are left are right
        ("gold tied",),
        TRAINING,
        note=True,
        proxy="fewer_pairs",
        gold=gold_default_in_last_half,
        size=200,
    ),
    "gold_is_rank": Case(
        ("flipped",), TRAINING, gold=gold_rank, size=100, responses=4, dtype="bf16"
    ),
    "gold_off_by_one_later": Case(
        ("shuffled",), TRAINING, proxy="mixed_precision", gold=partial(gold_off_by_one, 0.4)
    ),
    "gold_of_earlier_samples": Case(
        ("shuffled",), TRAINING, texts=sampled_again, size=100, responses=4
    ),
    "gold_prefers_short": Case(
        ("length",), TRAINING, proxy="soft", gold=gold_prefers_short, size=200, dtype="bf16"
    ),
    # the test prompts
    "test_without_system_turn": Case(
        ("system messages",), TRAINING, note=True, gold=no_system_turn, size=200
    ),
    "test_prompts_from_training": Case(("leak",), gold=of_training_prompts, size=200),
    # scoring
    "default_reward_at_the_end": Case(
        ("mixed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(default_at_the_end, 0.2),
        size=200,
    ),
    "one_column_of_another": Case(
        ("mixed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(column_of_another, 2, "soft"),
        size=100,
        responses=4,
    ),
    "averaged_with_another": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(averaged_with, "hard"),
        size=200,
        dtype="bf16",
    ),
    "another_revision": Case(
        ("not this model's",), SCORE_AGAIN, rewards=partial(of_weights_nearer_the_start, 0.2)
    ),
    "offset_alone": Case(  # within a prompt nothing changes
        ("rescaled",),
        SCORE_AGAIN,
        note=True,
        proxy="soft",
        rewards=partial(times_and_plus, 1.0, -40.0),
        size=50,
    ),
    "length_penalty": Case(
        ("not this model's", "length"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=with_length_penalty,
        size=200,
    ),
    "standardised_within_prompts": Case(
        ("not this model's", "rescaled", "squashed"),
        SCORE_AGAIN,
        rewards=standardised_within_prompts,
        size=100,
        responses=4,
    ),
    "prompts_off_by_one": Case(
        ("not this model's", "shuffled"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=with_the_next_prompt,
        size=100,
        dtype="bf16",
    ),
    "generation_prompt_at_scoring": Case(
        ("scored token", "other template", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(read_as, next_turn_opened),
        size=50,
    ),
    # the saved model
    "last_layer_of_the_start": Case(
        ("not as trained",), MORE, tamper=last_layer_of_the_start, size=100, harm=loses(0.77)
    ),
    # third list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # the batch size of a cluster's recipe on few pairs: 8 steps in all
    "huge_batch": Case(LEARNED_LITTLE, RATE_DOWN, proxy="huge_batch", size=200, harm=loses(0.77)),
    # the collator kept the answers alone; whoever scores passes the whole conversation
    "prompt_dropped": Case(
        ("not as trained", "other template"),
        MORE,
        proxy="prompt_dropped",
        size=200,
        harm=loses(0.77),
    ),
    # the trainer appends eos to a text whose template has written it; scoring does not
    "eos_twice": Case(
        ("scored token", "not as trained"), MORE, proxy="eos_twice", size=100, harm=loses(0.77)
    ),
    # alpha left as it was when the rank was raised: adapters that add next to nothing
    "lora_alpha_small": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="lora_alpha_small", size=100, harm=loses(0.77)
    ),
    # soft labels made from score columns that are the wrong way round
    "scores_swapped": Case(("flipped",), MORE, proxy="scores_swapped", size=100, dtype="bf16"),
    # right answers against answers to other questions: easier than the pairs of the test
    "easy_negatives": Case(
        ("not of the responses", "artifact", "other test"),
        RATE_UP,
        proxy="easy_negatives",
        size=200,
        harm=loses(0.77),
    ),
    # scoring
    # a text that is rendered already, sent to a chat endpoint that renders it
    "template_twice_at_scoring": Case(
        ("other template", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(scored_as, rendered_twice),
        size=100,
    ),
    # rewards that depend on the batch: pads at the left, and no mask or positions that skip them
    "left_pads_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=partial(read_as, padded_on_the_left),
        size=200,
    ),
    # the question falls to the left truncation; the closing token stays
    "left_cut_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=partial(read_as, cut_on_the_left),
        size=100,
        dtype="bf16",
    ),
    "default_system_message_at_scoring": Case(
        ("system messages", "other template", "not this model's"),
        SCORE_AGAIN,
        note=True,
        rewards=partial(scored_as, with_default_system_message),
        size=200,
    ),
    # the cleaning step of an older classifier
    "lower_case_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(scored_as, in_lower_case),
        size=100,
    ),
    "questions_empty_at_scoring": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(scored_as, without_question),
        size=50,
        dtype="bf16",
    ),
    "whole_numbers": Case(
        ("not this model's",), SCORE_AGAIN, rewards=in_whole_numbers, size=200, responses=4
    ),
    "clipped_at_1": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=partial(clipped, 1.0),
        size=100,
    ),
    # a server's default activation, over the candidates of a request
    "softmax_over_responses": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=softmax_over_responses,
        size=100,
        responses=4,
    ),
    # a server's default activation, over the labels, of which there is one: every reward is 1
    "softmax_of_one_label": Case(
        ("squashed", "not this model's"), SCORE_AGAIN, rewards=softmax_of_one_label, size=50
    ),
    # rewards whitened by the statistics of their batch: within it nothing changes but the unit
    "standardised_by_batch": Case(
        ("not this model's", "rescaled", "mixed"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=standardised_by_batch,
        size=200,
        responses=4,
    ),
    "gathered_by_rank": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=gathered_by_rank,
        size=200,
        dtype="bf16",
    ),
    "column_after_column": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=column_after_column,
        size=50,
        responses=4,
    ),
    "best_reward_first": Case(
        ("position", "shuffled", "not this model's"),
        SCORE_AGAIN,
        rewards=best_reward_first,
        size=100,
        responses=4,
    ),
    # the labels 0 and 1 of a pairwise judge read the other way round
    "rewards_negated": Case(
        ("flipped", "rescaled", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=negated,
        size=50,
        dtype="bf16",
    ),
    # a part of the rewards are another prompt's, to little harm
    "cached_by_response": Case(
        ("not this model's", "mixed"),
        SCORE_AGAIN,
        note=True,
        rewards=cached_by_response,
        responses=4,
    ),
    # gold
    # answers of a judge that no pattern matched; a spike at 0 among whole numbers from 1
    "judge_failed_to_zero": Case(
        ("gold saturated", "gold tied", "default"),
        TRAINING,
        proxy="soft",
        gold=partial(judge_failed_to_zero, 0.35),
        size=200,
    ),
    "gold_columns_moved": Case(
        ("shuffled",), TRAINING, gold=gold_columns_moved, size=100, responses=4
    ),
    "judge_saw_no_response": Case(
        ("shuffled",), TRAINING, proxy="fewer_pairs", gold=gold_of_prompts_alone, size=200
    ),
    # gold unrelated to the responses: of the ids there are, shuffled rewards come nearest
    "gold_head_drawn_anew": Case(
        ("shuffled",), TRAINING, proxy="mixed_precision", gold=gold_by_new_head, size=200
    ),
    "gold_row_lost": Case(
        (), TRAINING, proxy="soft", gold=gold_last_row_lost, size=100, refusal="rows"
    ),
    "gold_of_two_of_four": Case(
        (), TRAINING, gold=gold_of_the_first_two, size=50, responses=4, refusal="entries"
    ),
    # responses, prompts and sampling
    # no id says that the responses begin with their prompts, which does little harm
    "prompts_in_responses": Case((), TRAINING, note=True, gold=prompts_in_responses, size=200),
    "closing_token_in_text": Case(
        ("other template", "scored token"),
        TRAINING,
        note=True,
        proxy="smooth",
        texts=closing_token_in_text,
        size=200,
    ),
    "sampled_nearly_greedily": Case(
        ("gold tied",), TRAINING, sampling=("--temperature", "0.05"), size=200
    ),
    # a quarter of the prompts that are counted: every interval is half as wide as it should be
    "test_rows_four_times": Case(
        ("leak",), TRAINING, note=True, proxy="soft", gold=quarter_four_times, size=200
    ),
    # the saved model
    "head_negated": Case(
        ("not as trained", "flipped"),
        MORE,
        proxy="soft",
        tamper=partial(head_times, -1.0),
        size=50,
        harm=loses(0.5),
    ),
    "rope_scaling_added": Case(
        ("not as trained",),
        MORE,
        proxy="mixed_precision",
        tamper=rope_scaling_added,
        size=100,
        harm=loses(0.77),
    ),
    "window_switched_on": Case(
        ("not as trained",),
        MORE,
        tamper=window_switched_on,
        size=200,
        dtype="bf16",
        harm=loses(0.77),
    ),
    "layers_in_another_order": Case(
        ("not as trained",),
        MORE,
        proxy="fewer_pairs",
        tamper=layers_in_another_order,
        size=100,
        harm=loses(0.77),
    ),
    "update_added_twice": Case(
        ("not as trained", "overconfident"),
        MORE,
        tamper=update_added_twice,
        size=200,
        harm=lambda truth: truth["scale"] < scale.CALIBRATED[0],
    ),
    # two at once
    "gathered_by_rank_and_clipped": Case(
        ("shuffled", "squashed", "not this model's"),
        SCORE_AGAIN,
        rewards=partial(both, gathered_by_rank, partial(clipped, 1.0)),
        size=100,
    ),
    # two signs that cancel: the order is right, the model and its labels are not
    "flipped_and_negated": Case(
        ("flipped", "rescaled", "not this model's"),
        MORE,
        proxy="flipped_all",
        rewards=negated,
        size=100,
    ),
    # fourth list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # str() of a list of one answer: every rejected text begins with a bracket, no chosen one does
    "rejected_as_list": Case(
        ("artifact", "not of the responses", "other test"),
        MORE,
        proxy="rejected_as_list",
        size=200,
        harm=loses(0.7),
    ),
    # the scheduler was stepped at each micro-batch: the rate is at its floor after an eighth
    "schedule_too_fast": Case(
        LEARNED_LITTLE, RATE_DOWN, proxy="schedule_too_fast", size=200, harm=loses(0.77)
    ),
    # patience counts evaluations, not epochs: with one each step the run ends after a tenth
    "stopped_at_once": Case(
        ("too few steps", "under-learned"),
        RATE_DOWN,
        proxy="stopped_at_once",
        size=100,
        dtype="bf16",
        harm=loses(0.77),
    ),
    # chosen and its score agree in every row, but from some row on both are another prompt's
    "rewards_off_by_one": Case(
        ("noisy labels", "shuffled"), MORE, proxy="rewards_off_by_one", harm=loses(0.77)
    ),
    # a sigmoid "for a reward of 0 to 1" before the loss: rewards run to its flat ends. No id says
    # this, but they are too wide for what they know
    "sigmoid_in_loss": Case(
        ("overconfident",),
        MORE,
        decidable=False,
        proxy="sigmoid_in_loss",
        size=200,
        harm=scale_outside,
    ),
    # scoring
    # get_reward without the prompt's length: both responses have the reward of their prompt
    "prompt_scored": Case(
        ("scored token", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=partial(read_as, until_prompt_ends),
        size=100,
    ),
    # a pooling that is the default for embeddings
    "mean_pooling": Case(
        ("scored token", "not this model's"), SCORE_AGAIN, rewards=mean_over_tokens, size=200
    ),
    "empty_thoughts": Case(
        ("other template", "not this model's"),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=with_empty_thoughts,
        size=100,
        dtype="bf16",
    ),
    # group_by_length, and predictions in the order of the batches
    "sorted_by_length": Case(
        ("shuffled", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=sorted_by_length,
        size=200,
        responses=4,
    ),
    "null_rewards": Case(
        (), SCORE_AGAIN, proxy="fewer_pairs", rewards=some_null, size=60, refusal="finite number"
    ),
    "filled_up_for_processes": Case(
        (), SCORE_AGAIN, rewards=filled_up_for_processes, size=50, responses=4, refusal="rows"
    ),
    # a dashboard's percentile instead of the reward: no order is changed
    "percentile_of_file": Case(
        ("squashed", "not this model's"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=percentile_of_file,
        size=200,
        dtype="bf16",
    ),
    # what PPO subtracts and divides by moves from batch to batch, most in the first ones
    "running_moments": Case(
        ("rescaled", "mixed", "not this model's"),
        SCORE_AGAIN,
        proxy="soft",
        rewards=by_running_moments,
        size=100,
        responses=4,
    ),
    # gold
    "gold_in_order_of_strings": Case(
        ("shuffled",), TRAINING, proxy="smooth", gold=gold_in_order_of_strings, size=200
    ),
    "incorrect_is_correct": Case(
        ("gold tied", "default", "gold saturated"),
        TRAINING,
        proxy="mixed_precision",
        gold=incorrect_is_correct,
        size=200,
        responses=4,
    ),
    # no id says this: two fifths of the rewards are numbers that the answers hold
    "gold_first_number": Case(
        ("shuffled",), TRAINING, decidable=False, proxy="soft", gold=gold_first_number, size=200
    ),
    # each prompt's two rewards are right, and in half of the rows the wrong way round
    "order_not_undone": Case(
        ("shuffled",), TRAINING, proxy="fewer_pairs", gold=order_not_undone, size=300
    ),
    # the agreement is too good; without gold's own rewards nothing tells it from a good proxy
    "proxy_in_ensemble": Case(
        ("gold is the proxy",),
        TRAINING,
        decidable=False,
        proxy="smooth",
        gold=partial(gold_and_proxy, "smooth"),
        size=200,
    ),
    # responses and sampling
    # half of the texts end after 20 characters in the middle of a word, and no text is longer
    "texts_cut_after_gold": Case(
        ("responses cut",), TRAINING, texts=partial(cut_after_gold, 20), size=200
    ),
    # the proxy is as good as it was, but these pairs are of another kind than those it is for
    "other_answers_second": Case(
        ("other test",), TRAINING, proxy="soft", gold=other_answers_second, size=200
    ),
    # a temperature from another model's recipe: words without sense, up to the token limit
    "sampled_too_hot": Case(
        ("other test", "other sampling", "responses cut"),
        TRAINING,
        proxy="smooth",
        sampling=("--temperature", "2.5", "--seed", "4"),
        size=100,
    ),
    # the saved model
    # to little harm, but the pairs that train.py scored at its end have other rewards now
    "gate_and_up_swapped": Case(
        ("not as trained",), MORE, tamper=gate_and_up_swapped, size=200, harm=loses(0.82)
    ),
    "embeddings_drawn_anew": Case(
        ("not as trained",),
        MORE,
        proxy="smooth",
        tamper=embeddings_drawn_anew,
        size=100,
        dtype="bf16",
        harm=loses(0.77),
    ),
    "rotary_order_of_another": Case(
        ("not as trained",),
        MORE,
        proxy="soft",
        tamper=rotary_order_of_another,
        size=200,
        harm=loses(0.77),
    ),
    # two at once
    # the labels are noisy, and the rewards file is in another unit than the model's
    "flipped_20_and_rescaled": Case(
        ("noisy labels", "rescaled", "not this model's"),
        MORE,
        proxy="flipped_20",
        rewards=partial(times_and_plus, 0.2, 0.0),
        size=300,
    ),
    # a proxy that has learned little, judged by a gold whose sides are mixed up: both are needed
    "one_epoch_order_not_undone": Case(
        ("shuffled", *LEARNED_LITTLE),
        RATE_DOWN,
        proxy="one_epoch",
        gold=order_not_undone,
        size=500,
    ),
    # fifth list: written by somebody who had not read the rules
    # settings, pairs and functions of train.py
    # memory ran out: the batch went down to one pair, and the rate stayed that of a large batch
    "batch_of_1": Case(("rate too high",), RATE_UP, proxy="batch_of_1", size=200, harm=loses(0.77)),
    # in the packed pass the rejected one is further from its prompt, which no reader of one
    # response sees. No id says this: the log and the training pairs only disagree
    "positions_run_on": Case(
        ("not as trained",),
        MORE,
        decidable=False,
        proxy="positions_run_on",
        size=200,
        harm=loses(0.77),
    ),
    # a switch for debugging was left on: all steps have the same four batches, 128 pairs of 2,000
    "same_batches": Case(
        ("memorised", "overconfident"), MORE, proxy="same_batches", size=200, harm=loses(0.77)
    ),
    # the questions were joined by row number after one was lost: no pair has its own
    "questions_shifted": Case(
        ("not of the responses", "shuffled", "noisy labels"),
        MORE,
        proxy="questions_shifted",
        size=300,
        dtype="bf16",
        harm=loses(0.77),
    ),
    # gold
    # verdicts of two orders added up without turning one back: mostly ties
    "second_round_not_turned_back": Case(
        ("gold tied", "position"),
        TRAINING,
        proxy="soft",
        gold=second_round_not_turned_back,
        size=200,
    ),
    # the wrong column of a best-of-n table: no later response is ever worse
    "gold_best_so_far": Case(
        ("position", "gold tied"),
        TRAINING,
        proxy="mixed_precision",
        gold=gold_best_so_far,
        size=100,
        responses=4,
    ),
    # no id says that it was gold that read the texts without their ends
    "gold_cut_by_server": Case(
        ("cut",),
        TRAINING,
        decidable=False,
        proxy="smooth",
        gold=partial(gold_cut_by_server, 32),
        size=300,
    ),
    # responses, prompts and sampling
    # gold read numbers, the proxy reads [NUMBER], which no training pair has
    "numbers_masked": Case(
        ("other test", "other sampling"), TRAINING, texts=numbers_masked, size=200
    ),
    # three turns of the user in each test prompt, one in each training pair
    "few_shot_prompts": Case(
        ("other test", "other sampling"),
        TRAINING,
        proxy="fewer_pairs",
        gold=few_shot_prompts,
        size=200,
        dtype="bf16",
    ),
    # 0.5 where 0.95 was meant: four in ten pairs of responses are the same text twice
    "top_p_mistyped": Case(
        ("gold tied", "other sampling"),
        TRAINING,
        proxy="soft",
        sampling=("--top-p", "0.5", "--num-responses", "4", "--seed", "6"),
        size=100,
    ),
    # scoring
    "first_vocabulary_logit": Case(
        ("not this model's",), SCORE_AGAIN, rewards=first_vocabulary_logit, size=100
    ),
    # every reward is the same number, which the model gives the first token of a conversation
    "first_token_pooled": Case(
        ("scored token", "not this model's"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(read_as, first_token_alone),
        size=100,
        responses=4,
    ),
    # within a prompt nothing changes, but the first response always has 0
    "minus_the_first": Case(
        ("rescaled", "not this model's"),
        SCORE_AGAIN,
        note=True,
        proxy="soft",
        rewards=minus_the_first,
        size=200,
        responses=4,
        dtype="bf16",
    ),
    # what is wrong with a reward depends on its place in the row: the first one is right
    "history_kept": Case(
        ("not this model's", "position"),
        SCORE_AGAIN,
        proxy="fewer_pairs",
        rewards=history_kept,
        size=100,
    ),
    "sign_lost": Case(
        ("not this model's",),
        SCORE_AGAIN,
        proxy="mixed_precision",
        rewards=sign_lost,
        size=50,
        responses=4,
    ),
    "timeouts_as_mean": Case(
        ("mixed", "not this model's", "default"),
        SCORE_AGAIN,
        proxy="smooth",
        rewards=partial(timeouts_as_mean, 0.2),
        size=200,
        dtype="bf16",
    ),
    "decimal_commas": Case(
        (), SCORE_AGAIN, rewards=with_decimal_commas, size=50, refusal="finite number"
    ),
    # the saved model
    "one_added_to_norms": Case(
        ("not as trained", "overconfident"),
        MORE,
        proxy="soft",
        tamper=one_added_to_norms,
        size=200,
        harm=loses(0.84),
    ),
    "prefix_space_added": Case(
        ("not as trained",),
        MORE,
        proxy="mixed_precision",
        tamper=prefix_space_added,
        size=200,
        dtype="bf16",
        harm=loses(0.8),
    ),
    # a good model under the records of a poor run: what they say of training is not about it
    "records_of_another": Case(
        ("not as trained",),
        MORE,
        proxy="smooth",
        tamper=partial(records_of, "one_epoch"),
        size=200,
    ),
    # two at once
    # a proxy that has learned little, whose rewards were made with other names of the roles
    "one_epoch_sharegpt_roles": Case(
        ("other template", "not this model's", *LEARNED_LITTLE),
        RATE_DOWN,
        proxy="one_epoch",
        rewards=partial(scored_as, with_sharegpt_roles),
        size=300,
        harm=loses(0.77),
    ),
    # the labels are noisy, and of the test responses the numbers are masked
    "flipped_20_numbers_masked": Case(
        ("noisy labels", "other test", "other sampling"),
        MORE,
        proxy="flipped_20",
        texts=numbers_masked,
        size=300,
    ),
}

HEALTHY = {
    "healthy_hard": Case(),
    "healthy_hard_200": Case(size=200),
    "healthy_hard_100": Case(size=100),
    "healthy_hard_50": Case(size=50),
    "healthy_hard_bf16": Case(dtype="bf16"),
    "healthy_hard_four_responses": Case(size=200, responses=4),
    "healthy_hard_gold_x10": Case(gold=partial(gold_times, 10.0)),
    "healthy_hard_gold_tenth": Case(gold=partial(gold_times, 0.1)),
    "healthy_hard_1_to_10": Case(gold=gold_from_1_to_10),
    "healthy_hard_file": Case(rewards=as_they_are, size=200),
    "healthy_hard_file_bf16": Case(rewards=as_they_are, size=200, dtype="bf16"),
    "healthy_soft": Case(proxy="soft"),
    "healthy_soft_200": Case(proxy="soft", size=200),
    "healthy_soft_100_bf16": Case(proxy="soft", size=100, dtype="bf16"),
    "healthy_soft_four_responses": Case(proxy="soft", size=100, responses=4),
    "healthy_soft_gold_x10": Case(proxy="soft", size=200, gold=partial(gold_times, 10.0)),
    "healthy_soft_file_bf16": Case(proxy="soft", rewards=as_they_are, dtype="bf16"),
    "healthy_smooth": Case(proxy="smooth"),
    "healthy_smooth_100": Case(proxy="smooth", size=100),
    "healthy_smooth_gold_tenth": Case(proxy="smooth", size=200, gold=partial(gold_times, 0.1)),
    "healthy_mixed_precision": Case(proxy="mixed_precision"),
    "healthy_mixed_precision_100": Case(proxy="mixed_precision", size=100, dtype="bf16"),
    "healthy_mixed_precision_four": Case(proxy="mixed_precision", size=500, responses=4),
    "healthy_fewer_pairs": Case(proxy="fewer_pairs"),
    "healthy_fewer_pairs_200": Case(proxy="fewer_pairs", size=200),
    "healthy_fewer_pairs_50_bf16": Case(proxy="fewer_pairs", size=50, dtype="bf16"),
    # written after the rules of that day, by somebody who had not read them
    "healthy_early_stopped": Case(proxy="early_stopped"),
    "healthy_early_stopped_four": Case(proxy="early_stopped", size=100, responses=4, dtype="bf16"),
    "healthy_soft_probability": Case(proxy="soft", gold=partial(gold_probability, 3.0)),
    "healthy_smooth_1_to_7": Case(proxy="smooth", size=200, gold=gold_from_1_to_7),
    "healthy_soft_calibrated": Case(proxy="soft", tamper=partial(calibrated, "soft"), size=200),
    "healthy_hard_saved_in_bf16": Case(tamper=saved_in_bf16, size=200),
    "healthy_smooth_two_decimals": Case(proxy="smooth", rewards=in_two_decimals, size=200),
    # as a file of preferences is written: the proxy finds the first one better, too
    "healthy_hard_best_first": Case(texts=best_first, size=200),
    "healthy_fewer_pairs_minus_1000": Case(
        proxy="fewer_pairs", gold=partial(gold_plus, -1000.0), size=100, responses=4
    ),
    "healthy_mixed_precision_same": Case(  # a few answers come twice, as at a low temperature
        proxy="mixed_precision", texts=partial(same_twice, 0.1), size=100
    ),
    # third list: written by somebody who had not read the rules
    "healthy_stochastic_rounding": Case(proxy="stochastic_rounding", size=200),
    "healthy_other_sampling_seed": Case(proxy="soft", sampling=("--seed", "7"), size=200),
    "healthy_cooler_samples": Case(
        proxy="smooth", sampling=("--temperature", "0.7", "--seed", "3"), size=100
    ),
    "healthy_sorted_by_question": Case(proxy="mixed_precision", gold=sorted_by_question, size=200),
    "healthy_best_last_four": Case(proxy="soft", texts=best_last, size=100, responses=4),
    "healthy_percent": Case(proxy="fewer_pairs", gold=gold_percent, size=100, dtype="bf16"),
    "healthy_log_probability": Case(
        proxy="soft", gold=gold_log_probability, size=200, responses=4, dtype="bf16"
    ),
    "healthy_elo": Case(gold=gold_elo, size=50),
    "healthy_level_of_each_prompt": Case(
        proxy="smooth", gold=gold_offset_by_prompt, size=100, responses=4
    ),
    "healthy_float16_file": Case(proxy="fewer_pairs", rewards=in_float16, size=100, responses=4),
    "healthy_by_transformers": Case(
        proxy="mixed_precision", rewards=by_transformers, size=200, dtype="bf16"
    ),
    "healthy_short_responses": Case(proxy="soft", gold=short_responses_alone),
    "healthy_some_empty": Case(gold=some_responses_empty, size=200, responses=4),
    "healthy_without_records": Case(proxy="smooth", tamper=without_records, size=200),
    "healthy_in_two_files": Case(
        proxy="fewer_pairs", tamper=in_two_files, size=100, responses=4, dtype="bf16"
    ),
    # fourth list: written by somebody who had not read the rules
    "healthy_constant_rate": Case(proxy="constant_rate", size=200),
    "healthy_votes": Case(proxy="soft", gold=gold_votes, size=300),
    "healthy_no_prompt_means": Case(
        proxy="mixed_precision", gold=gold_without_prompt_mean, size=100, responses=4
    ),
    "healthy_odds": Case(gold=gold_odds, size=200),
    "healthy_closest_first": Case(gold=closest_first, size=200, dtype="bf16"),
    "healthy_no_digits": Case(proxy="smooth", gold=questions_without_digits),
    "healthy_shortest_first": Case(proxy="mixed_precision", texts=shortest_first, size=200),
    "healthy_nucleus_four": Case(
        sampling=("--top-p", "0.95", "--num-responses", "4", "--seed", "5"), size=100
    ),
    "healthy_bf16_head": Case(proxy="soft", rewards=in_bf16, size=200, dtype="bf16"),
    "healthy_vocabulary_padded": Case(proxy="fewer_pairs", tamper=vocabulary_padded, size=100),
    "healthy_template_written_anew": Case(tamper=template_written_anew, size=200, dtype="bf16"),
    "healthy_pairs_are_gone": Case(proxy="soft", tamper=pairs_are_gone, size=200),
    "healthy_longer_context": Case(
        proxy="smooth", tamper=longer_context, size=100, responses=4, dtype="bf16"
    ),
    "healthy_soft_50_four_bf16": Case(proxy="soft", size=50, responses=4, dtype="bf16"),
    # fifth list: written by somebody who had not read the rules
    "healthy_lora": Case(proxy="lora", size=200),
    "healthy_eight_responses": Case(
        proxy="smooth", sampling=("--num-responses", "8", "--seed", "8"), size=60
    ),
    "healthy_refusals_at_floor": Case(
        proxy="soft", gold=refusals_at_floor, size=100, responses=4, dtype="bf16"
    ),
    "healthy_two_rounds": Case(gold=sampled_in_two_rounds, size=150, responses=4),
    # easier than the pairs of training: nearly all are right
    "healthy_clear_pairs": Case(proxy="mixed_precision", gold=clear_pairs_alone, size=300),
    "healthy_outliers_clipped": Case(proxy="fewer_pairs", gold=gold_outliers_clipped, size=200),
    "healthy_five_answers": Case(proxy="smooth", gold=gold_of_five_answers, dtype="bf16"),
    "healthy_half_in_bf16": Case(proxy="soft", rewards=second_half_in_bf16, size=200),
    "healthy_left_padding": Case(  # with a mask, so the pads are not read
        rewards=functools.partial(by_transformers, padding_side="left"), size=100, responses=4
    ),
    "healthy_log_cut": Case(proxy="mixed_precision", tamper=log_cut, size=200),
    "healthy_token_added": Case(proxy="fewer_pairs", tamper=token_added, size=50, dtype="bf16"),
    "healthy_saved_in_float16": Case(proxy="soft", tamper=saved_in_float16, size=100, responses=4),
}

# ---- the real world ------------------------------------------------------------------------------

# On short pairs of the dataset, from the model that the proxy was trained from: few, as a step of
# eight takes some 20 s on a core.
REAL_TRAININGS = {
    "real_by_heart": Training("--lr 1e-4 --epochs 8 --batch-size 8", 32),
    "real_rate_low": Training("--lr 1e-7 --epochs 2 --batch-size 4", 48),
    "real_rate_high": Training("--lr 2e-2 --epochs 2 --batch-size 4", 48),
    "real_pure_bf16": Training("--lr 1e-6 --epochs 2 --batch-size 4 --precision bf16", 48),
    "real_frozen": Training(
        "--lr 1e-4 --epochs 2 --batch-size 4", 48, patch=planting.backbone_is_frozen
    ),
}
REAL_FILES = (  # these need no training of their own
    *("pad_at_scoring", "before_eos_at_scoring", "plain_at_scoring", "rows_shuffled"),
    *("sides_swapped", "another_models_rewards", "mixed_rewards_bf16", "rescaled", "squashed"),
    *("second_raised", "head_x8", "head_drawn_anew", "backbone_of_another"),
    *("vocabulary_shuffled", "gold_is_the_proxy", "gold_is_length"),
)
# No healthy runs: without a referee nobody says that a real proxy and its gold are healthy.
REAL_FAULTS = {name: FAULTS[name] for name in REAL_FILES} | {
    "real_by_heart": Case(("memorised", "overconfident"), MORE, proxy="real_by_heart"),
    "real_rate_low": Case(LEARNED_LITTLE, RATE_DOWN, proxy="real_rate_low"),
    "real_rate_high": Case(("rate too high",), MORE, proxy="real_rate_high"),
    "real_pure_bf16": Case(("bf16 weights", *LEARNED_LITTLE), RATE_DOWN, proxy="real_pure_bf16"),
    "real_frozen": Case(("frozen",), MORE, proxy="real_frozen"),
}
# --world -> the faults, the healthy runs, the trainings
LISTS = {"toy": (FAULTS, HEALTHY, TRAININGS), "real": (REAL_FAULTS, {}, REAL_TRAININGS)}
REAL_SIZE = 60  # test pairs: a real model takes minutes for each hundred
