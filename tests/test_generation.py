"""Sampling without vLLM: drawing a token, and whole responses in a batch that shrinks."""

import math

import pytest
import torch
from conftest import make_model

from rmood.generation import draw, generate

PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13], [14, 15, 16, 17]]


def float64(*numbers) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def even_grid(count: int) -> torch.Tensor:
    """`count` numbers spread evenly over (0, 1)."""
    return (torch.arange(count, dtype=torch.float64) + 0.5) / count


# ---- drawing a token ----


def test_a_token_is_drawn_where_the_number_falls_in_the_running_sum():
    logits = torch.tensor([[0.5, 0.2, 0.3]]).log()  # running sum .5 .7 1
    numbers = float64(0.0, 0.4, 0.6, 0.8, 1 - 1e-16)
    assert draw(logits.expand(5, 3), numbers).tolist() == [0, 0, 1, 2, 2]
    assert draw(logits.expand(1000, 3), even_grid(1000)).bincount().tolist() == [500, 200, 300]


def test_temperature_sharpens_and_zero_takes_the_likeliest():
    logits = torch.tensor([[0.0, math.log(3.0)]])
    number = float64(0.2)
    assert draw(logits, number).item() == 0  # probabilities 1/4, 3/4
    assert draw(logits, number, temperature=0.5).item() == 1  # 1/10, 9/10
    assert draw(logits, number, temperature=0).item() == 1


def test_top_p_keeps_the_likeliest_tokens_that_reach_it():
    logits = torch.tensor([[0.2, 0.5, 0.3]]).log().expand(800, 3)

    def counts(top_p: float) -> list[int]:
        return draw(logits, even_grid(800), top_p=top_p).bincount(minlength=3).tolist()

    assert counts(0.6) == [0, 500, 300]  # .5 is short of .6, .5 + .3 is not
    assert counts(0.4) == [0, 800, 0]


# ---- responses ----


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_greedy_text_is_that_of_transformers_generate_prompt_by_prompt(kind):
    model = make_model(kind).eval()
    uniforms = torch.zeros(4, 12, dtype=torch.float64)
    together = generate(model, PROMPTS, [12] * 4, uniforms, ends=[2], temperature=0)
    for prompt, row in zip(PROMPTS, together):
        alone = model.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=12,
            eos_token_id=2,
            pad_token_id=0,
        )
        assert row == alone[0, len(prompt) :].tolist()


@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_a_response_does_not_depend_on_the_other_rows_of_its_batch(kind):
    model = make_model(kind).eval()
    uniforms = torch.rand(8, 20, generator=torch.manual_seed(0), dtype=torch.float64)
    # So many end tokens that responses end at different steps and leave the batch.
    ends = list(range(2, 60))
    together = generate(model, PROMPTS, [20] * 4, uniforms, ends)
    alone = []
    for i, prompt in enumerate(PROMPTS):
        alone += generate(model, [prompt], [20], uniforms[2 * i : 2 * i + 2], ends)
    assert together == alone
    assert len(set(map(len, together))) > 2
    assert all(row[-1] in ends or len(row) == 20 for row in together)
    assert not any(token in ends for row in together for token in row[:-1])


def test_max_new_tokens_holds_prompt_by_prompt():
    model = make_model("qwen3").eval()
    uniforms = torch.full((4, 9), 0.5, dtype=torch.float64)
    rows = generate(model, [[5, 6], [7]], [3, 9], uniforms, ends=[])
    assert [len(row) for row in rows] == [3, 3, 9, 9]


def test_finished_responses_are_counted_as_they_end():
    model = make_model("qwen3").eval()
    uniforms = torch.full((4, 9), 0.5, dtype=torch.float64)
    counts = []
    generate(model, [[5, 6], [7]], [3, 9], uniforms, ends=[], on_finished=counts.append)
    assert counts == [0, 0, 2, 0, 0, 0, 0, 0, 2]
