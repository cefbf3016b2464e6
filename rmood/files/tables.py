"""The files of the pipeline, read and checked: prompts, responses, rewards and pairs.

    prompts    JSON    [{"messages": [{"role": ..., "content": ...}, ...]}, ...]
    responses  JSON    [{"response_1": "...", "response_2": "..."}, ...]
    rewards    JSON    [[reward_1, reward_2], ...]
    records    JSON    [{"messages", "response_1", "reward_1", "response_2", "reward_2"}, ...]
                       prompts, responses and rewards in one file
    pairs      JSONL   {"chosen": [messages], "rejected": [messages],
                        "index", "chosen_reward", "rejected_reward"}

Row i of prompts, responses and rewards is about the same prompt. Each file may be JSON, JSON lines,
CSV, TSV, parquet or arrow, and gzipped (rows.py). Prompts and pairs may also be a dataset's folder
or a dataset on the hub (local_path). Pairs are read in these forms, one form per file:

    conversations               {"chosen": [messages], "rejected": [messages]}
                                what preprocess.py writes; TRL's implicit prompt
    prompts and answers         {"prompt": ..., "chosen": ..., "rejected": ...}
                                TRL's explicit prompt: all three messages, or all three plain text
    whole plain texts           {"chosen": "The sky is blue.", "rejected": "The sky is green."}
                                the words with which both begin are the prompt
    ShareGPT, as LLaMA-Factory  {"conversations": [{"from": "human", "value": "..."}, ...],
                                 "chosen": {"from": "gpt", "value": "..."}, "rejected": {...}}
    Anthropic HH dialogues      {"chosen": "\\n\\nHuman: ...\\n\\nAssistant: ...", "rejected": ...}
                                their beginning may also be a "prompt" of its own
    UltraFeedback               {"prompt": "...", "chosen": [messages], "rejected": [messages],
                                 "score_chosen": 8.5, "score_rejected": 7.0}
    groups of responses         {"messages": [messages], "response_1": "...", "reward_1": 1.5,
                                 "response_2": ..., "reward_2": ..., "pairs": [[2, 1], [3, 1]]}
                                what preprocess.py writes for more than two responses per prompt;
                                pairs: (chosen, rejected) by number; without it, all pairs with
                                different gold rewards. The records above are such groups, too

In each, messages may have "from" and "value" for "role" and "content", roles their other names
(ROLE_NAMES) and content a list of text parts. The question may be named as in QUESTIONS, with a
system turn in "system". Tools that the conversation may call are in the column "tools"; they are
kept in its first message, and given to the chat template. Other columns are ignored.

Every reader checks what it reads, and raises UserError naming the row.
"""

import json
import math
import os
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

from ..errors import UserError
from ..hub import dataset_folder
from .rows import MESSAGES, data_files, read_rows

Message = dict  # {"role": "user", "content": "..."}; the first may also have "tools"
Conversation = list[Message]

ROLES = ("system", "user", "assistant", "tool")
ROLE_NAMES = {  # other names of the roles
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
QUESTIONS = ("prompt", "question", "instruction", "query")  # names of a plain question
NUMBERED = re.compile(r"(response|reward)_\d+")
LARGEST_REWARD = 3.4e38  # of float32
GROUPS = "groups of responses with rewards"
CONVERSATIONS = "conversations"
FILE_ENDS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".gz", ".txt")
TURN = re.compile(r"\n\n(Human|Assistant):")


@dataclass(frozen=True, slots=True)
class Pair:
    """One preference: two conversations that differ in the last assistant turn.

    index: row of the prompts file, or None.
    chosen_reward, rejected_reward: gold's, on any scale, or None where unknown.
    where: the row of the pairs file, for error messages: "rm_implicit.jsonl: line 12".
    form: in which of the forms above it was read.
    group: pairs with the same number are of one group of responses; None: a pair by itself.
    copy: 0; 1, 2, ... for the repetitions of a pair whose file has a weight above 1.
    """

    chosen: Conversation
    rejected: Conversation
    index: int | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    where: str = field(default="", compare=False)
    form: str = field(default="", compare=False)
    group: int | None = field(default=None, compare=False)
    copy: int = field(default=0, compare=False)

    @property
    def prompt_key(self) -> str:
        """The same for pairs of one prompt: pairs are held out by prompt, never by pair."""
        return json.dumps(self.chosen[:-1], sort_keys=True)


