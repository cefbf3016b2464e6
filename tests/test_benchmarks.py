import sys
import time
from dataclasses import replace

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

from rmood import distributed
from rmood.batching import Group
from rmood.cli import complete
from rmood.errors import UserError
from rmood.files.tables import join_conversations
from rmood.scoring import load_scorer

SMALL = Shape(
    layers=1, hidden=2, heads=1, kv_heads=1, head=2, mlp=3, vocabulary=8, norm_heads=False
)


def test_useful_flops_count_a_shared_prompt_once():
    """4 * 2 * 2 attention weights + 3 * 2 * 3 of the MLP + 2 norms of 2 = 38, at 2 FLOPs each; a
    seen token costs 4 * 2."""
    assert SMALL.layer_parameters == 38
    single = Group([[1, 2, 3]])
    assert workload.forward_flops(SMALL, [single]) == 2 * 3 * 38 + 8 * (1 + 2 + 3)
    pair = Group([[1, 2, 3, 4], [1, 2, 5]])  # 2 shared tokens, which see 1 + 2; then 3 + 4, and 3
    assert pair.tokens == 5
    assert workload.forward_flops(SMALL, [pair]) == 2 * 5 * 38 + 8 * (1 + 2 + 3 + 4 + 3)


def test_a_long_row_costs_what_the_estimate_says():
    """6 a token and weight and half the row's square of attention, but for the token that sees
    itself."""
    counted = 3 * workload.forward_flops(QWEN3_4B, [Group([list(range(1000))])])
    estimated = estimate.flops(QWEN3_4B, 1000, seen_per_token=500)
    assert counted == pytest.approx(estimated, rel=1e-4)


def test_the_lengths_of_the_estimate_are_those_of_alpacafarm():
    if workload.data_folder() is None:
        pytest.skip("needs the real texts")
    groups = workload.make_groups(64, 2, QWEN3_4B.vocabulary, seed=0)
    tokens = sum(group.tokens for group in groups)
    assert tokens == estimate.TOKENS_OF_64_PAIRS
    seen = sum(map(workload.tokens_seen, groups)) / tokens
    assert seen == pytest.approx(estimate.SEEN_PER_TOKEN, abs=0.5)


def test_made_up_lengths_have_alpacafarms_quantiles():
    prefix, own = workload.sample_lengths(20_000, 2, seed=0)
    assert np.median(prefix) == 60
    assert np.median(own) == 48
    assert prefix.min() == 46
    assert own.min() == 1
    assert own.max() <= 1029
    ranks = np.argsort(np.argsort(own, axis=0), axis=0)
    correlation = np.corrcoef(ranks.T)[0, 1]
    assert correlation == pytest.approx(0.8, abs=0.03)  # both answers to a prompt are long


def test_a_made_up_word_is_a_token():
    prompts, responses = workload.make_texts(6, 2, seed=0)
    tokenizer = workload.word_tokenizer()
    conversation = join_conversations(prompts, responses)[0][0]
    rendered = workload.render(conversation, tokenizer)
    words = len(prompts[0][1]["content"].split()) + len(responses[0][0].split())
    markup = 3 * 3  # <|im_start|>, role, <|im_end|>
    assert len(workload.encode([rendered], tokenizer)[0]) == words + markup


def test_both_ways_of_labelling_give_the_same_rewards(tmp_path):
    """Batches of 5 conversations, padded, with a mask; and packed passes with shared prompts."""
    tokenizer = workload.word_tokenizer(512)
    prompts, responses = workload.make_texts(12, 3, seed=0, scale=0.2)
    conversations = join_conversations(prompts, responses)
    model_size = labelling.Config(hidden_size=32, layers=2)
    labelling.save_random_model(model_size, tokenizer, str(tmp_path))
    reference_model = AutoModelForSequenceClassification.from_pretrained(
        tmp_path, attn_implementation="sdpa"
    ).eval()
    process = distributed.start("cpu")
    scorer = load_scorer(str(tmp_path), process, dtype="float32", tokens_per_pass=1024)

    ours, reference, seconds, padded = labelling.take_turns(
        labelling.Config(batch_size=5, num_responses=3), scorer, reference_model, conversations
    )
    assert len(ours) == 36
    assert ours.std() > 0.01
    assert padded > sum(group.tokens for group in scorer.groups(conversations)[0])
    torch.testing.assert_close(ours, reference, atol=labelling.TOLERANCE, rtol=0)
    assert set(seconds) == {"rmood", "reference"}


def toy_config() -> gpu.Config:
    return complete(gpu.Config(tiny=True, batch_size=4, tokens_per_pass=1024, device="cpu"))


