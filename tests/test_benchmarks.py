import functools
import random
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
import fault_cases
import gpu
import labelling
import mistakes
import planted_faults
import planting
import thresholds
import workload
from estimate import QWEN3_4B, Shape

from rmood import distributed
from rmood.batching import Group
from rmood.cli import complete
from rmood.diagnosis import scale
from rmood.diagnosis.faults import read_faults
from rmood.errors import UserError
from rmood.files.paths import dataset_paths
from rmood.files.provenance import check_lineage
from rmood.files.rows import read_json, write_json
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


# ---- thresholds.py -------------------------------------------------------------------------------


def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("spread", thresholds.SPREADS)
def test_drawn_margins_are_calibrated_and_know_what_theory_says(spread):
    """Of 20,000 margins: scale 1 to 5%, match and bits as by quadrature."""
    x = thresholds.calibrated_margins(rng(), 20_000, spread)
    assert scale.fit_scale(x, np.arange(len(x))).value == pytest.approx(1, abs=0.05)
    assert (x > 0).mean() == pytest.approx(thresholds.true_match(spread), abs=0.015)
    assert thresholds.known(x).value == pytest.approx(thresholds.true_bits(spread), abs=0.015)


def test_a_factor_of_1_5_costs_at_most_0_035_bits_and_one_of_2_over_0_1():
    [cost] = [row for row in thresholds.cost(rng(), 0) if row["factor"] == 1.5]
    assert max(list(cost.values())[1:]) <= 0.035
    [cost] = [row for row in thresholds.cost(rng(), 0) if row["factor"] == 2.0]
    assert cost["bits lost at most, too wide"] > 0.1


def test_the_scale_words_are_seldom_false_and_tell_a_factor_of_3():
    for n in (20, 200):
        estimates = thresholds.fitted_scales(rng(), 400, n, 2.0)
        false = thresholds.share_of_word(estimates, 1.0, "squeezed")
        false += thresholds.share_of_word(estimates, 1.0, "overconfident")
        assert false <= 0.03  # of 400
    assert thresholds.share_of_word(estimates, 3.0, "squeezed") > 0.9
    assert thresholds.share_of_word(estimates, 1 / 3, "overconfident") > 0.9


def test_an_interval_over_prompts_holds_the_truth_where_one_over_pairs_does_not():
    rows = {row["K"]: row for row in thresholds.coverage(rng(), 120, (2, 8))}
    for responses in (2, 8):
        held = [value for name, value in rows[responses].items() if name.endswith(": held")]
        assert min(held) > 0.85
    width = "match: clustered width / as if pairs were independent"
    assert rows[2][width] == pytest.approx(1, abs=0.01)
    assert rows[8][width] > 1.5


def test_a_calibrated_model_has_a_calibration_error_of_an_eighth_at_50_pairs():
    x = np.array([2.0, 2.0, 2.0, -2.0])  # in one bin: 3 of 4 right, confidence sigmoid(2) = 0.881
    assert thresholds.expected_calibration_error(x, bins=1) == pytest.approx(0.881 - 0.75, abs=1e-3)
    rows = {row["pairs"]: row for row in thresholds.calibration_error(rng(), 100)}
    assert rows[50]["mean"] == pytest.approx(0.125, abs=0.02)
    assert rows[1000]["mean"] < 0.04


def test_a_part_gives_the_same_numbers_alone(monkeypatch, tmp_path, capsys):
    path = str(tmp_path / "found.json")
    found = []
    for parts in (["few"], ["calibration", "few"]):
        words = ["thresholds.py", "--draws", "10", "--json", path, "--parts", *parts]
        monkeypatch.setattr(sys, "argv", words)
        thresholds.main()
        found.append(read_json(path)["few"])
    assert found[0] == found[1]
    assert "under 20 prompts no word is said" in capsys.readouterr().out


# ---- planted_faults.py ---------------------------------------------------------------------------

CASE = fault_cases.Case(accept=("noisy labels",), forbid=("raise the rate",))


def finding(name: str, severity: str = "error", advice: str = "look at it") -> dict:
    return {"id": name, "severity": severity, "evidence": "", "advice": advice}


@pytest.mark.parametrize(
    "findings, outcome",
    [
        ([finding("noisy_labels")], "right"),
        ([finding("squeezed_rewards", "note"), finding("noisy_labels", "warning")], "right"),
        ([finding("backbone_frozen"), finding("noisy_labels")], "wrong"),
        ([finding("noisy_labels", advice="raise the rate (--lr)")], "wrong"),
        ([finding("noisy_labels"), finding("x", "note", "a higher rate")], "wrong"),
        ([finding("low_match"), finding("noisy_labels")], "cannot tell"),
        ([finding("x", "note")], "wrong"),
        ([finding("scale_cannot_tell", "note")], "cannot tell"),
        ([], "wrong"),
    ],
)
def test_the_first_error_or_warning_and_every_advice_count(findings, outcome):
    assert planted_faults.judge(CASE, findings, {}, {})[0] == outcome