# ---- where rows come from, and which columns are read ---


def local_path(path: str) -> str:
    """Where the rows are on this machine: `path` itself, or a dataset fetched from the hub.

    path: a file, a folder, FOLDER:SPLIT (files.rows.data_files), or on the hub owner/name,
    owner/name@revision, owner/name:split or owner/name@revision:split.
    """
    name, _, split = path.partition(":")
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name)
    if not is_name or os.path.exists(path) or os.path.exists(name) or name.startswith("."):
        return path
    if os.path.isdir(os.path.dirname(name)) or os.path.splitext(name)[1] in FILE_ENDS:
        return path  # a file that is not there
    folder = dataset_folder(name, split)
    found = f"{folder}:{split}" if split else folder
    try:
        data_files(found)
    except UserError as error:  # it has no such split
        raise UserError(str(error).replace(folder, name))
    return found


def describe_columns(path: str) -> str:
    """What of the file's columns is not read as it stands, by its first row: "" or a remark.

    Such as "ignored columns: id, source; roles human, gpt read as user, assistant".
    """
    _, row = next(read_rows(local_path(path)))
    if not isinstance(row, dict):
        return ""
    remarks = []
    ignored = [name for name in row if not _is_read(name, row)]
    if ignored:
        remarks.append(f"ignored columns: {', '.join(ignored)}")
    roles = {}
    for messages in row.values():
        for message in messages if isinstance(messages, list) else [messages]:
            role = message.get("role", message.get("from")) if isinstance(message, dict) else None
            if isinstance(role, str) and role not in ROLES and _known_role(role):
                roles[role] = _known_role(role)
    if roles:
        remarks.append(f"roles {', '.join(roles)} read as {', '.join(roles.values())}")
    return "; ".join(remarks)


def _is_read(name: str, row: dict) -> bool:
    """Is the column one that some reader of this file takes?"""
    always = {"messages", "chosen", "rejected", "pairs", "index", "tools"}
    always |= {"chosen_reward", "rejected_reward", "score_chosen", "score_rejected"}
    if "chosen" in row:
        question = _question_of(row)
        always |= {question, "conversations"} - {None}
        always -= {"messages"}  # UltraFeedback has the chosen conversation twice
        if isinstance(row["chosen"], str) and question:
            always |= {"system"} if question == "prompt" else {"system", "input"}
        if isinstance(row["chosen"], dict):
            always |= {"system"}
    return name in always or bool(NUMBERED.fullmatch(name))


# ---- prompts, responses, rewards ---


def read_prompts(path: str) -> list[Conversation]:
    """P conversations, each ending before the response."""
    return list(iter_prompts(path))


def iter_prompts(path: str) -> Iterator[Conversation]:
    """read_prompts() row by row: the file may be larger than memory."""
    for where, row in read_rows(local_path(path)):
        if not isinstance(row, dict) or "messages" not in row:
            raise UserError(f"{where} has no 'messages': expected {{\"messages\": [...]}}")
        messages = check_messages(row["messages"], where, row.get("tools"))
        if messages[-1]["role"] == "assistant":
            raise UserError(
                f"{where} ends with an assistant turn: a prompt ends before the response"
            )
        yield messages


def read_responses(path: str, ragged: bool = False) -> list[list[str]]:
    """The responses of each prompt in the order response_1, response_2, ...: P rows of K texts.

    ragged: whether K may differ from row to row.
    """
    return list(iter_responses(path, ragged))


