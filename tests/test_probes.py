"""Each probe on a model whose reading is known: a planted fault is found, and nothing otherwise."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import make_pairs
from transformers import AutoModelForSequenceClassification

from rmood.batching import Batch, pack
from rmood.diagnosis import probes
from rmood.files.rows import write_jsonl
from rmood.files.tables import Pair, read_pairs
from rmood.scoring import load_scorer
from rmood.tokenization import encode, render


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


def test_the_rewards_at_all_tokens_of_a_packed_pass_are_those_of_rows_one_by_one(
    scorer, conversations
):
    """By transformers' own attention without packing; and the last of each is the reward."""
    small = dataclasses.replace(scorer, tokens_per_pass=200)  # several passes
    groups, _ = small.groups(conversations)
    rows = [row for group in groups for row in group.rows]
    packed = probes.token_rewards(small, groups)
    plain = probes.plain_token_rewards(scorer, rows)
    assert [len(rewards) for rewards in packed] == [len(row) for row in rows]
    for one, other in zip(packed, plain):
        np.testing.assert_allclose(one, other, atol=1e-5)
    rewards = np.array(scorer.score(conversations)).ravel()
    np.testing.assert_allclose([one[-1] for one in packed], rewards, atol=1e-5)
    np.testing.assert_allclose(probes.rewards_of(small, groups), rewards, atol=1e-5)
    np.testing.assert_allclose(probes.last_rewards(scorer, rows), rewards, atol=1e-5)


def test_the_head_applied_to_the_last_states_gives_the_rewards(scorer, conversations):
    groups, _ = scorer.groups(conversations)
    states = torch.from_numpy(probes.last_states(scorer, groups))
    with torch.no_grad():
        rewards = scorer.model.score(states)[:, 0]
    np.testing.assert_allclose(rewards, probes.rewards_of(scorer, groups), atol=1e-5)


def test_plain_attention_ends_with_its_block_also_after_an_error(scorer):
    config = scorer.model.backbone.config
    assert config._attn_implementation == "rmood"
    with pytest.raises(RuntimeError):
        with probes.plain_attention(scorer.model) as backbone:
            assert backbone is scorer.model.backbone
            assert config._attn_implementation == "sdpa"
            raise RuntimeError
    assert config._attn_implementation == "rmood"


def test_another_dtype_leaves_the_weights_as_they_were(scorer, conversations, proxy):
    """bf16 and back, and from a model in bf16 to float32 and back: bit for bit."""
    for model in (scorer.model, load_scorer(proxy, dtype="bf16").model):
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        for dtype in (torch.bfloat16, torch.float32):
            with probes.in_dtype(model, dtype):
                assert next(model.backbone.parameters()).dtype == dtype
                assert model.score.weight.dtype == torch.float32
        after = dict(model.named_parameters())
        for name, weight in before.items():
            assert after[name].dtype == weight.dtype
            assert torch.equal(after[name], weight)


def test_what_bf16_changes_is_measured_from_either_dtype(scorer, proxy, conversations):
    """A model loaded in bf16 has lost the bits of its weights: its noise is that of computing."""
    exact = probes.rounding_numbers(scorer, conversations)
    in_bf16 = load_scorer(proxy, dtype="bf16")
    rounded = probes.rounding_numbers(in_bf16, conversations)
    groups, _ = scorer.groups(conversations)
    with probes.in_dtype(scorer.model, torch.bfloat16):
        change = probes.rewards_of(scorer, groups) - np.array(scorer.score(conversations)).ravel()
    assert 0 < exact["reward_noise"] < 0.2
    assert probes.backbone_dtype(in_bf16) == "bf16" and probes.backbone_dtype(scorer) == "float32"
    assert rounded["reward_noise"] == pytest.approx(exact["reward_noise"], rel=1.0)
    assert change.shape == (48,)


