"""A saved reward model is an ordinary transformers folder, for every kind of model here."""

import pytest
import torch
from conftest import groups_of_pairs, make_pairs
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from rmood.batching import pack
from rmood.export import save_reward_model
from rmood.loading import load_reward_model
from rmood.tokenization import render

SETTINGS = dict(
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=384,
    pad_token_id=0,
    bos_token_id=None,
    eos_token_id=2,
    initializer_range=0.2,
    max_position_embeddings=512,
)
KINDS = dict(
    qwen2={},
    qwen3={},
    llama={},
    mistral=dict(sliding_window=16),
    gemma={},
    gemma3_text=dict(sliding_window=16),
)


@pytest.fixture(scope="module")
def texts(toy_tokenizer) -> list[str]:
    """Of six pairs: chosen, rejected, chosen, ..."""
    sides = [row[side] for row in make_pairs(6) for side in ("chosen", "rejected")]
    return [render(messages, toy_tokenizer) for messages in sides]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_the_classifier_and_of_the_pipeline(
    kind, tied, tmp_path, toy_tokenizer, texts
):
    """From a causal LM to a reward model; with tied weights, both in several files up to 40 KB."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SETTINGS | KINDS[kind], tie_word_embeddings=tied)
    file_size = "40KB" if tied else "5GB"
    sft, rm = tmp_path / "sft", tmp_path / "rm"
    AutoModelForCausalLM.from_config(config).save_pretrained(sft, max_shard_size=file_size)
    ours = load_reward_model(str(sft), seed=0)
    torch.nn.init.normal_(ours.score.weight)
    save_reward_model(str(rm), ours, toy_tokenizer, torch.float32, {}, max_shard_size=file_size)
    for folder in (sft, rm):
        files = [path.name for path in folder.glob("*.safetensors")]
        if tied:
            assert len(files) > 1
        else:
            assert files == ["model.safetensors"]

    # as train.py goes on from a reward model: a head that is there is kept, whatever the seed
    again = load_reward_model(str(rm), seed=1)
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, ours.state_dict()[name]), name
    groups = groups_of_pairs(toy_tokenizer, 6)  # the same texts, the shared prompt once
    with torch.no_grad():
        rewards, _ = again(pack(groups))
    assert rewards.std() > 0.1
    assert max(len(row) for group in groups for row in group.rows) > 16  # longer than the windows
    expected = pytest.approx(rewards.tolist(), abs=1e-5, rel=1e-5)

    theirs = AutoModelForSequenceClassification.from_pretrained(rm)
    tokenizer = AutoTokenizer.from_pretrained(rm)
    for side in ("right", "left"):
        batch = tokenizer(
            texts, add_special_tokens=False, padding=True, padding_side=side, return_tensors="pt"
        )
        assert batch.attention_mask.sum() < batch.attention_mask.numel()
        assert theirs(**batch).logits[:, 0].tolist() == expected, side
        tokenizer.padding_side = side
        classify = pipeline("text-classification", model=theirs, tokenizer=tokenizer, device="cpu")
        found = classify(texts, batch_size=5)
        assert [result["score"] for result in found] == expected, side


def test_one_file_replaces_several_and_several_replace_one(
    tmp_path, toy_model_folder, toy_tokenizer
):
    """Files of an older, differently split model would be loaded in place of the new one."""
    model = load_reward_model(toy_model_folder, seed=0)
    for size in ("40KB", "5GB", "40KB"):
        torch.nn.init.normal_(model.score.weight)
        save_reward_model(
            str(tmp_path), model, toy_tokenizer, torch.float32, {}, max_shard_size=size
        )
        one_file = (tmp_path / "model.safetensors").exists()
        index = (tmp_path / "model.safetensors.index.json").exists()
        assert one_file == (size == "5GB") and index == (size == "40KB")
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(theirs.score.weight, model.score.weight)
        assert torch.equal(load_reward_model(str(tmp_path)).score.weight, model.score.weight)