def iter_responses(path: str, ragged: bool = False) -> Iterator[list[str]]:
    """read_responses() row by row."""
    width = None
    for where, row in read_rows(path):
        texts = _numbered_values(row, "response", where)
        for text in texts:
            if not _is_text(text):
                raise _wrong_type("response", text, where)
        width = width or len(texts)
        _check_width(texts, width, ragged, where)
        yield texts


def read_rewards(path: str, ragged: bool = False) -> list[list[float]]:
    """The rewards of each prompt in the order of its responses: P rows of K finite numbers.

    Reads both forms, rewards and records. ragged: as in read_responses().
    """
    return list(iter_rewards(path, ragged))


def iter_rewards(path: str, ragged: bool = False) -> Iterator[list[float]]:
    """read_rewards() row by row."""
    width = None
    for where, row in read_rows(path):
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
        width = width or len(rewards)
        _check_width(rewards, width, ragged, where)
        yield [float(reward) for reward in rewards]


def _check_width(values: list, width: int, ragged: bool, where: str) -> None:
    if len(values) != width and not ragged:
        raise UserError(
            f"{where} has {len(values)} entries, row 0 has {width}: every row needs as many here "
            "(label.py and preprocess.py take any number)"
        )


def read_records(
    path: str, ragged: bool = False
) -> tuple[list[Conversation], list[list[str]]] | None:
    """Prompts and responses of a rewards file in record form; None where it holds rewards alone."""
    for _, row in read_rows(path):
        if not isinstance(row, dict) or "messages" not in row or "response_1" not in row:
            return None
    return read_prompts(path), read_responses(path, ragged)


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


def check_messages(messages, where: str, tools=None) -> Conversation:
    """The messages, with the usual names of roles and keys, and each content as one text.

    tools: what the column of that name holds; it is kept in the first message.
    Raises UserError unless each has a known role and a text, and at least one is a user's.
    """
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where}: 'messages' must be a list of messages: give at least one user turn"
        )
    messages = [
        message if _is_plain(message) else _plain_message(message, where) for message in messages
    ]
    if not any(message["role"] == "user" for message in messages):
        raise UserError(f"{where}: no user turn: a prompt needs one")
    if tools:
        messages[0] = messages[0] | {"tools": _read_tools(tools, where)}
    return messages


def _is_plain(message) -> bool:
    """Is it a message as it should be, with nothing to rename or to leave out?"""
    if not isinstance(message, dict) or message.get("role") not in ROLES:
        return False
    return _is_text(message.get("content")) and None not in message.values()


def _plain_message(message, where: str) -> Message:
    """The message with the usual names. Raises UserError for one that has no role or no text."""
    if not isinstance(message, dict):
        raise UserError(f"{where}: a message needs a 'role' and a text 'content': fix the row")
    message = _without_none(message)
    if "role" not in message and "from" in message:
        message["role"] = message.pop("from")
    if "content" not in message and "value" in message:
        message["content"] = message.pop("value")
    if message.get("tool_calls") and "content" not in message:
        message["content"] = ""
    if isinstance(message.get("content"), list):
        message["content"] = _joined_parts(message["content"], where)
    if not _is_text(message.get("content")):
        raise UserError(f"{where}: a message needs a 'role' and a text 'content': fix the row")
    role = _known_role(message.get("role"))
    if not role:
        raise UserError(
            f"{where}: unknown role {message.get('role')!r}: use one of {', '.join(ROLES)}"
        )
    return message | {"role": role}


def _without_none(value):
    """Without keys of no value, which parquet and arrow have where another row has that key."""
    if isinstance(value, list):
        return [_without_none(item) for item in value]
    if isinstance(value, dict):
        return {key: _without_none(item) for key, item in value.items() if item is not None}
    return value


def _known_role(role) -> str | None:
    """The role by its usual name; None where it is unknown."""
    if not isinstance(role, str):
        return None
    name = role.lower()
    return name if name in ROLES else ROLE_NAMES.get(name)