@pytest.mark.parametrize("dtype", ["float32", "bf16"])
def test_other_rows_change_no_reward_and_a_model_that_reads_them_is_caught(
    proxy, conversations, monkeypatch, dtype
):
    """In bf16 as in float32: it is judged in float32, in units of what bf16 rounds."""
    scorer = load_scorer(proxy, dtype=dtype)
    numbers = probes.rounding_numbers(scorer, conversations[:8])
    assert numbers["batch_dependence"] < 1e-4
    assert numbers["batch_over_rounding"] < 0.1

    def without_blocks(groups):
        """Attention over the whole pass: every conversation reads those before it."""
        batch = pack(groups)
        return Batch(batch.input_ids, batch.position_ids, batch.last)

    monkeypatch.setattr(probes, "pack", without_blocks)
    numbers = probes.rounding_numbers(scorer, conversations[:8])
    assert numbers["batch_dependence"] > 0.1
    assert numbers["batch_over_rounding"] > 1


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
        ("order", None),
    ],
)
def test_rewards_read_in_another_way_are_recognised(scorer, conversations, way, key):
    rewards, length = misread(scorer, conversations, way)
    own = np.array(scorer.score(conversations))
    numbers = probes.explain_rewards(scorer, conversations, np.array(rewards), own, 1e-5)
    explained = {name for name in numbers if name.startswith("explained_by")}
    assert explained == ({key} if key else set())
    assert numbers["file_is"] == ("read otherwise" if key else "shuffled")
    assert way != "cut" or numbers["cut_at"] == length


def test_another_reading_has_to_explain_the_rows_that_are_not_the_model_s_own(
    scorer, conversations
):
    """A cut that shortens few conversations gives most of the model's own rewards, and explains
    none of those that another model gave."""
    own = np.array(scorer.score(conversations))
    half = len(own) // 2
    mixed = own.copy()
    mixed[half:] += np.random.default_rng(0).normal(scale=5 * own.std(), size=mixed[half:].shape)
    numbers = probes.explain_rewards(scorer, conversations, mixed, own, 1e-5, sample=half)
    assert numbers["file_is"] == "mixed"
    assert not any(name.startswith("explained_by") for name in numbers)


def test_the_model_s_own_rewards_need_no_explanation(scorer, proxy, conversations):
    """Nor do those that it gave in another dtype, by the noise that was measured."""
    own = np.array(scorer.score(conversations))
    numbers = probes.explain_rewards(scorer, conversations, own, own, 1e-6)
    assert numbers["reproduced"] == pytest.approx(1)
    assert numbers["file_is"] == "equal"
    noise = probes.rounding_numbers(scorer, conversations)["reward_noise"]
    in_bf16 = np.array(load_scorer(proxy, dtype="bf16").score(conversations))
    assert np.abs(in_bf16 - own).max() > 1e-3
    numbers = probes.explain_rewards(scorer, conversations, in_bf16, own, noise)
    assert numbers["file_is"] == "equal"


def test_the_reading_in_which_a_model_knows_its_pairs_is_found(scorer, monkeypatch):
    """Made-up readings: at a pad it is right in 97 of 100 pairs, otherwise in 50. Only one way is
    right in 47 pairs, always the same one: z = 47 / sqrt(47)."""
    half = np.tile([[1.0, 0.0], [0.0, 1.0]], (50, 1))  # right and wrong in turn
    right = np.tile([1.0, 0.0], (100, 1))  # always right
    right[-6:] = half[-6:]
    ways = {name: half.copy() for name in ("read", "cut_9", *probes.OTHER_TOKENS)}
    ways["a pad after the end"] = right
    monkeypatch.setattr(probes, "readings", lambda *arguments: ways)
    pairs = []
    for number in range(100):
        turns = [{"role": "user", "content": str(number)}, {"role": "assistant", "content": "a"}]
        pairs.append(Pair(chosen=turns, rejected=turns))
    found, rewards, other = probes.training_reading(scorer, pairs, plain=False)
    assert rewards is ways["read"]
    assert found["read_accuracy"] == 0.5
    assert found["token_words"] == "a pad after the end"
    assert found["cut_words"] == "9"
    assert 0.9 < found["token_accuracy_low"] < found["token_accuracy"] == 0.97
    assert found["token_gain"] == pytest.approx(0.47)
    assert found["token_gain_z"] == pytest.approx(47**0.5)
    assert "plain_gain" not in found and "plain_accuracy" not in found


