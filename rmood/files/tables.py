"""The files of the pipeline, read and checked: prompts, responses, rewards and pairs.

    prompts    JSON    [{"messages": [{"role": ..., "content": ...}, ...]}, ...]
    responses  JSON    [{"response_1": "...", "response_2": "..."}, ...]
    rewards    JSON    [[reward_1, reward_2], ...]
    records    JSON    [{"messages", "response_1", "reward_1", "response_2", "reward_2"}, ...]
                       prompts, responses and rewards in one file
    pairs      JSONL   {"chosen": [messages], "rejected": [messages],
                        "index", "chosen_reward", "rejected_reward"}

Row i of prompts, responses and rewards is about the same prompt. Each file may be JSON, JSON lines
or parquet, and gzipped (rows.py). Pairs are read in these forms, one form per file:

    conversations               {"chosen": [messages], "rejected": [messages]}
                                what preprocess.py writes; TRL's implicit prompt
    prompts and answers         {"prompt": ..., "chosen": ..., "rejected": ...}
                                TRL's explicit prompt: all three messages, or all three plain text
    whole plain texts           {"chosen": "The sky is blue.", "rejected": "The sky is green."}
                                the words with which both begin are the prompt
    Anthropic HH dialogues      {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}
                                their beginning may also be a "prompt" of its own
    UltraFeedback               {"prompt": "...", "chosen": [messages], "rejected": [messages],
                                 "score_chosen": 8.5, "score_rejected": 7.0}
    groups of responses         {"messages": [messages], "response_1": "...", "reward_1": 1.5,
                                 "response_2": ..., "reward_2": ..., "pairs": [[2, 1], [3, 1]]}
                                what preprocess.py writes for more than two responses per prompt;
                                pairs: (chosen, rejected) by number; without it, all pairs with
                                different gold rewards. The records above are such groups, too

Every reader checks what it reads, and raises UserError naming the row.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from ..errors import UserError
from .rows import read_rows

Message = dict  # {"role": "user", "content": "..."}
Conversation = list[Message]

ROLES = ("system", "user", "assistant", "tool")
LARGEST_REWARD = 3.4e38  # of float32
GROUPS = "groups of responses with rewards"
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: two conversations that differ in the last assistant turn.

    index: row of the prompts file, or None.
    chosen_reward, rejected_reward: gold's, on any scale, or None where unknown.
    where: the row of the pairs file, for error messages: "rm_implicit.jsonl: line 12".
    form: in which of the forms above it was read.
    group: pairs with the same number are of one group of responses; None: a pair by itself.
    """

    chosen: Conversation
    rejected: Conversation
    index: int | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    where: str = field(default="", compare=False)
    form: str = field(default="", compare=False)
    group: int | None = field(default=None, compare=False)

    @property
    def prompt_key(self) -> str:
        """The same for pairs of one prompt: pairs are held out by prompt, never by pair."""
        return json.dumps(self.chosen[:-1], sort_keys=True)


# ---- prompts, responses, rewards ---


def read_prompts(path: str) -> list[Conversation]:
    """P conversations, each ending before the response."""
    return list(iter_prompts(path))


def iter_prompts(path: str) -> Iterator[Conversation]:
    """read_prompts() row by row: the file may be larger than memory."""
    for where, row in read_rows(path):
        if not isinstance(row, dict) or "messages" not in row:
            raise UserError(f"{where} has no 'messages': expected {{\"messages\": [...]}}")
        messages = check_messages(row["messages"], where)
        if messages[-1]["role"] == "assistant":
            raise UserError(
                f"{where} ends with an assistant turn: a prompt ends before the response"
            )
        yield messages


def read_responses(path: str) -> list[list[str]]:
    """The responses of each prompt in the order response_1, response_2, ...: P rows of K texts."""
    return list(iter_responses(path))


def iter_responses(path: str) -> Iterator[list[str]]:
    """read_responses() row by row."""
    for where, row in _rows_of_one_width(path):
        texts = _numbered_values(row, "response", where)
        for text in texts:
            if not _is_text(text):
                raise _wrong_type("response", text, where)
        yield texts


