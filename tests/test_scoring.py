import pytest
import torch
from conftest import make_pairs

from rmood.batching import pack
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.loading import load_reward_model
from rmood.scoring import Scorer, load_scorer, score_groups

PAIRS = [[row["chosen"], row["rejected"]] for row in make_pairs(6)]


@pytest.fixture(scope="module")
def scorer(toy_model_folder, toy_tokenizer, tmp_path_factory, process) -> Scorer:
    folder = str(tmp_path_factory.mktemp("scorer"))
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    return load_scorer(folder, process, tokens_per_pass=100)


def test_a_scorer_gives_each_prompt_its_rewards_in_order(scorer):
    rewards = scorer.score(PAIRS)
    groups, shortened = scorer.groups(PAIRS)
    assert shortened == 0 and sum(group.tokens for group in groups) > scorer.tokens_per_pass
    for of_pair, group in zip(rewards, groups):
        alone, _ = scorer.model(pack([group]))
        assert of_pair == pytest.approx(alone.tolist(), abs=1e-5)


def test_prompts_may_have_different_numbers_of_responses(scorer):
    (pair, single) = scorer.score([PAIRS[0], [PAIRS[1][0]]])
    assert len(pair) == 2 and len(single) == 1


def test_known_rewards_are_not_scored_again_and_new_ones_are_kept(scorer):
    groups, _ = scorer.groups(PAIRS)
    kept = {}
    options = dict(groups_per_pass=1, keep=kept.update)
    everything = score_groups(scorer.model, groups, scorer.process, 100, **options)
    assert [kept[i] for i in range(6)] == everything
    done = {2: [7.0, 8.0]}
    kept.clear()
    again = score_groups(scorer.model, groups, scorer.process, 100, done=done, **options)
    assert again == everything[:2] + [[7.0, 8.0]] + everything[3:]
    assert sorted(kept) == [0, 1, 3, 4, 5]


def test_groups_outside_the_share_are_none(scorer):
    groups, _ = scorer.groups(PAIRS)
    halves = [
        score_groups(
            scorer.model, groups, scorer.process, 100, groups_per_pass=1, share=slice(k, None, 2)
        )
        for k in range(2)
    ]
    for first, second in zip(*halves):
        assert (first is None) != (second is None)


def test_the_mode_of_the_model_is_put_back(scorer):
    groups, _ = scorer.groups(PAIRS)
    for training in (True, False):
        scorer.model.train(training)
        score_groups(scorer.model, groups, scorer.process, 100)
        assert scorer.model.training == training


def test_the_prompt_and_the_response_that_are_too_long_are_named(scorer):
    limited = Scorer(scorer.model, scorer.tokenizer, scorer.process, scorer.name, 10, 100)
    with pytest.raises(UserError, match="prompt 0, response 1: its prompt alone has"):
        limited.score(PAIRS)
    groups, _ = scorer.groups(PAIRS)
    with pytest.raises(UserError, match="prompt 5 has 50 tokens, more than --tokens-per-pass 20"):
        score_groups(scorer.model, groups, scorer.process, 20)
