"""Each probe on a model whose reading is known: a planted fault is found, and nothing otherwise."""

import numpy as np
import pytest
import torch
from conftest import make_pairs
from transformers import AutoModelForSequenceClassification

from rmood.batching import Batch, pack
from rmood.diagnosis import probes
from rmood.files.rows import write_jsonl
from rmood.files.tables import read_pairs
from rmood.scoring import load_scorer
from rmood.tokenization import encode, render

EXPLANATIONS = {"explained_by_plain", "explained_by_token", "explained_by_cut", "order_differs"}


@pytest.fixture(scope="module")
def proxy(any_model_folder, tmp_path_factory, toy_tokenizer) -> str:
    """A tiny model with a reward head, in its own folder."""
    folder = tmp_path_factory.mktemp("proxy")
    model = AutoModelForSequenceClassification.from_pretrained(any_model_folder, num_labels=1)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(proxy):
    return load_scorer(proxy)


@pytest.fixture(scope="module")
def conversations():
    return [[row["chosen"], row["rejected"]] for row in make_pairs(24)]


def test_the_last_of_the_token_rewards_is_the_reward(scorer, conversations):
    flat = [conversation for row in conversations for conversation in row]
    rows = probes.token_rows(scorer, flat)
    rewards = np.array(scorer.score(conversations)).ravel()
    np.testing.assert_allclose(probes.last_rewards(scorer, rows), rewards, atol=1e-5)


def test_the_head_applied_to_the_last_states_gives_the_rewards(scorer, conversations):
    rows = probes.token_rows(scorer, conversations[0])
    states = torch.from_numpy(probes.last_hidden_states(scorer, rows))
    with torch.no_grad():
        rewards = scorer.model.score(states)[:, 0]
    np.testing.assert_allclose(rewards, probes.last_rewards(scorer, rows), atol=1e-5)


def test_plain_attention_ends_with_its_block_also_after_an_error(scorer):
    config = scorer.model.backbone.config
    assert config._attn_implementation == "rmood"
    with pytest.raises(RuntimeError):
        with probes.plain_attention(scorer.model) as backbone:
            assert backbone is scorer.model.backbone
            assert config._attn_implementation == "sdpa"
            raise RuntimeError
    assert config._attn_implementation == "rmood"


def test_other_rows_change_no_reward_and_a_model_that_reads_them_is_caught(
    scorer, conversations, monkeypatch
):
    flat = [conversation for row in conversations[:4] for conversation in row]
    assert probes.batch_dependence(scorer, flat) < 1e-4

    def without_blocks(groups):
        """Attention over the whole pass: every conversation reads those before it."""
        batch = pack(groups)
        return Batch(batch.input_ids, batch.position_ids, batch.last)

    monkeypatch.setattr(probes, "pack", without_blocks)
    assert probes.batch_dependence(scorer, flat) > 0.1


def misread(scorer, conversations, way: str) -> tuple[list[list[float]], int]:
    """(P, K) rewards of another way to read, and the length at which "cut" cuts."""
    rows = [group.rows for group in scorer.groups(conversations)[0]]
    length = int(np.median([len(ids) for row in rows for ids in row]))
    pad = scorer.tokenizer.pad_token_id
    if way == "order":
        return scorer.score(conversations)[::-1], length
    if way == "plain":
        texts = [[probes.plain_texts(c)[0] for c in row] for row in conversations]
        rows = [encode(row, scorer.tokenizer) for row in texts]
    elif way == "pad":
        rows = [[[*ids, pad] for ids in row] for row in rows]
    elif way == "before":
        rows = [[ids[:-2] for ids in row] for row in rows]
    elif way == "cut":
        rows = [[ids[:length] for ids in row] for row in rows]
    return [probes.last_rewards(scorer, row).tolist() for row in rows], length


