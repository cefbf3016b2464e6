"""What holds for every input, tried on random ones: readers, packer, schedule, journal.

RMOOD_EXAMPLES: how many of each. Default: 50, the same ones every time; a number draws new ones.
"""

import csv
import json
import math
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pairs, make_prompt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmood.batching import Group, epoch_order, pack, pad, plan_scoring, plan_step
from rmood.errors import UserError
from rmood.files import provenance
from rmood.files import rows as rows_module
from rmood.files.provenance import Journal
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import (
    Conversation,
    Pair,
    read_pairs,
    read_prompts,
    read_records,
    read_responses,
    read_rewards,
)
from rmood.schedule import learning_rate, warmup_steps

EXAMPLES = int(os.environ.get("RMOOD_EXAMPLES", 0))
settings.register_profile(
    "here",
    max_examples=EXAMPLES or 50,
    derandomize=not EXAMPLES,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("here")

text = st.text(max_size=20)
reward = st.floats(-1e38, 1e38)
KEYS = ["messages", "role", "content", "chosen", "rejected", "prompt"]
KEYS += ["response_1", "response_2", "reward_1", "index"]
leaf = st.none() | st.booleans() | st.integers() | st.floats() | text
leaf = leaf | st.sampled_from(["user", "assistant"])


def containers(inner):
    lists = st.lists(inner, max_size=4)
    dictionaries = st.dictionaries(st.sampled_from(KEYS) | text, inner, max_size=4)
    return lists | dictionaries


any_json = st.recursive(leaf, containers, max_leaves=12)


def messages(system: str, user: str) -> Conversation:
    return [{"role": "system", "content": system}, {"role": "user", "content": user}]


prompt = st.builds(messages, text, text)
READERS = [read_prompts, read_responses, read_rewards, read_pairs, read_records]


def read(reader, content: bytes):
    """What the reader returns for a file with this content, or the error that it raises."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.json")
        path.write_bytes(content)
        try:
            return reader(str(path))
        except UserError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            return error


# ---- readers ---


index = st.none() | st.integers(0, 10**6)


@given(st.lists(st.tuples(prompt, text, text, reward, reward, index), min_size=1, max_size=4))
def test_what_is_written_is_read_again(rows):
    prompts = [row[0] for row in rows]
    responses = [list(row[1:3]) for row in rows]
    rewards = [list(row[3:5]) for row in rows]
    pairs = []
    for prompt, first, second, first_reward, second_reward, index in rows:
        chosen = [*prompt, {"role": "assistant", "content": first}]
        rejected = [*prompt, {"role": "assistant", "content": second}]
        pairs.append(Pair(chosen, rejected, index, first_reward, second_reward))
    written = [asdict(pair) for pair in pairs]
    for row in written:
        del row["where"], row["form"]  # no keys of the file

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "file"))
        write_json(path, [{"messages": prompt} for prompt in prompts])
        assert read_prompts(path) == prompts
        write_json(path, [{"response_1": a, "response_2": b} for a, b in responses])
        assert read_responses(path) == responses
        write_json(path, rewards)
        assert read_rewards(path) == rewards
        write_jsonl(path, written)
        assert read_pairs(path) == pairs


@given(st.lists(st.tuples(text, text, text), min_size=1, max_size=4), st.sampled_from(",\t;"))
def test_a_table_holds_any_text(rows, delimiter):
    """Quotes, separators and line breaks within a cell: the texts are those that were written."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder, "file.csv"))
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=delimiter)
            writer.writerow(["prompt", "chosen", "rejected"])
            writer.writerows(rows)
        pairs = read_pairs(path)
    for pair, row in zip(pairs, rows, strict=True):
        if not row[0].startswith("\n\nHuman:"):
            found = (pair.chosen[0]["content"], pair.chosen[-1]["content"])
            assert (*found, pair.rejected[-1]["content"]) == row


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(value=any_json | st.lists(any_json, max_size=3))
def test_any_json_is_read_or_refused_by_an_error_of_one_line(reader, value):
    read(reader, json.dumps(value).encode())
    rows = value if isinstance(value, list) else [value]
    read(reader, b"".join(json.dumps(row).encode() + b"\n" for row in rows))


@given(st.lists(any_json, min_size=1, max_size=5), st.integers(1, 20))
def test_a_list_read_in_pieces_is_the_whole_list(values, piece):
    """Wherever a piece ends: within a number, a text, an escape."""
    values = json.loads(json.dumps(values).replace("NaN", "0"))  # NaN is not equal to itself
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows_module, "PIECE", piece)
        path = str(Path(folder, "file.json"))
        Path(path).write_text(json.dumps(values))
        assert [row for _, row in rows_module.read_rows(path)] == values


