import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY
from transformers import AutoModelForSequenceClassification

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import estimate
import gpu
import labelling
import workload
from estimate import QWEN3_4B, Shape
from rmood import distributed, records
from rmood.batching import Group, epoch_order
from rmood.config import complete
from rmood.loss import bradley_terry_loss, reward_margin
from rmood.records import BadInput
from rmood.scoring import load_scorer

SMALL = Shape(layers=1, hidden=2, heads=1, kv_heads=1, head=2, mlp=3, vocabulary=8, norm_heads=False)


def test_useful_flops_count_a_shared_prompt_once():
    """4 * 2 * 2 attention weights + 3 * 2 * 3 of the MLP + 2 norms of 2 = 38, at 2 FLOPs each; a seen token costs 4 * 2."""
    assert SMALL.layer_parameters == 38
    assert workload.forward_flops(SMALL, [Group([[1, 2, 3]])]) == 2 * 3 * 38 + 8 * (1 + 2 + 3)
    pair = Group([[1, 2, 3, 4], [1, 2, 5]])  # 2 shared tokens, which see 1 + 2; then 3 + 4, and 3
    assert pair.tokens == 5 and workload.forward_flops(SMALL, [pair]) == 2 * 5 * 38 + 8 * (1 + 2 + 3 + 4 + 3)


def test_a_long_row_costs_what_the_estimate_says():
    """6 a token and weight and half the row's square of attention, but for the token that sees itself."""
    measured = 3 * workload.forward_flops(QWEN3_4B, [Group([list(range(1000))])])
    assert measured == pytest.approx(estimate.flops(QWEN3_4B, 1000, row_length=1000, rows_per_token=1), rel=1e-4)


def test_made_up_lengths_have_alpacafarms_quantiles():
    prefix, own = workload.sample_lengths(20_000, 2, seed=0)
    assert np.median(prefix) == 60 and np.median(own) == 48
    assert (prefix.min(), own.min()) == (46, 1) and own.max() <= 1029
    ranks = np.argsort(np.argsort(own, axis=0), axis=0)
    assert np.corrcoef(ranks.T)[0, 1] == pytest.approx(0.8, abs=0.03)  # long answers have long rivals


def test_a_made_up_word_is_a_token():
    prompts, responses = workload.make_texts(6, 2, seed=0)
    tokenizer = workload.word_tokenizer()
    talk = records.conversations(prompts, responses)[0][0]
    words = len(prompts[0][1]["content"].split()) + len(responses[0][0].split())
    assert len(workload.encode([workload.render(talk, tokenizer)], tokenizer)[0]) == words + 3 * 3  # <|im_start|>, role, <|im_end|>


def test_both_ways_of_labelling_give_the_same_rewards(tmp_path):
    """Batches of 5 conversations, padded, with a mask; and packed passes with shared prompts."""
    tokenizer = workload.word_tokenizer(512)
    talks = records.conversations(*workload.make_texts(12, 3, seed=0, scale=0.2))
    labelling.save_random(labelling.Config(hidden_size=32, layers=2), tokenizer, str(tmp_path))
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    scorer = load_scorer(str(tmp_path), distributed.start("cpu"), dtype="float32", tokens_per_pass=1024)
    ours, theirs, seconds, padded = labelling.take_turns(labelling.Config(batch_size=5, num_responses=3), scorer, model, talks)
    assert len(ours) == 36 and ours.std() > 0.01 and padded > sum(group.tokens for group in scorer.groups(talks)[0])
    torch.testing.assert_close(ours, theirs, atol=labelling.TOLERANCE, rtol=0)
    assert set(seconds) == {"rmood", "reference"}


def test_the_measured_step_learns(process):
    """Eight steps on the same 8 pairs: the loss falls from ln 2 = 0.693."""
    variant, size = gpu.Variant("float32"), gpu.TINY
    model = gpu.build_model(size.train, variant, process)
    optimizer = gpu.build_optimizer(model, variant.precision, 1e-5, 0.0)
    groups = workload.make_groups(8, 2, size.train.vocabulary, seed=0, scale=size.lengths)
    pairs, clock = epoch_order(8, 8, 0, 0)[0], gpu.Clock(process.device)
    losses = [bradley_terry_loss(reward_margin(gpu.train_step(model, optimizer, process, groups, pairs, 4096, variant, clock))).mean().item() for _ in range(8)]
    assert losses[0] == pytest.approx(0.693, abs=0.05) and losses[-1] < losses[0]
    assert set(clock.seconds()) == {"between steps", "packing", "forward", "backward", "clipping", "meter", "optimizer"}


def test_every_section_for_the_gpu_runs_on_a_toy_shape(process):
    cfg = complete(gpu.Config(tiny=True, batch_size=4, tokens_per_pass=1024, device="cpu"))
    sections = {name: gpu.run_section(cfg, name) for name in gpu.SECTIONS if "compiled" not in name}  # the compiler takes a minute
    assert not {name: result for name, result in sections.items() if "error" in result}
    losses = [result["first_loss"] for result in sections.values() if "first_loss" in result]
    assert losses and all(loss == pytest.approx(losses[0], abs=0.02) for loss in losses)  # of every precision and layout
    assert sections["labelling"]["largest_difference"] < 0.15 and len(sections["profile"]["top"]) == 10
    text = gpu.report({"machine": {"cpu": "toy"}, "sections": sections | {"mixed, compiled": {"error": "stopped after 200 s"}}})
    assert "| mixed, compiled |" in text and "stopped after 200 s" in text and "Best MFU" in text


def test_out_of_memory_is_a_result(process, monkeypatch):
    def fails(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(gpu, "training", fails)
    assert gpu.run_section(gpu.Config(tiny=True, device="cpu"), "mixed")["error"] == gpu.OUT_OF_MEMORY


def test_a_section_runs_in_a_process_of_its_own():
    cfg = gpu.Config(tiny=True, device="cpu", minutes=5)
    result, facts = gpu.run_apart(cfg, "rate", gpu.time.monotonic() + 300, 1024)
    assert result["matmul_tflops"] > 0 and facts["torch"] == torch.__version__
    assert gpu.run_apart(cfg, "rate", gpu.time.monotonic() + 1, 1024) == ({"error": "left out: 5 minutes are over"}, {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(BadInput, match="no CUDA GPU here: add --tiny to try the code on a CPU"):
        gpu.main()
