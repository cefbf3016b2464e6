"""Each probe on a model whose reading is known: what was planted is what is found, and a healthy model shows nothing."""

import numpy as np
import pytest
import torch
from conftest import make_pairs
from transformers import AutoModelForSequenceClassification

from rmood import probes, records
from rmood.batching import pack
from rmood.scoring import load_scorer
from rmood.tokenization import encode, render


@pytest.fixture(scope="module")
def proxy(any_model_folder, tmp_path_factory, request):
    """A tiny model with a reward head, in its own folder."""
    folder = tmp_path_factory.mktemp("proxy")
    model = AutoModelForSequenceClassification.from_pretrained(any_model_folder, num_labels=1)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.score.weight, std=0.3)
    model.save_pretrained(folder)
    load_scorer_tokenizer = request.getfixturevalue("toy_tokenizer")
    load_scorer_tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def scorer(proxy):
    return load_scorer(proxy)


@pytest.fixture(scope="module")
def conversations():
    return [[row["chosen"], row["rejected"]] for row in make_pairs(24)]


def test_the_last_of_the_token_rewards_is_the_reward(scorer, conversations):
    groups, _ = scorer.groups(conversations)
    by_token = [rewards[-1] for rewards in probes.token_rewards(scorer, [row for group in groups for row in group.rows])]
    assert by_token == pytest.approx(np.array(scorer.score(conversations)).ravel().tolist(), abs=1e-5)


def test_company_changes_no_reward_and_a_model_that_looks_around_is_caught(scorer, conversations, monkeypatch):
    flat = [c for row in conversations[:4] for c in row]
    assert probes.company_gap(scorer, flat) < 1e-4

    def without_blocks(groups):  # attention over the whole pass: every conversation reads those before it
        batch = pack(groups)
        return batch._replace(blocks=None, pick=None) if hasattr(batch, "_replace") else type(batch)(batch.input_ids, batch.position_ids, batch.last)

    monkeypatch.setattr(probes, "pack", without_blocks)
    assert probes.company_gap(scorer, flat) > 0.1


@pytest.mark.parametrize("way, key", [("plain", "explained_by_plain"), ("pad", "explained_by_token"), ("before", "explained_by_token"), ("cut", "explained_by_cut"), ("order", "order_differs")])
def test_rewards_read_in_another_way_are_recognised(scorer, proxy, conversations, way, key):
    rows = [group.rows for group in scorer.groups(conversations)[0]]
    one = lambda ids: float(probes.token_rewards(scorer, [ids])[0][-1])  # noqa: E731
    own = scorer.score(conversations)
    length = int(np.median([len(ids) for row in rows for ids in row]))
    found = {
        "plain": lambda: [[one(encode([probes.plain_texts(c)[0]], scorer.tokenizer)[0]) for c in row] for row in conversations],
        "pad": lambda: [[one([*ids, scorer.tokenizer.pad_token_id]) for ids in row] for row in rows],
        "before": lambda: [[one(ids[:-2]) for ids in row] for row in rows],
        "cut": lambda: [[one(ids[:length]) for ids in row] for row in rows],
        "order": lambda: own[::-1],
    }[way]()
    numbers = probes.explain_rewards(scorer, conversations, np.array(found), proxy)
    assert numbers[key] == 1.0
    others = {"explained_by_plain", "explained_by_token", "explained_by_cut", "order_differs"} - {key}
    assert not any(numbers.get(other) for other in others)
    assert way != "cut" or numbers["cut_at"] == length
    healthy = probes.explain_rewards(scorer, conversations, np.array(own), proxy)
    assert healthy["reproduced"] == pytest.approx(1) and not any(healthy.get(other) for other in others | {key})


def test_the_reading_in_which_a_model_knows_its_pairs_is_found(scorer, monkeypatch):
    """Made-up readings: at a pad it is right in 97 of 100 pairs, otherwise in 50. Only one way is right in 47 pairs, always the
    same one: z = 47 / sqrt(47)."""
    half, right = np.tile([1.0, 0.0, 0.0, 1.0], 50), np.tile([1.0, 0.0], 100)  # right and wrong in turn; always right
    right[-12:] = half[-12:]
    ways = {name: half.copy() for name in ("read", "cut_9", "plain_0", *(t for t in probes.TOKENS if t != "the last token"))}
    ways["a pad after the end"] = right
    monkeypatch.setattr(probes, "readings", lambda scorer, conversations: ways)
    found = probes.training_reading(scorer, [])
    assert found["read_accuracy"] == 0.5 and found["token_words"] == "a pad after the end" and found["token_gain"] == pytest.approx(0.47)
    assert found["token_gain_z"] == pytest.approx(47**0.5) and "plain_gain" not in found


def test_moved_weights_are_zero_for_a_copy_and_the_norm_of_a_step(proxy, any_model_folder, tmp_path):
    assert probes.moved_weights(proxy, any_model_folder)["backbone_moved"] < 1e-7
    model = AutoModelForSequenceClassification.from_pretrained(proxy)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.mul_(1.01)
    model.save_pretrained(tmp_path / "moved")
    assert probes.moved_weights(str(tmp_path / "moved"), any_model_folder)["backbone_moved"] == pytest.approx(0.01, rel=1e-3)
    assert probes.moved_weights(proxy, str(tmp_path)) == {}  # no weights to compare with


def test_a_linear_probe_learns_what_frozen_features_hold(scorer, any_model_folder, tmp_path):
    """Cat against dog is one word: the features of an untrained model hold it."""
    path = str(tmp_path / "pairs.jsonl")
    records.write_jsonl(path, make_pairs(40))
    conversations = [[row["chosen"], row["rejected"]] for row in make_pairs(60)[40:]]
    assert probes.linear_probe(scorer, any_model_folder, records.read_pairs(path), conversations, np.tile([1.0, 0.0], (20, 1)))["probe_match"] > 0.8


def test_coloured_tokens_spell_the_response_and_end_with_its_reward(scorer, conversations):
    conversation = conversations[0][0]
    tokens = probes.coloured_response(scorer, conversation)
    text = render(conversation, scorer.tokenizer)
    assert "".join(word for word, _ in tokens) == text[text.rindex(conversation[-1]["content"]) :]
    assert tokens[-1][1] == pytest.approx(scorer.score([[conversation]])[0][0], abs=1e-5)