VALID = {
    read_prompts: json.dumps([{"messages": make_prompt(i)} for i in range(3)]),
    read_responses: json.dumps(
        [{"response_1": "caf\u00e9 \U0001f600", "response_2": "x"}] * 3, ensure_ascii=False
    ),
    read_rewards: json.dumps([[1.5, -2e3], [0, 1]]),
    read_pairs: "".join(json.dumps(row) + "\n" for row in make_pairs(2)),
    read_records: json.dumps(
        [
            {"messages": make_prompt(0)}
            | {"response_1": "a", "reward_1": 1.0, "response_2": "b", "reward_2": 2.0}
        ]
    ),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(data=st.data())
def test_flipped_bytes_are_read_or_refused_by_an_error_of_one_line(reader, data):
    """Never another exception; and a file cut short has no other rows than the whole one."""
    whole = VALID[reader].encode()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = read(reader, bytes(content))
    if bytes(content) == whole:
        assert not isinstance(found, UserError)
    cut = data.draw(st.integers(0, len(whole) - 1))
    found = read(reader, whole[:cut])
    if reader is not read_pairs:
        assert isinstance(found, UserError)  # part of a JSON list is none
    elif not isinstance(found, UserError):
        assert found == read(reader, whole)[: len(found)]


# ---- packer ---

# few different tokens: prefixes are often shared
tokens = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def group_of(start: list[int], ends: list[list[int]]) -> Group:
    return Group([start + end for end in ends])


groups = st.lists(
    st.builds(group_of, tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=5
)


@given(groups)
def test_every_token_is_packed_once_and_every_conversation_is_whole(groups):
    batch = pack(groups)
    ids = batch.input_ids[0].numpy()
    positions = batch.position_ids[0].numpy()
    assert len(ids) == sum(group.tokens for group in groups)
    for group in groups:
        own = sum(len(row) - group.prefix for row in group.rows)
        assert group.tokens == group.prefix + own

    rows = [list(row) for group in groups for row in group.rows]
    keys, cu_k, cu_q = batch.keys.numpy(), batch.cu_k.tolist(), batch.cu_q.tolist()
    assert cu_k[-1] == len(keys) and cu_q[-1] == len(ids) and len(cu_k) == len(rows) + 1
    for number, row in enumerate(rows):
        conversation = keys[cu_k[number] : cu_k[number + 1]]
        assert ids[conversation].tolist() == row
        assert positions[conversation].tolist() == list(range(len(row)))
        queries = np.arange(cu_q[number], cu_q[number + 1])
        assert (conversation[len(row) - len(queries) :] == queries).all()  # its last tokens
    lasts = batch.last.tolist()

    ends = [row[-1] for row in rows]
    assert ids[lasts].tolist() == ends
    padded = pad(groups)
    assert padded.input_ids.flatten()[padded.last].tolist() == ends


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(50, 200),
    st.integers(1, 5),
    st.integers(1, 12),
    st.integers(0, 3),
)
def test_an_epoch_has_every_pair_once_within_the_budget_on_every_process(
    lengths, budget, world_size, batch_size, epoch
):
    seen = []
    for step in epoch_order(len(lengths), batch_size, 7, epoch):
        plan = plan_step(step, lengths, budget, world_size)
        assert len(plan) == world_size
        assert len({len(passes) for passes in plan}) == 1  # FSDP: as many passes everywhere
        passes_of_all = [one for passes in plan for one in passes]
        assert max(sum(lengths[i] for i in one) for one in passes_of_all) <= budget
        assert sorted(i for one in passes_of_all for i in one) == sorted(step.tolist())
        seen += step.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(50, 200),
    st.none() | st.integers(1, 5),
)
def test_scoring_takes_every_group_once_within_the_budget(lengths, budget, most):
    passes = plan_scoring(lengths, budget, most)
    assert sorted(i for one in passes for i in one) == list(range(len(lengths)))
    for one in passes:
        assert sum(lengths[i] for i in one) <= budget
        assert most is None or len(one) <= most


# ---- schedule ---


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-8, 1), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_its_floor(total, ratio, peak, floor_ratio):
    warmup = warmup_steps(total, ratio)
    floor = peak * floor_ratio
    rates = [learning_rate(step, total, warmup, peak, floor) for step in range(1, total + 1)]
    assert 1 <= warmup <= total and rates[0] > 0 and rates[warmup - 1] == peak
    assert all(a < b for a, b in zip(rates[: warmup - 1], rates[1:warmup]))
    assert all(a >= b for a, b in zip(rates[warmup - 1 :], rates[warmup:]))
    assert warmup == total or math.isclose(rates[-1], floor, rel_tol=1e-9, abs_tol=1e-15)


# ---- journal ---

piece_of_work = st.tuples(st.integers(0, 2), any_json)  # by which rank, with which result


@given(
    st.dictionaries(st.integers(0, 30), piece_of_work, min_size=1, max_size=12),
    st.integers(0, 2),
    st.floats(0, 1),
)
def test_a_journal_cut_anywhere_has_every_whole_line_and_can_be_completed(work, victim, share):
    rank_of = {}
    everything = {}
    for key, (rank, value) in work.items():
        rank_of[key] = rank
        everything[key] = json.loads(json.dumps(value).replace("NaN", "0"))
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder, "out.json"))
        journals = [Journal(target, {"seed": 1}, rank) for rank in range(3)]
        for key, value in everything.items():
            journals[rank_of[key]].add({key: value})
        path = Path(f"{target}.journal-{victim}")
        left = {key: value for key, value in everything.items() if rank_of[key] != victim}
        if path.exists():
            whole = path.read_bytes()
            content = whole[: round(len(whole) * share)]
            path.write_bytes(content)
            left |= dict(json.loads(line) for line in content.split(b"\n")[1:-1])
        again = Journal(target, {"seed": 1}, victim)
        assert again.done == left
        again.add({key: value for key, value in everything.items() if key not in left})
        last = Journal(target, {"seed": 1})
        assert last.done == everything
        last.delete(target)
        assert os.listdir(folder) == []
        while provenance._locks:
            os.close(provenance._locks.popitem()[1])