def _joined_parts(parts: list, where: str) -> str:
    """The text of [{"type": "text", "text": "..."}, ...], a part per line as vLLM joins them."""
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            raise UserError(
                f"{where}: a message needs a text 'content', not a part of type {kind!r}: "
                "only texts are read, drop the row"
            )
        texts.append(text)
    return "\n".join(texts)


def _read_tools(tools, where: str) -> list[dict]:
    """The tools of a row: a list of their JSON schemas, or the JSON of that list."""
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise UserError(
            f"{where}: 'tools' must be a list of JSON schemas, or the JSON of one: fix the row"
        )
    return _without_none(tools)


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


def _numbered_values(row, name: str, where: str) -> list:
    """The values of name_1, name_2, ... of one row."""
    if not isinstance(row, dict) or f"{name}_1" not in row:
        raise UserError(f"{where} has no '{name}_1': check that this is the right file")
    count = sum(key.startswith(f"{name}_") and key[len(name) + 1 :].isdigit() for key in row)
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
    for number, (where, row) in enumerate(read_rows(local_path(path))):
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
        chosen = _check_side(chosen, f"{where}, chosen", row.get("tools"))
        rejected = _check_side(rejected, f"{where}, rejected", row.get("tools"))
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
        _check_gold(pair)
        pairs.append(pair)
    if not pairs:
        raise UserError(f"{path}: no group has a pair that gold does not tie: check the rewards")
    return pairs


def mix_in(pairs: list[Pair], source: str, seed: int) -> tuple[list[Pair], str]:
    """(pairs with those of another file behind them, what was read for a script to print).

    source: FILE or FILE:WEIGHT, how often an epoch has each of the file's pairs: with a weight of
    0.5 the pairs of half of its prompts, drawn by the seed; with 3 each of them three times.
    """
    path, weight = split_weight(source)
    others = read_pairs(path)
    prompts = sorted({pair.prompt_key for pair in others})
    random.Random(seed).shuffle(prompts)
    whole = math.floor(weight)
    drawn = set(prompts[: round((weight - whole) * len(prompts))])
    mixed = list(pairs)
    for copy in range(math.ceil(weight)):
        groups = 1 + max((pair.group for pair in mixed if pair.group is not None), default=-1)
        for pair in others:
            if copy < whole or pair.prompt_key in drawn:
                group = None if pair.group is None else pair.group + groups
                mixed.append(replace(pair, group=group, copy=copy))
    count = len(mixed) - len(pairs)
    return mixed, f"{describe_pairs(path, others)}; weight {weight:g}: {count:,} in each epoch"


def split_weight(source: str) -> tuple[str, float]:
    """("b.jsonl", 0.5) of b.jsonl:0.5; without a weight it is 1."""
    path, colon, number = source.rpartition(":")
    if not colon or os.path.exists(source) or not re.fullmatch(r"[\d.]+(e-?\d+)?", number):
        return source, 1.0
    try:
        weight = float(number)
    except ValueError:
        weight = 0.0
    if not 0 < weight <= 1000:
        raise UserError(f"{source}: the weight must be a number above 0: say {path}:0.5")
    return path, weight


def _check_one_form(pairs: list[Pair], form: str, where: str) -> None:
    if not pairs or form == pairs[0].form or {form, pairs[0].form} == {GROUPS, CONVERSATIONS}:
        return  # preprocess.py writes both for prompts with different numbers of responses
    raise UserError(f"{where}: {form}, but the rows before are {pairs[0].form}: split the file")


