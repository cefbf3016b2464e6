"""What holds for every input, tried on inputs nobody thought of: readers, packer, schedule, journal; and files with bytes
flipped. RMOOD_EXAMPLES: how many of each (default 50, the same ones every time; another number draws new ones).
"""

import json
import math
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import make_pairs, make_prompt
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rmood import BadInput, records
from rmood.batching import Group, epoch_order, pack, pad, plan_scoring, plan_step
from rmood.schedule import learning_rate, warmup_steps

EXAMPLES = int(os.environ.get("RMOOD_EXAMPLES", 0))
settings.register_profile("here", max_examples=EXAMPLES or 50, derandomize=not EXAMPLES, database=None, deadline=None, suppress_health_check=list(HealthCheck))
settings.load_profile("here")

text = st.text(max_size=20)
reward = st.floats(-1e38, 1e38)
any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | text | st.sampled_from(["user", "assistant"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["messages", "role", "content", "chosen", "rejected", "prompt", "response_1", "response_2", "reward_1", "index"]) | text, inner, max_size=4),
    max_leaves=12,
)
prompt = st.builds(lambda system, user: [{"role": "system", "content": system}, {"role": "user", "content": user}], text, text)
READERS = [records.read_prompts, records.read_responses, records.read_rewards, records.read_pairs, records.read_records]


