"""The mistakes that planted_faults.py plants, one function each; fault_cases.py says which of them.

Where a comment above some of them says so, all below have these arguments:

    of the pairs        (rows of the pairs file, rng, World) -> rows
    of scoring          (Scored) -> (P, K) rewards
    of gold             ((P, K) gold, Files, Bench) -> (P, K) gold
    of the responses    (P rows of K texts, (P, K) gold, rng) -> both
    of a saved model    (Bench, folder of a copy) -> None

Those of training code are in planting.py. Some change nothing that matters: healthy runs.
"""

import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import planting
from planting import Bench, Files, Scored, World

from rmood.errors import UserError
from rmood.files.provenance import read_run_file
from rmood.files.rows import read_json, write_json
from rmood.files.tables import join_conversations, read_prompts, read_responses, read_rewards

# ---- of the pairs --------------------------------------------------------------------------------


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


# ---- of scoring ----------------------------------------------------------------------------------


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


# ---- of gold -------------------------------------------------------------------------------------


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


def gold_from_1_to(most: int, gold, files: Files, bench: Bench) -> np.ndarray:
    """A judge's whole numbers, from 1 on, in its order."""
    ranks = gold.ravel().argsort().argsort().reshape(gold.shape) / gold.size
    return 1.0 + np.floor(most * ranks)


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
    return labelled_anew(files, bench, prompts, read_responses(str(files.responses)))


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
    scores = gold_from_1_to(10, gold, files, bench)
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
    scores = gold_from_1_to(10, gold, files, bench)
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


# ---- of the responses ----------------------------------------------------------------------------


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


# ---- of a saved model ----------------------------------------------------------------------------


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


def saved_in(dtype: str, bench: Bench, folder: Path) -> None:
    import torch

    planting.change_weights(folder, lambda name, tensor: tensor.to(getattr(torch, dtype)))
    planting.change_json(folder / "config.json", lambda config: config | {"dtype": dtype})


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
    """A special token that nothing uses, with the next free id: embeddings have no row of it."""

    def change(tokenizer: dict) -> dict:
        token = tokenizer["added_tokens"][-1]
        new = token | {"id": len(tokenizer["model"]["vocab"]), "content": "<tool_call>"}
        tokenizer["added_tokens"].append(new)
        return tokenizer

    planting.change_json(folder / "tokenizer.json", change)