def test_what_is_measured_is_train_pys_own_loop(process, tmp_path, monkeypatch):
    """Its main runs from the first line on: each step is planned, clipped, taken, logged once."""
    taken = []
    monkeypatch.setattr(gpu.train, "took_step", lambda run_state, step, *_: taken.append(step))
    variant = gpu.Variant("float32", compiled=False, log_every=1)
    run = gpu.make_run(toy_config(), gpu.TINY, variant, process, str(tmp_path), steps=3)
    begun = []
    clock = gpu.Clock(process.device)
    lines = gpu.run_train(run, clock, begun.append)
    assert taken == [line["step"] for line in lines] == [1, 2, 3]
    assert begun == [1, 2, 3, 4]
    assert lines[0]["loss"] == pytest.approx(0.693, abs=0.05)
    assert "lost_updates" in lines[0]
    parts = {"between steps", "passes", "clipping", "finite", "meter", "optimizer", "log and meter"}
    assert set(clock.seconds()) == parts


def test_a_step_is_timed_by_its_own_line():
    assert gpu.line_seconds({"pairs_per_s": 32.0}, pairs=64) == 2.0


def test_every_section_for_the_gpu_runs_on_a_toy_shape(process, monkeypatch):
    for name, variant in gpu.TRAINING.items():  # the compiler takes a minute
        monkeypatch.setitem(gpu.TRAINING, name, replace(variant, compiled=False))
    sections = {name: gpu.run_section(toy_config(), name) for name in gpu.SECTIONS}
    assert not {name: result for name, result in sections.items() if "error" in result}

    trainings = {name: sections[name] for name in gpu.TRAINING}
    losses = [result["first_loss"] for result in trainings.values()]
    for loss in losses:  # of every precision and layout
        assert loss == pytest.approx(losses[0], abs=0.02)
    layers = gpu.TINY.train.layers
    for name, result in trainings.items():  # auto: none on a CPU
        assert result["recomputed"] == (layers if "recomputed" in name else 0), name
    assert sections["labelling"]["largest_difference"] < 0.15
    assert len(sections["profile"]["top"]) == 10

    sections["mixed"] = {"error": "stopped after 200 s"}
    text = gpu.report({"machine": {"cpu": "toy"}, "sections": sections})
    assert "| mixed, recomputed, compiled |" in text
    assert "stopped after 200 s" in text
    assert "Best MFU" in text


def test_sections_begin_with_what_matters_most_and_name_each_once():
    first = ["rate", "mixed, recomputed", "mixed, recomputed, compiled", "profile"]
    assert gpu.SECTIONS[:4] == first
    assert len(set(gpu.SECTIONS)) == len(gpu.SECTIONS) == 3 + len(gpu.TRAINING)


def test_all_gpus_train_and_one_labels(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    cfg = gpu.Config()
    assert [gpu.processes(cfg, section) for section in ("mixed", "profile")] == [8, 8]
    assert [gpu.processes(cfg, section) for section in ("rate", "labelling")] == [1, 1]
    assert gpu.processes(gpu.Config(nproc=2), "mixed") == 2


def test_two_processes_measure_a_section_together():
    cfg = gpu.Config(tiny=True, batch_size=4, tokens_per_pass=1024, device="cpu", nproc=2)
    together, _ = gpu.run_apart(cfg, "mixed, recomputed", time.monotonic() + 300, 1024)
    assert together["processes"] == 2
    alone = gpu.run_section(toy_config(), "mixed, recomputed")
    assert together["first_loss"] == pytest.approx(alone["first_loss"], abs=1e-3)


def test_out_of_memory_is_a_result(process, monkeypatch):
    def fails(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(gpu, "training", fails)
    result = gpu.run_section(gpu.Config(tiny=True, device="cpu"), "mixed")
    assert result["error"] == gpu.OUT_OF_MEMORY


def test_out_of_memory_is_tried_again_with_half_the_tokens(monkeypatch):
    tried = []

    def run_once_apart(cfg, section, limit, tokens):
        tried.append(tokens)
        result = {"tokens_per_pass": tokens}
        if tokens > 4096:
            result["error"] = gpu.OUT_OF_MEMORY
        return result, {}

    monkeypatch.setattr(gpu, "run_once_apart", run_once_apart)
    cfg = gpu.Config(tiny=True, device="cpu")
    result, _ = gpu.run_apart(cfg, "mixed", time.monotonic() + 300, 16384)
    assert tried == [16384, 8192, 4096]
    assert result == {"tokens_per_pass": 4096}


def test_a_section_runs_in_a_process_of_its_own():
    cfg = gpu.Config(tiny=True, device="cpu", minutes=5)
    result, facts = gpu.run_apart(cfg, "rate", time.monotonic() + 300, 1024)
    assert result["matmul_tflops"] > 0
    assert facts["torch"] == torch.__version__
    too_late = gpu.run_apart(cfg, "rate", time.monotonic() + 1, 1024)
    assert too_late == ({"error": "left out: 5 minutes are over"}, {})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(UserError, match="no CUDA GPU here: add --tiny to try the code on a CPU"):
        gpu.main()