def test_a_harmless_fault_may_be_named_in_a_note():
    findings = [finding("noisy_labels", "note")]
    assert planted_faults.judge(CASE, findings, {}, {})[0] == "wrong"
    assert planted_faults.judge(replace(CASE, note=True), findings, {}, {})[0] == "right"


def test_what_cannot_be_decided_may_be_left_open_but_not_called_otherwise():
    case = replace(CASE, decidable=False)
    assert planted_faults.judge(case, [], {}, {})[0] == "cannot tell"
    assert planted_faults.judge(case, [finding("noisy_labels")], {}, {})[0] == "right"
    assert planted_faults.judge(case, [finding("backbone_frozen")], {}, {})[0] == "wrong"
    unsure = {"scale_word": "cannot tell"}  # of labels it says nothing
    assert planted_faults.judge(CASE, [], unsure, {})[0] == "wrong"
    narrow = replace(CASE, accept=("squeezed",))
    assert planted_faults.judge(narrow, [], unsure, {})[0] == "cannot tell"


def test_a_refusal_counts_where_it_names_the_fault():
    case = replace(CASE, refusal="the proxy itself")
    refused = finding("refused") | {
        "evidence": "gold.json: made by rm, the proxy itself: pass gold"
    }
    assert planted_faults.judge(case, [refused], {}, {})[0] == "right"
    assert planted_faults.judge(CASE, [refused], {}, {})[0] == "wrong"


def test_a_true_description_of_the_proxy_is_no_cause():
    little = {"match": 0.6, "scale": 1.0, "bits": 0.05, "train_bits": 0.1}
    said = [finding("under_learned")]
    assert planted_faults.judge(CASE, said, {}, little)[0] == "cannot tell"
    much = little | {"train_bits": 0.7}
    assert planted_faults.judge(CASE, said, {}, much)[0] == "wrong"
    assert planted_faults.judge(CASE, [finding("squeezed_rewards")], {}, little)[0] == "wrong"
    assert planted_faults.judge(CASE, [finding("squeezed_rewards")], {}, little | {"scale": 3.0})[
        0
    ] == ("cannot tell")


def test_a_healthy_run_may_have_notes_and_nothing_else():
    case = fault_cases.Case()
    notes = [finding("squeezed_rewards", "note")]
    assert planted_faults.judge(case, notes, {}, {}, healthy=True)[0] == "right"
    for severity in ("warning", "error"):
        accused = [finding("squeezed_rewards", severity)]
        assert planted_faults.judge(case, accused, {}, {}, healthy=True)[0] == "wrong"


@pytest.mark.parametrize(
    "text, what, advised",
    [
        ("raise the rate and train again", "raise the rate", True),
        ("increase learning rate and epochs", "raise the rate", True),
        ("raise --lr", "raise the rate", True),
        ("do not raise the rate", "raise the rate", False),
        ("better labels instead of a higher rate", "raise the rate", False),
        ("no change; raise the rate", "raise the rate", True),
        ("the rate is fine", "raise the rate", False),
        ("lower the rate", "raise the rate", False),
        ("lower the rate", "lower the rate", True),
        ("train --epochs 2 or more", "train longer", True),
    ],
)
def test_advice_is_read_with_its_negations(text, what, advised):
    assert planted_faults.is_advised(what, text) == advised


def test_the_cases_are_many():
    assert len(fault_cases.FAULTS) >= 40 and len(fault_cases.HEALTHY) >= 20
    assert len(fault_cases.REAL_FAULTS) >= 8


@pytest.mark.parametrize("world", fault_cases.LISTS)
def test_the_cases_name_what_exists(world):
    faults, healthy, trainings = fault_cases.LISTS[world]
    assert not set(faults) & set(healthy)
    for name, case in (faults | healthy).items():
        assert set(case.accept) <= set(fault_cases.NAMES), name
        assert set(case.forbid) <= set(planted_faults.ADVICE), name
        assert 50 <= case.size <= planting.DIAGNOSED, name
        assert name in faults or not (case.accept or case.forbid), name
    used = {case.proxy for case in (faults | healthy).values()}
    given = {"hard"} if world == "real" else set()  # the proxy of --model
    assert used - given == set(trainings)
    for name in fault_cases.REAL_FILES:
        assert not faults[name].sampling, name