def read_rewards(path: str) -> list[list[float]]:
    """The rewards of each prompt in the order of its responses: P rows of K finite numbers.

    Reads both forms, rewards and records.
    """
    return list(iter_rewards(path))


def iter_rewards(path: str) -> Iterator[list[float]]:
    """read_rewards() row by row."""
    for where, row in _rows_of_one_width(path):
        if isinstance(row, list):
            rewards = row
        elif isinstance(row, dict):
            rewards = _numbered_values(row, "reward", where)
            for reward in rewards:
                if not isinstance(reward, (int, float)):
                    raise _wrong_type("reward", reward, where)
        else:
            raise UserError(f"{where} is neither a list of rewards nor a record: check the file")
        for reward in rewards:
            if not _is_reward(reward):
                shown = repr(reward)[:40]
                raise UserError(
                    f"{where} has the reward {shown}, not a finite number: label it again"
                )
        yield [float(reward) for reward in rewards]


def read_records(path: str) -> tuple[list[Conversation], list[list[str]]] | None:
    """Prompts and responses of a rewards file in record form; None where it holds rewards alone."""
    for _, row in read_rows(path):
        if not isinstance(row, dict) or "messages" not in row or "response_1" not in row:
            return None
    return read_prompts(path), read_responses(path)


def join_conversations(
    prompts: list[Conversation], responses: list[list[str]]
) -> list[list[Conversation]]:
    """Each prompt with each of its responses: P rows of K conversations."""
    joined = []
    for prompt, texts in zip(prompts, responses):
        joined.append([[*prompt, {"role": "assistant", "content": text}] for text in texts])
    return joined


def check_rows(
    path: str, rows: Sequence, what: str, others: Sequence, other_path: str, remedy: str = ""
) -> None:
    """Raise UserError unless two files have the same number of rows.

    path, rows: the file that is wrong if they differ, and what was read from it.
    what, others, other_path: what the other file holds ("prompts"), its rows, and its path.
    remedy: what to do to get a matching file, such as "rerun sample.py".
    """
    if len(rows) != len(others):
        advice = f"{remedy}, or pass the matching file" if remedy else "pass the matching file"
        raise UserError(
            f"{path}: {len(rows):,} rows for {len(others):,} {what} ({other_path}): {advice}"
        )


def check_same_shape(path: str, rows: Sequence, other_path: str, others: Sequence) -> None:
    """Raise UserError unless two files have the same number of rows, and of entries in a row.

    rows, others: (P, K) each: rewards and other rewards, or rewards and responses.
    """
    check_rows(path, rows, "rows", others, other_path)
    if len(rows[0]) != len(others[0]):
        raise UserError(
            f"{path}: {len(rows[0])} entries per row, but {len(others[0])} in {other_path}: "
            "pass the matching file"
        )


# ---- checks of a row ---


def check_messages(messages, where: str) -> Conversation:
    """The messages as given.

    Raises UserError unless each has a known role and a text, and at least one is a user's.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: 'messages' must be a list of messages: give at least one user turn"
        )
    for message in messages:
        if not isinstance(message, dict) or not _is_text(message.get("content")):
            raise UserError(f"{where}: a message needs a 'role' and a text 'content': fix the row")
        if message.get("role") not in ROLES:
            raise UserError(
                f"{where}: unknown role {message.get('role')!r}: use one of {', '.join(ROLES)}"
            )
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: no user turn: a prompt needs one")
    return messages


def _is_text(value) -> bool:
    """Is it text that UTF-8 can hold?

    JSON may bring half a surrogate pair ("\\ud83d"), which no file and no tokenizer takes.
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_reward(value) -> bool:
    """Is it a number that float32 holds? NaN is not; True and False are not either."""
    return type(value) in (int, float) and abs(value) < LARGEST_REWARD


def _rows_of_one_width(path: str) -> Iterator[tuple[str, object]]:
    """The rows of a file, all with the same number of entries (or keys)."""
    width = None
    for where, row in read_rows(path):
        if isinstance(row, (list, dict)):
            if width is None:
                width = len(row)
            if len(row) != width:
                raise UserError(
                    f"{where} has {len(row)} entries, row 0 has {width}: every row needs as many"
                )
        yield where, row