@pytest.mark.parametrize("known_as", [0, 4])
def test_plain_text_is_tried_on_some_pairs_and_read_on_all_where_it_is_better(
    scorer, monkeypatch, known_as
):
    """Made-up rewards: as plain text of one kind it is always right, otherwise wrong."""
    asked = []

    def made_up(scorer, conversations, ways, desc=""):
        asked.append((len(conversations), list(ways)))
        return {
            f"plain_{way}": np.tile([float(way == known_as), 0.5], (len(conversations), 1))
            for way in ways
        }

    monkeypatch.setattr(probes, "plain_readings", made_up)
    wrong = np.tile([0.0, 1.0], (100, 1))
    found = probes._best_plain_reading(scorer, [None] * 100, wrong)
    assert list(found) == [f"plain_{known_as}"]
    assert found[f"plain_{known_as}"].shape == (100, 2)
    assert asked == [(probes.PLAIN_SAMPLE, [0, 1, 2, 3, 4]), (60, [known_as])]
    asked.clear()
    assert probes._best_plain_reading(scorer, [None] * 100, wrong[:, ::-1]) == {}
    assert len(asked) == 1


def test_all_probes_cost_less_than_three_scorings(
    scorer, any_model_folder, conversations, tmp_path
):
    """In tokens through the backbone: 200 test prompts and 100 pairs, everything measured."""
    counted = []

    def count(module, arguments, settings):
        counted.append(settings["input_ids"].numel())

    rows = make_pairs(100)
    write_jsonl(str(tmp_path / "pairs.jsonl"), rows)
    pairs = read_pairs(str(tmp_path / "pairs.jsonl"))
    test = [[row["chosen"], row["rejected"]] for row in make_pairs(200)]
    scored = sum(group.tokens for group in scorer.groups(test)[0])
    scored += sum(
        group.tokens for group in scorer.groups([[p.chosen, p.rejected] for p in pairs])[0]
    )

    load = probes.load_reward_model

    def load_and_count(*arguments, **settings):
        model = load(*arguments, **settings)
        model.backbone.register_forward_pre_hook(count, with_kwargs=True)
        return model

    hook = scorer.model.backbone.register_forward_pre_hook(count, with_kwargs=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probes, "load_reward_model", load_and_count)
        own = np.array(scorer.score(test))  # what diagnose() scores itself
        probes.rounding_numbers(scorer, test[:24])
        probes.training_reading(scorer, pairs)
        probes.linear_probe(scorer, any_model_folder, pairs, test, own, own)
    hook.remove()
    assert 1.5 * scored < sum(counted) < 3 * scored


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
    """Cat against dog is one word: the features of an untrained model hold it. A proxy that is
    right everywhere gains what the probe misses; with gold at random both are at chance, and the
    probe still knows the training pairs that it has not seen."""
    rows = make_pairs(60)
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, rows[:40])
    test = [[row["chosen"], row["rejected"]] for row in rows[40:]]
    gold = np.tile([1.0, 0.0], (20, 1))
    pairs = read_pairs(path)
    found = probes.linear_probe(scorer, any_model_folder, pairs, test, gold, gold)
    six = [[row[0], row[1], row[0], row[1], row[0], row[0]] for row in test]  # four are read
    wide = np.concatenate([gold, gold, np.zeros_like(gold)], axis=1)
    more = probes.linear_probe(scorer, any_model_folder, pairs, six, wide, wide)
    assert more["probe_match"] == pytest.approx(found["probe_match"])
    none = probes.linear_probe(scorer, any_model_folder, pairs, test, gold, np.zeros_like(gold))
    assert none.keys() == {"probe_train_low"}
    assert found["probe_match"] > 0.8
    assert found["gain_over_probe"] == pytest.approx(1 - found["probe_match"])
    assert found["probe_train_low"] > 0.5
    shuffled = gold.copy()
    shuffled[::2] = shuffled[::2, ::-1]
    found = probes.linear_probe(scorer, any_model_folder, pairs, test, gold, shuffled)
    assert found["probe_match_low"] < 0.5 < found["probe_match_high"]
    assert found["probe_train_low"] > 0.5


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