def test_every_name_of_a_fault_is_one_of_faults_toml():
    known = {fault.id for fault in read_faults()}
    unknown = {ids for ids in fault_cases.NAMES.values() if not known & set(ids)}
    assert not unknown
    assert not planted_faults.OBSERVATIONS - known


def test_totals_count_healthy_and_undecidable_cases_apart():
    def result(outcome, healthy=False, decidable=True, severity="", why=""):
        return planted_faults.Result(
            "x", outcome, "", severity, why, healthy, decidable, [], {}, {}
        )

    results = [result("right")] * 8 + [result("wrong", why="silent: no error"), result("wrong")]
    results += [result("left out"), result("cannot tell", decidable=False)]
    results += [result("right", healthy=True)] * 3
    results += [result("wrong", healthy=True, severity="error")]
    text = planted_faults.summary(results)
    assert "10 faults: 8 right (80.0%), 2 wrong (20.0%), 0 cannot tell (0.0%) (1 of" in text
    assert "1 faults left out" in text
    assert "1 faults that cannot be decided: 0 right" in text
    assert "4 healthy runs: 1 with an error (25.0%), 1 with an error or a warning" in text


def row_of_pairs(i: int) -> dict:
    sides = {}
    for side, length in (("chosen", i % 3), ("rejected", 1)):
        answer = {"role": "assistant", "content": "word " * (1 + length)}
        sides[side] = [{"role": "system", "content": ""}, answer]
    return sides | {"chosen_reward": 2.0 + i, "rejected_reward": 1.0}


def test_a_flipped_pair_keeps_each_texts_reward():
    rows = mistakes.flip(1.0, [row_of_pairs(2)], random.Random(0), None)
    assert (rows[0]["chosen_reward"], rows[0]["rejected_reward"]) == (1.0, 4.0)
    assert rows[0]["rejected"] == row_of_pairs(2)["chosen"]
    rows = [row_of_pairs(i) for i in range(1000)]
    mistakes.flip(0.2, rows, random.Random(0), None)
    flipped = sum(row["chosen_reward"] < row["rejected_reward"] for row in rows)
    assert flipped == pytest.approx(200, abs=40)


def test_faults_of_pairs_do_what_they_say():
    rows = [row_of_pairs(i) for i in range(30)]
    for row in mistakes.longer_is_chosen(rows, random.Random(0), None):
        lengths = [len(row[side][-1]["content"]) for side in ("chosen", "rejected")]
        assert lengths[0] >= lengths[1]
    repeated = mistakes.repeated(5, rows, random.Random(0), None)
    assert len(repeated) == 30 and repeated[:6] == repeated[24:]
    changed = mistakes.other_system_message(rows, random.Random(0), None)
    assert changed[3]["chosen"][0]["content"] and changed[3]["rejected"][0]["content"]


def bench_in(tmp_path, seed: int = 0) -> planting.Bench:
    world = planting.World("toy", "toy", tmp_path, seed)
    return planting.Bench(world, {}, tmp_path / "case", random.Random(seed))


def test_faults_of_rewards_do_what_they_say(tmp_path):
    own = rng().normal(size=(40, 2))
    scored = planting.Scored(own, None, [], bench_in(tmp_path))
    shuffled = mistakes.rows_shuffled(scored)
    assert sorted(map(tuple, shuffled)) == sorted(map(tuple, own))
    assert (shuffled != own).any()
    squashed = mistakes.squashed(scored)
    assert (squashed.ravel().argsort() == own.ravel().argsort()).all()
    assert 0 < squashed.min() and squashed.max() < 1
    raised = mistakes.second_raised(scored) - own
    assert (raised[:, 0] == 0).all() and np.ptp(raised[:, 1]) < 1e-12 < raised[0, 1]
    doubled = functools.partial(mistakes.times_and_plus, 2.0, 0.0)
    two = mistakes.both(mistakes.sides_swapped, doubled, scored)
    assert (two == 2 * own[:, ::-1]).all()


def test_faults_of_gold_do_what_they_say(tmp_path):
    gold = rng().normal(size=(200, 2))
    bench = bench_in(tmp_path)
    rating = mistakes.gold_from_1_to(10, gold, None, bench)
    assert set(np.unique(rating)) == set(range(1, 11))
    margins = (gold[:, 0] - gold[:, 1]) * (rating[:, 0] - rating[:, 1])
    assert margins.min() == 0  # no pair is ordered otherwise
    clipped = mistakes.gold_clipped(gold, None, bench)
    assert (clipped == clipped.max()).mean() == pytest.approx(0.3, abs=0.01)
    tied = mistakes.gold_in_two_values(gold, None, bench)
    assert (tied[:, 0] == tied[:, 1]).mean() > 0.5
    assert 0 <= mistakes.gold_through_sigmoid(gold, None, bench).min()