def read(reader, content: bytes):
    """What the reader says of a file with this content, or its letter."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "file.json")
        path.write_bytes(content)
        try:
            return reader(str(path))
        except BadInput as letter:
            assert str(path) in str(letter) and "\n" not in str(letter)
            return letter


# ---- readers ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(prompt, text, text, reward, reward, st.none() | st.integers(0, 10**6)), min_size=1, max_size=4))
def test_what_is_written_is_read_again(rows):
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, name)) for name in ("prompts.json", "responses.json", "rewards.json", "pairs.jsonl")]
        records.write_json(paths[0], [{"messages": row[0]} for row in rows])
        records.write_json(paths[1], [{"response_1": row[1], "response_2": row[2]} for row in rows])
        records.write_json(paths[2], [[row[3], row[4]] for row in rows])
        sides = [[[*row[0], {"role": "assistant", "content": row[k]}] for k in (1, 2)] for row in rows]
        records.write_jsonl(paths[3], [{"chosen": a, "rejected": b, "index": row[5], "chosen_reward": row[3], "rejected_reward": row[4]} for (a, b), row in zip(sides, rows)])
        assert records.read_prompts(paths[0]) == [row[0] for row in rows]
        assert records.read_responses(paths[1]) == [[row[1], row[2]] for row in rows]
        assert records.read_rewards(paths[2]) == [[row[3], row[4]] for row in rows]
        assert records.read_pairs(paths[3]) == [records.Pair(a, b, row[5], row[3], row[4]) for (a, b), row in zip(sides, rows)]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(value=any_json | st.lists(any_json, max_size=3))
def test_any_json_is_read_or_answered_by_a_letter(reader, value):
    read(reader, json.dumps(value).encode())
    read(reader, b"".join(json.dumps(row).encode() + b"\n" for row in (value if isinstance(value, list) else [value])))


VALID = {
    records.read_prompts: json.dumps([{"messages": make_prompt(i)} for i in range(3)]),
    records.read_responses: json.dumps([{"response_1": "caf\u00e9 \U0001f600", "response_2": "x"}] * 3, ensure_ascii=False),
    records.read_rewards: json.dumps([[1.5, -2e3], [0, 1]]),
    records.read_pairs: "".join(json.dumps(row) + "\n" for row in make_pairs(2)),
    records.read_records: json.dumps([{"messages": make_prompt(0), "response_1": "a", "reward_1": 1.0, "response_2": "b", "reward_2": 2.0}]),
}


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(data=st.data())
def test_flipped_bytes_are_read_or_answered_by_a_letter(reader, data):
    """Never another exception; and where only white space was hit, the same rows."""
    whole = VALID[reader].encode()
    content = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    found = read(reader, bytes(content))
    if bytes(content) == whole:
        assert not isinstance(found, BadInput)
    cut = data.draw(st.integers(0, len(whole) - 1))
    found = read(reader, whole[:cut])
    if reader is not records.read_pairs:
        assert isinstance(found, BadInput)  # part of a JSON list is none
    elif not isinstance(found, BadInput):
        assert found == read(reader, whole)[: len(found)]


# ---- packer -----------------------------------------------------------------------------------------------------

tokens = st.lists(st.integers(0, 5), min_size=1, max_size=8)  # few different ones: prefixes are often shared
groups = st.lists(st.builds(lambda start, ends: Group([start + end for end in ends]), tokens, st.lists(tokens, min_size=1, max_size=4)), min_size=1, max_size=5)


@given(groups)
def test_every_token_is_packed_once_and_every_conversation_is_whole(groups):
    batch = pack(groups)
    ids, positions = batch.input_ids[0].numpy(), batch.position_ids[0].numpy()
    assert len(ids) == sum(group.tokens for group in groups) == sum(group.prefix + sum(len(row) - group.prefix for row in group.rows) for group in groups)
    rows = [list(row) for group in groups for row in group.rows]
    flat = np.concatenate([block.numpy().ravel() for block in batch.blocks])
    assert (flat[batch.pick.numpy()] == np.arange(len(ids))).all()  # each token's output is its own
    lasts, seen, found = batch.last.tolist(), set(), []
    for block in batch.blocks:
        for index in block.numpy():
            end = next(k for k in range(len(index)) if index[k] in lasts and list(positions[index[: k + 1]]) == list(range(k + 1)) and [*map(int, ids[index[: k + 1]])] in rows)
            seen |= set(index[: end + 1].tolist())
            found.append([*map(int, ids[index[: end + 1]])])
    assert seen == set(range(len(ids))) and sorted(found) == sorted(rows)
    padded = pad(groups)
    assert [int(padded.input_ids.flatten()[last]) for last in padded.last] == [int(ids[last]) for last in lasts] == [row[-1] for row in rows]


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 200), st.integers(1, 5), st.integers(1, 12), st.integers(0, 3))
def test_an_epoch_has_every_pair_once_within_the_budget_on_every_process(lengths, budget, world_size, batch_size, epoch):
    seen = []
    for step in epoch_order(len(lengths), batch_size, 7, epoch):
        plan = plan_step(step, lengths, budget, world_size)
        assert len(plan) == world_size and len({len(passes) for passes in plan}) == 1  # FSDP: as many passes everywhere
        assert max(sum(lengths[i] for i in one) for passes in plan for one in passes) <= budget
        assert sorted(i for passes in plan for one in passes for i in one) == sorted(step.tolist())
        seen += step.tolist()
    assert sorted(seen) == list(range(len(lengths)))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=40), st.integers(50, 200), st.none() | st.integers(1, 5))
def test_scoring_takes_every_group_once_within_the_budget(lengths, budget, most):
    passes = plan_scoring(lengths, budget, most)
    assert sorted(i for one in passes for i in one) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in one) <= budget and len(one) <= (most or len(one)) for one in passes)


# ---- schedule ---------------------------------------------------------------------------------------------------


@given(st.integers(1, 300), st.floats(0, 1), st.floats(1e-8, 1), st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_its_floor(total, ratio, peak, floor_ratio):
    warmup, floor = warmup_steps(total, ratio), peak * floor_ratio
    rates = [learning_rate(step, total, warmup, peak, floor) for step in range(1, total + 1)]
    assert 1 <= warmup <= total and rates[0] > 0 and rates[warmup - 1] == peak
    assert all(a < b for a, b in zip(rates[: warmup - 1], rates[1:warmup])) and all(a >= b for a, b in zip(rates[warmup - 1 :], rates[warmup:]))
    assert warmup == total or math.isclose(rates[-1], floor, rel_tol=1e-9, abs_tol=1e-15)


# ---- journal ----------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30), any_json), min_size=1, max_size=12), st.integers(0, 2), st.floats(0, 1))
def test_a_journal_cut_anywhere_has_every_whole_line_and_can_be_completed(work, victim, share):
    work = [(rank, key, json.loads(json.dumps(value).replace("NaN", "0"))) for rank, key, value in {key: (rank, key, value) for rank, key, value in work}.values()]
    everything = {key: value for _, key, value in work}
    with tempfile.TemporaryDirectory() as folder:
        target = str(Path(folder, "out.json"))
        journals = [records.Journal(target, {"seed": 1}, rank) for rank in range(3)]
        for rank, key, value in work:
            journals[rank].add({key: value})
        path = Path(f"{target}.journal-{victim}")
        left = {key: value for rank, key, value in work if rank != victim}
        if path.exists():
            content = path.read_bytes()
            content = content[: round(len(content) * share)]
            path.write_bytes(content)
            left |= dict(json.loads(line) for line in content.split(b"\n")[1:-1])
        again = records.Journal(target, {"seed": 1}, victim)
        assert again.done == left
        again.add({key: value for key, value in everything.items() if key not in left})
        last = records.Journal(target, {"seed": 1})
        assert last.done == everything
        last.delete(target)
        assert os.listdir(folder) == []
        while records._locks:
            os.close(records._locks.popitem()[1])
