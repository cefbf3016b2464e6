import torch
from conftest import groups_of_pairs

from rmood.batching import pad
from rmood.loading import load_reward_model


def test_pad_equal_to_eos_scores_the_same_token(toy_model_folder, toy_tokenizer):
    """We know the lengths: the reward does not ask what the pad token is."""
    model = load_reward_model(toy_model_folder, seed=0)
    groups = groups_of_pairs(toy_tokenizer)
    before, _ = model(pad(groups))
    model.backbone.config.pad_token_id = toy_tokenizer.eos_token_id
    after, _ = model(pad(groups))
    assert torch.equal(after, before)


def test_rewards_are_float32_also_of_a_bf16_backbone(toy_model_folder, toy_tokenizer):
    model = load_reward_model(toy_model_folder, torch.bfloat16, seed=0)
    rewards, pooled = model(pad(groups_of_pairs(toy_tokenizer)))
    assert rewards.dtype == torch.float32 and pooled.dtype == torch.bfloat16
