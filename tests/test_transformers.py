"""A saved reward model is an ordinary transformers folder, for every kind of model here."""

import functools

import huggingface_hub
import pytest
import torch
from conftest import make_pairs
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline

from rmood.batching import Group, pack
from rmood.model import load_reward_model, save_reward_model
from rmood.tokenization import encode, render

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, intermediate_size=64, vocab_size=384)
SIZES |= dict(pad_token_id=0, bos_token_id=None, eos_token_id=2, initializer_range=0.2, max_position_embeddings=512)
KINDS = dict(qwen2={}, qwen3={}, llama={}, mistral=dict(sliding_window=16), gemma={}, gemma3_text=dict(sliding_window=16))


@pytest.fixture(scope="module")
def texts(toy_tokenizer) -> list[str]:
    return [render(row[side], toy_tokenizer) for row in make_pairs(6) for side in ("chosen", "rejected")]


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("kind", KINDS)
def test_rewards_are_those_of_the_classifier_and_of_the_pipeline(kind, tied, tmp_path, toy_tokenizer, texts, monkeypatch):
    """From a causal LM in several files to a reward model in several files (none above 40 KB), one half of the time."""
    torch.manual_seed(0)
    causal = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SIZES | KINDS[kind], tie_word_embeddings=tied))
    shard_size = "40KB" if tied else "5GB"
    causal.save_pretrained(tmp_path / "sft", max_shard_size=shard_size)
    ours = load_reward_model(str(tmp_path / "sft"), seed=0)
    torch.nn.init.normal_(ours.score.weight)
    monkeypatch.setattr("rmood.model.save_torch_state_dict", functools.partial(huggingface_hub.save_torch_state_dict, max_shard_size=shard_size))
    folder = str(tmp_path / "rm")
    save_reward_model(folder, ours.state_dict(), ours, toy_tokenizer, torch.float32, {})
    for written in (tmp_path / "sft", tmp_path / "rm"):
        assert len(list(written.glob("*.safetensors"))) > 1 if tied else (written / "model.safetensors").exists()

    again = load_reward_model(folder, seed=1)  # as train.py goes on from it: a head that is there is kept
    assert all(torch.equal(weight, ours.state_dict()[name]) for name, weight in again.state_dict().items())
    rows = encode(texts, toy_tokenizer)
    with torch.no_grad():
        rewards = again(pack([Group(rows[i : i + 2]) for i in range(0, len(rows), 2)]))[0]  # the shared prompt once
    assert rewards.std() > 0.1 and max(map(len, rows)) > 16  # longer than the windows

    theirs, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for side in ("right", "left"):
        batch = tokenizer(texts, add_special_tokens=False, padding=True, padding_side=side, return_tensors="pt")
        assert batch.attention_mask.sum() < batch.attention_mask.numel()
        assert theirs(**batch).logits[:, 0].tolist() == pytest.approx(rewards.tolist(), abs=1e-5, rel=1e-5), side
        tokenizer.padding_side = side
        classify = pipeline("text-classification", model=theirs, tokenizer=tokenizer, device="cpu")
        assert [found["score"] for found in classify(texts, batch_size=5)] == pytest.approx(rewards.tolist(), abs=1e-5, rel=1e-5), side


def test_one_file_replaces_several_and_several_replace_one(tmp_path, toy_model_folder, toy_tokenizer, monkeypatch):
    """Files of an older, differently split model would be loaded in place of the new one."""
    model, save = load_reward_model(toy_model_folder, seed=0), huggingface_hub.save_torch_state_dict
    for size in ("40KB", "5GB", "40KB"):
        torch.nn.init.normal_(model.score.weight)
        monkeypatch.setattr("rmood.model.save_torch_state_dict", functools.partial(save, max_shard_size=size))
        save_reward_model(str(tmp_path), model.state_dict(), model, toy_tokenizer, torch.float32, {})
        assert (tmp_path / "model.safetensors").exists() != (tmp_path / "model.safetensors.index.json").exists()
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        assert torch.equal(theirs.score.weight, model.score.weight) and torch.equal(load_reward_model(str(tmp_path)).score.weight, model.score.weight)