@pytest.mark.parametrize(
    "way, key",
    [
        ("plain", "explained_by_plain"),
        ("pad", "explained_by_token"),
        ("before", "explained_by_token"),
        ("cut", "explained_by_cut"),
        ("order", "order_differs"),
    ],
)
def test_rewards_read_in_another_way_are_recognised(scorer, proxy, conversations, way, key):
    rewards, length = misread(scorer, conversations, way)
    numbers = probes.explain_rewards(scorer, conversations, np.array(rewards), proxy)
    assert numbers[key] == 1.0
    assert not any(numbers.get(other) for other in EXPLANATIONS - {key})
    assert way != "cut" or numbers["cut_at"] == length


def test_the_model_s_own_rewards_need_no_explanation(scorer, proxy, conversations):
    own = np.array(scorer.score(conversations))
    numbers = probes.explain_rewards(scorer, conversations, own, proxy)
    assert numbers["reproduced"] == pytest.approx(1)
    assert not any(numbers.get(name) for name in EXPLANATIONS)


def test_the_reading_in_which_a_model_knows_its_pairs_is_found(scorer, monkeypatch):
    """Made-up readings: at a pad it is right in 97 of 100 pairs, otherwise in 50. Only one way is
    right in 47 pairs, always the same one: z = 47 / sqrt(47)."""
    half = np.tile([1.0, 0.0, 0.0, 1.0], 50)  # right and wrong in turn
    right = np.tile([1.0, 0.0], 100)  # always right
    right[-12:] = half[-12:]
    ways = {name: half.copy() for name in ("read", "cut_9", "plain_0", *probes.OTHER_TOKENS)}
    ways["a pad after the end"] = right
    monkeypatch.setattr(probes, "readings", lambda scorer, conversations: ways)
    found = probes.training_reading(scorer, [])
    assert found["read_accuracy"] == 0.5
    assert found["token_words"] == "a pad after the end"
    assert found["cut_words"] == "9"
    assert found["token_gain"] == pytest.approx(0.47)
    assert found["token_gain_z"] == pytest.approx(47**0.5)
    assert "plain_gain" not in found


def test_moved_weights_are_zero_for_a_copy_and_the_norm_of_a_step(
    proxy, any_model_folder, tmp_path
):
    assert probes.moved_weights(proxy, any_model_folder)["backbone_moved"] < 1e-7
    model = AutoModelForSequenceClassification.from_pretrained(proxy)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.01)
    moved = tmp_path / "moved"
    model.save_pretrained(moved)
    numbers = probes.moved_weights(str(moved), any_model_folder)
    assert numbers["backbone_moved"] == pytest.approx(0.01, rel=1e-3)
    assert probes.moved_weights(proxy, str(tmp_path)) == {}  # no weights to compare with


def test_a_linear_probe_learns_what_frozen_features_hold(scorer, any_model_folder, tmp_path):
    """Cat against dog is one word: the features of an untrained model hold it."""
    rows = make_pairs(60)
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, rows[:40])
    conversations = [[row["chosen"], row["rejected"]] for row in rows[40:]]
    gold = np.tile([1.0, 0.0], (20, 1))
    found = probes.linear_probe(scorer, any_model_folder, read_pairs(path), conversations, gold)
    assert found["probe_match"] > 0.8


def test_token_rewards_spell_the_response_and_end_with_its_reward(scorer, conversations):
    conversation = conversations[0][0]
    tokens = probes.response_token_rewards(scorer, conversation)
    text = render(conversation, scorer.tokenizer)
    response = text[text.rindex(conversation[-1]["content"]) :]
    assert "".join(word for word, _ in tokens) == response
    assert tokens[-1][1] == pytest.approx(scorer.score([[conversation]])[0][0], abs=1e-5)


def test_the_largest_dropout_of_a_config_is_found(scorer, conversations, tmp_path):
    (tmp_path / "config.json").write_text(
        '{"attention_dropout": 0.1, "resid_pdrop": 0.3, "classifier_dropout": null}'
    )
    numbers = probes.config_numbers(str(tmp_path), scorer, conversations[0][0])
    assert numbers["config_dropout"] == 0.3
    assert numbers["pad_is_last"] == 0.0