def _pairs_of_group(row: dict, where: str, number: int) -> list[Pair]:
    """The pairs of one prompt's responses: those that the row names, or all that gold orders."""
    messages = check_messages(row.get("messages"), where, row.get("tools"))
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
    pairs_of_row = row.get("pairs")
    if pairs_of_row is None:
        pairs_of_row = _ordered_by(rewards)
    if not isinstance(pairs_of_row, list):
        raise UserError(f"{where}: 'pairs' must be a list of [chosen, rejected]: fix the row")
    for both in pairs_of_row:
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
        _check_gold(pair)
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
    forms = " and ".join(dict.fromkeys(pair.form for pair in pairs))
    words = f"{path}: {len(pairs):,} pairs, read as {forms}"
    remarks = describe_columns(path)
    return f"{words}; {remarks}" if remarks else words


def _check_side(messages, where: str, tools) -> Conversation:
    """The conversation by check_messages(), which must end with the assistant's turn."""
    messages = check_messages(messages, where, tools)
    if messages[-1]["role"] != "assistant":
        raise UserError(
            f"{where}: the last turn must be the assistant's: it is the one that is scored"
        )
    return messages


def _check_gold(pair: Pair) -> None:
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
        return _form_of_texts(row, chosen, rejected)
    turns = row.get("conversations")
    if isinstance(turns, list) and isinstance(chosen, dict) and isinstance(rejected, dict):
        turns = _system_turn(row) + turns
        return "ShareGPT, as LLaMA-Factory", [*turns, chosen], [*turns, rejected]
    if not isinstance(chosen, list) or not isinstance(rejected, list):
        return None
    first_roles = {_first_role(chosen), _first_role(rejected)}
    if prompt is None and first_roles == {"assistant"} and isinstance(turns, list):
        prompt = turns
    if prompt is None:
        return CONVERSATIONS, chosen, rejected
    if isinstance(prompt, list) and first_roles == {"assistant"}:
        form = "prompts and answers in messages (TRL, explicit prompt)"
        return form, prompt + chosen, prompt + rejected
    if isinstance(prompt, str) and first_roles <= {"system", "user"}:
        return "UltraFeedback, binarized", chosen, rejected  # their messages hold the prompt
    return None


def _first_role(messages: list) -> str | None:
    if messages and isinstance(messages[0], dict):
        return _known_role(messages[0].get("role", messages[0].get("from")))
    return None


def _question_of(row: dict) -> str | None:
    """The name of the column that holds the question in plain text."""
    for name in QUESTIONS:
        if row.get(name) is not None:
            return name
    return None


def _form_of_texts(row: dict, chosen: str, rejected: str):
    """preference_form() of two plain texts."""
    if MESSAGES.match(chosen) or MESSAGES.match(rejected):
        return None  # messages that were made text, as str() does
    name = _question_of(row)
    prompt = row.get(name)
    if prompt is not None and not isinstance(prompt, str):
        return None
    start = prompt or ""
    if (start + chosen).startswith("\n\nHuman:") and (start + rejected).startswith("\n\nHuman:"):
        return "Anthropic HH dialogues", _dialogue(start + chosen), _dialogue(start + rejected)
    if prompt is not None:
        form = "prompts and answers in plain text (TRL, explicit prompt)"
        details = row.get("input")
        if name != "prompt" and isinstance(details, str) and details:
            prompt = f"{prompt}\n{details}"  # as in Alpaca's instructions
        turns = _system_turn(row)
        return form, turns + _exchange(prompt, chosen), turns + _exchange(prompt, rejected)
    shared = os.path.commonprefix([chosen, rejected])
    shared = re.sub(r"\S*\Z", "", shared)  # whole words: the "bl" of blue and black is none
    if shared.strip():
        form = "plain texts, the words both begin with as the prompt (TRL, implicit prompt)"
        question = shared.strip()
        answers = [text.removeprefix(shared).strip() for text in (chosen, rejected)]
        return form, _exchange(question, answers[0]), _exchange(question, answers[1])
    return None


def _system_turn(row: dict) -> Conversation:
    """What the column "system" holds, as a turn; none where it holds nothing."""
    system = row.get("system")
    return [{"role": "system", "content": system}] if isinstance(system, str) and system else []


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