def _numbered_values(row, name: str, where: str) -> list:
    """The values of name_1, name_2, ... of one row."""
    if not isinstance(row, dict) or f"{name}_1" not in row:
        raise UserError(f"{where} has no '{name}_1': check that this is the right file")
    count = sum(key.startswith(f"{name}_") for key in row)
    keys = [f"{name}_{number}" for number in range(1, count + 1)]
    if not all(key in row for key in keys):
        raise UserError(f"{where}: the '{name}_N' keys must run from 1 without a gap: fix the row")
    return [row[key] for key in keys]


def _wrong_type(name: str, value, where: str) -> UserError:
    return UserError(f"{where}: '{name}' of the wrong type ({type(value).__name__}): fix the row")


# ---- pairs ---


def read_pairs(path: str) -> list[Pair]:
    """The pairs of a file in any of the forms above; describe_pairs() says in which.

    Raises UserError for a row in none of the forms, or in another form than the rows before.
    """
    pairs = []
    for number, (where, row) in enumerate(read_rows(path)):
        if isinstance(row, dict) and "response_1" in row:
            _check_one_form(pairs, GROUPS, where)
            pairs += _pairs_of_group(row, where, number)
            continue
        known = preference_form(row)
        if known is None:
            raise UserError(
                f"{where}: a pair needs 'chosen' and 'rejected' in one of the forms "
                "that README.md lists: rerun preprocess.py, or fix the row"
            )
        form, chosen, rejected = known
        _check_one_form(pairs, form, where)
        if chosen[:-1] == rejected[:-1]:
            rejected = chosen[:-1] + rejected[-1:]  # one prompt in memory, not two
        pair = Pair(
            chosen,
            rejected,
            index=row.get("index"),
            chosen_reward=row.get("chosen_reward", row.get("score_chosen")),
            rejected_reward=row.get("rejected_reward", row.get("score_rejected")),
            where=where,
            form=form,
        )
        _check_pair(pair)
        pairs.append(pair)
    if not pairs:
        raise UserError(f"{path}: no group has a pair that gold does not tie: check the rewards")
    return pairs


def _check_one_form(pairs: list[Pair], form: str, where: str) -> None:
    if pairs and form != pairs[0].form:
        raise UserError(f"{where}: {form}, but the rows before are {pairs[0].form}: split the file")


def _pairs_of_group(row: dict, where: str, number: int) -> list[Pair]:
    """The pairs of one prompt's responses: those that the row names, or all that gold orders."""
    messages = check_messages(row.get("messages"), where)
    responses = _numbered_values(row, "response", where)
    rewards = _numbered_values(row, "reward", where)
    if len(rewards) != len(responses):
        raise UserError(
            f"{where}: {len(rewards)} rewards for {len(responses)} responses: rerun preprocess.py"
        )
    for reward in rewards:
        if not _is_reward(reward):
            raise UserError(
                f"{where} has the reward {repr(reward)[:40]}, not a finite number: label it again"
            )
    pairs = []
    for both in row.get("pairs", _ordered_by(rewards)):
        _check_numbers(both, len(responses), where)
        chosen, rejected = (
            [*messages, {"role": "assistant", "content": responses[i - 1]}] for i in both
        )
        pair = Pair(
            chosen,
            rejected,
            index=row.get("index"),
            chosen_reward=rewards[both[0] - 1],
            rejected_reward=rewards[both[1] - 1],
            where=where,
            form=GROUPS,
            group=number,
        )
        _check_pair(pair)
        pairs.append(pair)
    return pairs


def _ordered_by(rewards: list[float]) -> list[list[int]]:
    """[chosen, rejected], counted from 1, for each two responses that do not tie."""
    pairs = []
    for i, j in combinations(range(len(rewards)), 2):
        if rewards[i] != rewards[j]:
            winner, loser = (i, j) if rewards[i] > rewards[j] else (j, i)
            pairs.append([winner + 1, loser + 1])
    return pairs


