import math

import pytest
import torch
from conftest import make_model, make_pairs
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rmood import BadInput
from rmood.batching import LAYOUTS, Group, pack, pad
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.model import check_token_ids, load_reward_model, save_reward_model
from rmood.tokenization import encode, render


def groups_of(tokenizer, count: int = 12) -> list[Group]:
    texts = [render(row[side], tokenizer) for row in make_pairs(count) for side in ("chosen", "rejected")]
    rows = encode(texts, tokenizer)
    return [Group(rows[i : i + 2]) for i in range(0, len(rows), 2)]


def rewards_and_gradients(model, groups, layout):
    model.zero_grad()
    rewards, _ = model(LAYOUTS[layout](groups))
    bradley_terry_loss(reward_margin(rewards.view(-1, 2))).sum().backward()
    return rewards.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_packed_tokens_with_shared_prompts_score_and_learn_as_padded_rows(any_model_folder, toy_tokenizer, checkpointing):
    model = load_reward_model(any_model_folder, seed=0).train()
    torch.nn.init.normal_(model.score.weight)
    groups = groups_of(toy_tokenizer) + [Group([list(range(3, 3 + n)) for n in (100, 90)])]
    expected, expected_gradients = rewards_and_gradients(model, groups, "padded")
    if checkpointing:
        model.backbone.gradient_checkpointing_enable({"use_reentrant": False})
    rewards, gradients = rewards_and_gradients(model, groups, "packed")
    assert torch.allclose(rewards, expected, atol=1e-5, rtol=0)
    assert expected.std() > 0.1  # the comparison would say nothing if all rewards were alike
    for name in gradients:
        assert torch.allclose(gradients[name], expected_gradients[name], atol=1e-5 * expected_gradients[name].abs().max().item() + 1e-7, rtol=0), name


def test_more_responses_a_prompt_pack_the_same_way(any_model_folder):
    model = load_reward_model(any_model_folder, seed=0)
    groups = [Group([[5, 6, 7] + list(range(20, 20 + n)) for n in (4, 1, 9, 2)]), Group([[5, 6], [5, 7]])]
    assert torch.allclose(model(pack(groups))[0], model(pad(groups))[0], atol=1e-6)


def test_a_sliding_window_is_kept(tmp_path, toy_tokenizer):
    """Mistral-like attention over the last 8 tokens, against transformers' own mask."""
    window = dict(use_sliding_window=True, sliding_window=8, max_window_layers=0, layer_types=["sliding_attention"] * 2)
    make_model("qwen3", **window).save_pretrained(tmp_path)
    model = load_reward_model(str(tmp_path), seed=0)
    torch.nn.init.normal_(model.score.weight)
    rows = [list(range(10, 50)), list(range(10, 30)) + [7] * 10]
    ours, _ = model(pack([Group(rows)]))
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path, num_labels=1, attn_implementation="sdpa").model
    for reward, row in zip(ours, rows):
        hidden = theirs(input_ids=torch.tensor([row])).last_hidden_state[0, -1]
        assert model.score(hidden).item() == pytest.approx(reward.item(), abs=1e-5)


def test_a_new_head_has_no_opinion(toy_model_folder, toy_tokenizer):
    model = load_reward_model(toy_model_folder, seed=0)
    rewards, _ = model(pack(groups_of(toy_tokenizer)))
    loss = bradley_terry_loss(reward_margin(rewards.view(-1, 2))).mean().item()
    assert 0 < rewards.std() < 0.1 and loss == pytest.approx(math.log(2), abs=0.01)


def test_pad_equal_to_eos_scores_the_same_token(toy_model_folder, toy_tokenizer):
    """We know the lengths: the reward does not ask what the pad token is."""
    model, groups = load_reward_model(toy_model_folder, seed=0), groups_of(toy_tokenizer)
    before, _ = model(pad(groups))
    model.backbone.config.pad_token_id = toy_tokenizer.eos_token_id
    assert torch.equal(model(pad(groups))[0], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_folder_is_a_transformers_reward_model(any_model_folder, toy_tokenizer, tmp_path, dtype):
    model = load_reward_model(any_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path / "rm")
    save_reward_model(folder, model.state_dict(), model, toy_tokenizer, dtype, {"README.md": "card"})
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    assert theirs.config.problem_type == "regression" and theirs.config.num_labels == 1
    assert theirs.config.pad_token_id == toy_tokenizer.pad_token_id != toy_tokenizer.eos_token_id
    ours = load_reward_model(folder)  # a classifier's head is kept
    rows = [row for group in groups_of(toy_tokenizer) for row in group.rows]
    rewards, _ = ours(pack([Group([row]) for row in rows]))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for side in ("right", "left"):
        tokenizer.padding_side = side
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        assert torch.allclose(theirs(**batch).logits[:, 0], rewards, atol=1e-5), side
    with safe_open(f"{folder}/model.safetensors", "pt") as file:
        assert file.get_tensor("score.weight").dtype == torch.float32 and file.get_tensor("model.norm.weight").dtype == dtype


def test_scoring_wants_a_head(toy_model_folder):
    with pytest.raises(BadInput, match="no reward head"):
        load_reward_model(toy_model_folder)


def test_a_classifier_of_two_labels_is_no_reward_model(tmp_path):
    config = make_model("qwen3").config
    config.num_labels = 2
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="several labels"):
        load_reward_model(str(tmp_path))


def test_an_incomplete_folder_is_refused(tmp_path):
    model = make_model("qwen3")
    weights = {name: w for name, w in model.state_dict().items() if "layers.1.mlp" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(BadInput, match="3 weights are missing"):
        load_reward_model(str(tmp_path), seed=0)


def test_a_missing_model_is_a_letter():
    with pytest.raises(BadInput, match="no model could be loaded: no such folder"):
        load_reward_model("/nowhere/at-all", seed=0)


def test_a_tokenizer_of_another_model_is_noticed(toy_model_folder):
    with pytest.raises(BadInput, match="token id 384 lies outside the model's 384 embeddings"):
        check_token_ids(load_reward_model(toy_model_folder, seed=0), [[1, 384]], "toy")