@pytest.mark.parametrize("name", sorted(fault_cases.TRAININGS | fault_cases.REAL_TRAININGS))
def test_the_functions_of_train_py_that_are_replaced_exist_and_come_back(name):
    import train

    patch = (fault_cases.TRAININGS | fault_cases.REAL_TRAININGS)[name].patch
    before = dict(vars(train))
    if patch:
        with patch():
            pass
    assert dict(vars(train)) == before


def test_a_training_is_done_again_where_its_settings_differ():
    known = planting.Training("--lr 1", change=functools.partial(mistakes.flip, 0.1))
    other = replace(known, change=functools.partial(mistakes.flip, 0.2))
    assert known.fingerprint() == replace(known).fingerprint()
    assert (
        len({known.fingerprint(), other.fingerprint(), replace(known, pairs=7).fingerprint()}) == 3
    )


def test_the_files_of_a_case_belong_together(tmp_path, monkeypatch):
    """The first 5 of 8 prompts, 2 of 3 responses: with run files as their scripts write them."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    paths = dataset_paths("toy")
    write_json(paths["test_prompts"], [{"messages": [user(i)]} for i in range(8)])
    rows = [{f"response_{k}": f"{i} {k}" for k in (1, 2, 3)} for i in range(8)]
    write_json(paths["test_responses"], rows)
    ends = {"finish": ["stop length stop"] * 8, "config": {"num_responses": 3}}
    planting.write_run_beside(paths["test_responses"], ends, prompts=paths["test_prompts"])
    write_json(paths["test_rewards"], [[i, 2.0, 3.0] for i in range(8)])

    bench = bench_in(tmp_path)
    same = functools.partial(mistakes.same_twice, 1.0)
    files = planting.write_test_files(bench, 5, 2, same)
    assert read_json(str(files.gold)) == [[i, i] for i in range(5)]
    assert read_json(str(files.responses))[4] == {"response_1": "4 1", "response_2": "4 1"}
    assert len(files.conversations) == 5 and len(files.conversations[0]) == 2
    both = {"prompts": str(files.prompts), "responses": str(files.responses)}
    assert check_lineage(str(files.gold), **both)
    assert check_lineage(str(files.responses), prompts=str(files.prompts))
    run = read_json(f"{files.responses}.run.json")
    assert run["finish"] == ["stop length"] * 5
    assert run["finish_reasons"] == {"stop": 5, "length": 5}


def user(i: int) -> dict:
    return {"role": "user", "content": f"say {i}"}


def test_a_saved_model_is_tampered_with_in_a_copy(tmp_path, toy_model_folder):
    from safetensors.torch import load_file, save_file

    model = tmp_path / "rm"
    planting.copy_model(toy_model_folder, model)
    weights = load_file(model / "model.safetensors") | {"score.weight": torch.ones(1, 32)}
    save_file(weights, model / "model.safetensors")
    bench = bench_in(tmp_path)

    copy = tmp_path / "copy"
    planting.copy_model(str(model), copy)
    mistakes.head_times(0.1, bench, copy)
    changed = load_file(copy / "model.safetensors")
    assert changed.pop("score.weight") == pytest.approx(0.1 * weights["score.weight"])
    assert all(torch.equal(weights[name], tensor) for name, tensor in changed.items())

    mistakes.head_drawn_anew(bench, copy)
    drawn = load_file(copy / "model.safetensors")["score.weight"]
    assert drawn.norm().item() == pytest.approx(0.1 * 32**0.5, rel=1e-4)
    assert drawn.std() > 0

    mistakes.vocabulary_shuffled(bench, copy)
    before = read_json(str(model / "tokenizer.json"))["model"]["vocab"]
    after = read_json(str(copy / "tokenizer.json"))["model"]["vocab"]
    assert sorted(before.values()) == sorted(after.values())
    assert sum(before[word] != after[word] for word in before) > 250
    assert before["<|im_end|>"] == after["<|im_end|>"]

    planting.replace_backbone(copy, str(model))
    assert torch.equal(load_file(copy / "model.safetensors")["score.weight"], drawn)


def test_the_referee_calls_healthy_what_is_right_calibrated_and_not_memorised():
    healthy = {"match": 0.83, "scale": 1.2, "bits": 0.45, "train_bits": 0.6}
    assert planting.is_healthy(healthy)
    assert not planting.is_healthy(healthy | {"match": 0.75})
    assert not planting.is_healthy(healthy | {"train_bits": 0.95})
    narrow = healthy | {"scale": 14.0}
    assert not planting.is_healthy(narrow)
    assert planting.is_healthy(narrow, asked_for=True)