def _check_numbers(both, responses: int, where: str) -> None:
    numbers = range(1, responses + 1)
    if not isinstance(both, list) or len(both) != 2 or not all(i in numbers for i in both):
        raise UserError(
            f"{where}: 'pairs' holds {both!r}, not the numbers of two responses: "
            "rerun preprocess.py"
        )


def describe_pairs(path: str, pairs: list[Pair]) -> str:
    """What was read, for a script to print: "a.jsonl: 1,000 pairs, read as conversations"."""
    return f"{path}: {len(pairs):,} pairs, read as {pairs[0].form}"


def _check_pair(pair: Pair) -> None:
    for name, messages in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        where = f"{pair.where}, {name}"
        check_messages(messages, where)
        if messages[-1]["role"] != "assistant":
            raise UserError(
                f"{where}: the last turn must be the assistant's: it is the one that is scored"
            )
    for name in ("chosen_reward", "rejected_reward"):
        reward = getattr(pair, name)
        if reward is not None and not _is_reward(reward):
            shown = repr(reward)[:40]
            raise UserError(
                f"{pair.where}: {name} is {shown}, not a finite number: rerun preprocess.py"
            )


# To add a form, return its name and its two conversations below. If it has gold's rewards, add the
# names of their columns to read_pairs, which passes them to Pair. If a file may hold it in columns,
# _holds_columns in rows.py must recognise it (by "chosen" so far). Then add it to the forms at the
# head of this file, to the table of forms in README.md, and to tests/test_tables.py.
def preference_form(row) -> tuple[str, Conversation, Conversation] | None:
    """(name of the form, chosen, rejected) of a row of a pairs file; None for an unknown form.

    The messages themselves are not checked here.
    """
    if not isinstance(row, dict):
        return None
    prompt = row.get("prompt")
    chosen = row.get("chosen")
    rejected = row.get("rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _form_of_texts(prompt, chosen, rejected)
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    if prompt is None:
        return "conversations", chosen, rejected
    first_roles = {_first_role(chosen), _first_role(rejected)}
    if isinstance(prompt, list) and first_roles == {"assistant"}:
        form = "prompts and answers in messages (TRL, explicit prompt)"
        return form, prompt + chosen, prompt + rejected
    if isinstance(prompt, str) and first_roles <= {"system", "user"}:
        return "UltraFeedback, binarized", chosen, rejected  # their messages hold the prompt
    return None


def _first_role(messages: list) -> str | None:
    if messages and isinstance(messages[0], dict):
        role = messages[0].get("role")
        return role if isinstance(role, str) else None
    return None


def _form_of_texts(prompt, chosen: str, rejected: str):
    """preference_form() of two plain texts."""
    if prompt is not None and not isinstance(prompt, str):
        return None
    start = prompt or ""
    if (start + chosen).startswith("\n\nHuman:") and (start + rejected).startswith("\n\nHuman:"):
        return "Anthropic HH dialogues", _dialogue(start + chosen), _dialogue(start + rejected)
    if prompt is not None:
        form = "prompts and answers in plain text (TRL, explicit prompt)"
        return form, _exchange(prompt, chosen), _exchange(prompt, rejected)
    shared = os.path.commonprefix([chosen, rejected])
    shared = re.sub(r"\S*\Z", "", shared)  # whole words: the "bl" of blue and black is none
    if shared.strip():
        form = "plain texts, the words both begin with as the prompt (TRL, implicit prompt)"
        question = shared.strip()
        answers = [text.removeprefix(shared).strip() for text in (chosen, rejected)]
        return form, _exchange(question, answers[0]), _exchange(question, answers[1])
    return None


def _dialogue(text: str) -> Conversation:
    """The messages of one text: a user's for each "\\n\\nHuman:", the others the assistant's."""
    parts = TURN.split(text)  # ["", "Human", " ...", "Assistant", " ..."]
    messages = []
    for speaker, words in zip(parts[1::2], parts[2::2]):
        role = "user" if speaker == "Human" else "assistant"
        messages.append({"role": role, "content": words.strip()})
    return messages


def _exchange(prompt: str, answer: str) -> Conversation:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
