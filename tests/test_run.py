"""Diagnosis without a command line: plain arguments in, numbers and findings out."""

import copy
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_pairs, make_prompt
from transformers import AutoModelForSequenceClassification

from rmood.diagnosis import run
from rmood.diagnosis.calibrate import write_calibrated
from rmood.diagnosis.inputs import repeated_rows
from rmood.diagnosis.trained import (
    gold_models,
    pair_numbers,
    pairs_are_new,
    recorded_loss,
    sampling_numbers_differ,
    sampling_template,
    system_numbers,
)
from rmood.errors import UserError
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import Pair, join_conversations, read_pairs
from rmood.metrics import HEALTHY
from rmood.scoring import load_scorer

GOLD = np.array([[4.0, 1.0], [6.0, 1.0], [1.0, 9.0], [2.0, 7.0]])
PROMPTS = [make_prompt(i) for i in range(4)]
RESPONSES = [[f"cat {i}", f"dog one two {i}"] for i in range(4)]


@pytest.fixture(scope="module")
def proxy(toy_model_folder, tmp_path_factory, toy_tokenizer) -> str:
    """The folder of a tiny reward model."""
    folder = str(tmp_path_factory.mktemp("models") / "toy-rm")
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(toy_model_folder, num_labels=1)
    model.save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def scorer(proxy):
    return load_scorer(proxy)


@pytest.fixture(autouse=True)
def forget_scorers():
    """No model of another test in memory, and the tests' own process group left alone."""
    run._loaded.clear()
    yield
    run._loaded.clear()


def write(path, value) -> str:
    write_json(str(path), value)
    return str(path)


# ---- diagnose ----------------------------------------------------------------------------------


def test_a_notebook_s_five_lines(proxy, tmp_path):
    rm = write(tmp_path / "rm.json", (GOLD / 20).tolist())
    gold = write(tmp_path / "gold.json", GOLD.tolist())
    code = f"""
from rmood import diagnose, load_scorer
scorer = load_scorer({proxy!r})
prompt = [{{"role": "user", "content": "name an animal"}}]
answers = [prompt + [{{"role": "assistant", "content": text}}] for text in ("cat", "dog")]
print(scorer.score([answers]))
print(diagnose({rm!r}, {gold!r}))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr
    score, _, *lines = done.stdout.splitlines()
    assert len(score.split(",")) == 2
    assert "match, a proxy tie is a miss  1.0000" in "\n".join(lines)
    assert "verdict on rm: too few prompts (note)" in lines


def test_two_rewards_files_need_neither_torch_nor_matplotlib(tmp_path):
    gold = write(tmp_path / "gold.json", GOLD.tolist())
    code = (
        "import sys, rmood\n"
        f"print(rmood.diagnose({gold!r}, {gold!r}))\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr


def test_arrays_lists_and_files_give_the_same_numbers(tmp_path):
    """A tenth of gold: in the same order, spread 0.1."""
    path = write(tmp_path / "rm.json", (GOLD / 10).tolist())
    gold_path = write(tmp_path / "gold.json", GOLD.tolist())
    given = [
        run.diagnose(GOLD / 10, GOLD),
        run.diagnose((GOLD / 10).tolist(), GOLD.tolist()),
        run.diagnose(path, gold_path),
        run.diagnose(tmp_path / "rm.json", GOLD),
    ]
    assert [diagnosis.name for diagnosis in given] == ["proxy", "proxy", "rm", "rm"]
    for diagnosis in given:
        assert diagnosis.numbers == given[0].numbers
        assert diagnosis.numbers["match"] == 1
        assert diagnosis.numbers["spread_ratio"] == pytest.approx(0.1)
        assert [finding["id"] for finding in diagnosis.findings] == ["too_few_prompts"]
        missing = {one["what"]: one["why"] for one in diagnosis.not_measured}
        assert missing.keys() >= {"train_bits", "resolution", "length_match"}
        assert diagnosis.as_json()["not_measured"] == diagnosis.not_measured
        np.testing.assert_allclose(diagnosis.rewards, GOLD / 10)
        assert diagnosis.texts is None


def test_a_diagnosis_shows_itself_as_tables_and_verdicts():
    shown = repr(run.diagnose(GOLD / 10, GOLD, name="my proxy"))
    assert shown.startswith("my proxy against gold\n")
    assert "within a prompt, std" in shown
    assert "verdict on my proxy: too few prompts (note)" in shown
    assert "scale, 1 is calibrated" in shown
    assert "not measured, so not judged:" in shown
    assert shown == str(run.diagnose(GOLD / 10, GOLD, name="my proxy"))


def test_a_model_is_scored_and_probed_and_brings_its_log(proxy, scorer, tmp_path):
    """Gold is the model's own opinion, so it agrees with itself, and nothing is wrong."""
    gold = np.array(scorer.score(join_conversations(PROMPTS, RESPONSES)))
    lines = [{"step": step, "epoch": 1, "loss": 0.2, "accuracy": 0.97} for step in range(1, 5)]
    write_jsonl(f"{proxy}/metrics.jsonl", lines)
    files = (
        write(tmp_path / "prompts.json", [{"messages": prompt} for prompt in PROMPTS]),
        write(
            tmp_path / "responses.json", [dict(response_1=a, response_2=b) for a, b in RESPONSES]
        ),
    )
    for model, texts in ((proxy, files), (scorer, (PROMPTS, RESPONSES))):
        diagnosis = run.diagnose(model, gold, texts, dtype="float32")
        assert diagnosis.name == "toy-rm"
        assert diagnosis.numbers["match"] == 1
        assert diagnosis.numbers["spread_ratio"] == pytest.approx(1, abs=1e-4)
        assert diagnosis.numbers["last_accuracy"] == pytest.approx(0.97)
        assert diagnosis.numbers["batch_dependence"] < 1e-3
        assert diagnosis.numbers["score_noise"] > 0
        assert diagnosis.numbers["scored_in"] == "float32"
        assert "resolution" in diagnosis.numbers
        missing = {one["what"]: one["why"] for one in diagnosis.not_measured}
        assert "no run.json" in missing["train_bits"]
        assert diagnosis.metrics == lines
        assert diagnosis.texts == (PROMPTS, RESPONSES)
    without = run.diagnose(scorer, gold, (PROMPTS, RESPONSES), probes=False)
    assert "batch_dependence" not in without.numbers


def test_the_most_wrong_pairs_of_a_model_come_with_their_tokens(scorer):
    """Gold against the model's own opinion: every pair is wrong, and shown token by token."""
    rewards = np.array(scorer.score(join_conversations(PROMPTS, RESPONSES)))
    diagnosis = run.diagnose(scorer, -rewards, (PROMPTS, RESPONSES))
    assert diagnosis.tokens.keys() == {(row, side) for row in range(4) for side in range(2)}
    text, reward = diagnosis.tokens[0, 0][-1]
    assert reward == pytest.approx(rewards[0, 0], abs=1e-5)


def test_texts_in_a_rewards_file_are_used(scorer, tmp_path):
    """The record form of gold: messages, responses and rewards in one."""
    rows = []
    for prompt, responses, rewards in zip(PROMPTS, RESPONSES, GOLD.tolist()):
        row = {"messages": prompt}
        for i in (0, 1):
            row |= {f"response_{i + 1}": responses[i], f"reward_{i + 1}": rewards[i]}
        rows.append(row)
    diagnosis = run.diagnose(scorer, write(tmp_path / "gold.json", rows), probes=False)
    assert diagnosis.texts == (PROMPTS, RESPONSES)
    np.testing.assert_allclose(diagnosis.gold, GOLD)


def test_training_pairs_can_be_named(proxy, scorer, tmp_path):
    """The model's folder names none; given, they are read in other ways and compared with gold."""
    rows = make_pairs(20)
    for row in rows[:5]:
        row["chosen_reward"], row["rejected_reward"] = -1.0, 1.0
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, rows)
    unnamed = run.diagnose(scorer, GOLD, (PROMPTS, RESPONSES))
    named = run.diagnose(scorer, GOLD, (PROMPTS, RESPONSES), pairs=path)
    assert "label_noise" not in unnamed.numbers
    assert named.numbers["label_noise"] == 0.25
    assert named.numbers["duplicate_share"] == 1  # the same four prompts
    assert "read_accuracy" in named.numbers
    assert named.numbers["train_prompts"] == 20
    assert named.numbers["train_right_low"] < named.numbers["train_right"]
    assert named.numbers["learning_word"] == "cannot tell"
    assert named.numbers["unknown_system_share"] == 0
    assert {one["what"] for one in named.not_measured} >= {"backbone_moved", "recorded_gap"}
    quick = run.diagnose(scorer, GOLD, (PROMPTS, RESPONSES), pairs=path, probes="quick")
    assert "plain_accuracy" not in quick.numbers
    assert quick.numbers["train_bits"] == named.numbers["train_bits"]
    with pytest.raises(UserError, match="probes 'some': use one of quick, full, no"):
        run.diagnose(scorer, GOLD, (PROMPTS, RESPONSES), probes="some")


def test_a_model_that_is_not_what_its_run_recorded_is_found(proxy, tmp_path):
    """run.json names the training pairs that were scored at the end, and their loss. As saved it is
    reproduced; with another head, three times as large, the same pairs have another loss."""
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, make_pairs(60))
    folder = tmp_path / "rm"
    shutil.copytree(proxy, folder)
    numbers = run.quality(str(folder), path, num_samples=0)
    run_file = {
        "config": {"data_path": path, "max_length": 99, "epochs": 2, "lr": 1e-3},
        "train_sample": list(range(60)),
        "results": {"epoch 1": {}, "epoch 2": {"train": {"loss": numbers["train_loss"]}}},
    }
    write(folder / "run.json", run_file)
    same = run.diagnose(str(folder), GOLD, (PROMPTS, RESPONSES)).numbers
    assert same["recorded_gap"] < 1
    assert (same["run_lr"], same["run_epochs"], same["trained_here"]) == (1e-3, 2, 1)
    run._loaded.clear()
    write_calibrated(str(folder), str(tmp_path / "once"), 3.0, {"applied": 3.0}, False)
    write_calibrated(str(tmp_path / "once"), str(tmp_path / "twice"), 2.0, {"applied": 2.0}, False)
    for calibrated in ("once", "twice"):  # evaluate.py calibrate says what it multiplied
        numbers = run.diagnose(str(tmp_path / calibrated), GOLD, (PROMPTS, RESPONSES)).numbers
        assert numbers["recorded_gap"] < 1
        run._loaded.clear()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    model.score.weight.data *= 3
    model.save_pretrained(folder)
    diagnosis = run.diagnose(str(folder), GOLD, (PROMPTS, RESPONSES))
    assert diagnosis.numbers["recorded_gap"] > 2
    assert "model_not_as_trained" in [finding["id"] for finding in diagnosis.findings]


def test_a_rewards_file_s_own_model_is_asked_and_its_run_is_read(proxy, tmp_path):
    """The file's run file names the model; its rewards in another order are found and stated."""
    many = [make_prompt(i) for i in range(24)]
    texts = [[f"cat {i}", f"dog one two {i}"] for i in range(24)]
    scorer = run.loaded_scorer(proxy)
    own = np.array(scorer.score(join_conversations(many, texts)))
    path = write(tmp_path / "rewards.json", np.roll(own, -5, axis=0).tolist())
    write(tmp_path / "rewards.json.run.json", {"config": {"model_name": proxy}, "inputs": {}})
    gold = np.random.default_rng(0).normal(size=(24, 2))
    diagnosis = run.diagnose(path, gold, (many, texts))
    assert diagnosis.findings[0]["id"] == "rewards_shuffled"
    assert "row 0 holds the rewards of row 5" in diagnosis.findings[0]["evidence"]
    assert diagnosis.numbers["model"] == "toy-rm"


@pytest.mark.parametrize(
    "proxy_rewards, gold, message",
    [
        (GOLD[:3], GOLD, "proxy: 3 rows, but 4 in gold: pass the matching file"),
        (GOLD[:, :1], GOLD, "proxy: 1 entries per row, but 2 in gold"),
        (GOLD, GOLD[:, :1], "gold: one reward per prompt makes no pair"),
        (GOLD[:, 0], GOLD, "proxy: expected finite rewards"),
        (GOLD * np.nan, GOLD, "proxy: expected finite rewards"),
        (GOLD, np.ones((4, 2)), "gold gives both responses the same reward in all 4 pairs"),
        ("nowhere.json", GOLD, "nowhere.json: no such file"),
    ],
)
def test_what_cannot_be_compared_is_refused(proxy_rewards, gold, message):
    with pytest.raises(UserError, match=message):
        run.diagnose(proxy_rewards, gold)


def test_a_model_without_texts_is_refused_before_it_is_loaded():
    with pytest.raises(UserError, match="no texts for the model to score"):
        run.diagnose("models/nowhere", GOLD)


def test_texts_that_are_not_gold_s_are_refused():
    with pytest.raises(UserError, match="responses: 3 rows for 4 prompts"):
        run.diagnose(GOLD, GOLD, (PROMPTS, RESPONSES[:3]))
    with pytest.raises(UserError, match="gold: 4 rows, but 3 in responses"):
        run.diagnose(GOLD, GOLD, (PROMPTS[:3], RESPONSES[:3]))


def test_every_rewards_file_is_checked_before_a_model_is_scored(scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "score", lambda *args: pytest.fail("scored before all was checked"))
    bad = write(tmp_path / "bad.json", [[1, 2]])
    with pytest.raises(UserError, match="bad.json: 1 rows"):
        run.diagnose_all([bad], [scorer], GOLD, (PROMPTS, RESPONSES))
    with pytest.raises(UserError, match="nowhere: no such file"):
        run.diagnose_all(["nowhere"], [scorer], GOLD, (PROMPTS, RESPONSES))


def test_several_proxies_are_written_into_one_report(tmp_path):
    found = run.diagnose_all([GOLD / 10, GOLD], [], GOLD)
    path = tmp_path / "report.html"
    run.write_report(str(path), found, "mine", ["a fact"])
    html = path.read_text(encoding="utf-8")
    assert "mine: proxy 1, proxy 2" in html
    assert "a fact" in html


# ---- quality and best of n ---------------------------------------------------------------------


def test_quality_is_what_its_margins_say(scorer, tmp_path):
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, make_pairs(24))
    pairs = read_pairs(path)
    rewards = np.array(scorer.score([[pair.chosen, pair.rejected] for pair in pairs]))
    margin = rewards[:, 0] - rewards[:, 1]
    numbers = run.quality(scorer, pairs, num_samples=0)
    assert numbers["pairs"] == 24
    assert numbers["train_accuracy"] == pytest.approx((margin > 0).mean())
    assert numbers["train_loss"] == pytest.approx(np.log1p(np.exp(-margin)).mean(), rel=1e-5)
    assert numbers["margin_mean"] == pytest.approx(margin.mean(), rel=1e-5)
    assert numbers["reward_min"] == pytest.approx(rewards.min())
    gold = np.array([pair.chosen_reward - pair.rejected_reward for pair in pairs])
    expected = np.sqrt((margin**2).mean() / (gold**2).mean())
    assert numbers["spread_ratio"] == pytest.approx(expected, rel=1e-5)
    assert numbers["train_bits_low"] <= numbers["train_bits"] <= numbers["train_bits_high"]
    assert numbers["train_scale_word"] in ("squeezed", "overconfident", "calibrated", "cannot tell")
    assert [one["what"] for one in numbers["not_measured"]] == ["bits", "learning_word"]
    assert run.quality(scorer, path, num_samples=0) == numbers
    assert run.quality(scorer, path, num_samples=6)["pairs"] == 6


def test_quality_without_gold_s_rewards_has_no_spread_to_compare(scorer, tmp_path):
    rows = [row | {"chosen_reward": None} for row in make_pairs(4)]
    path = str(tmp_path / "pairs.jsonl")
    write_jsonl(path, rows)
    assert "spread_ratio" not in run.quality(scorer, path)


def test_grades_begin_at_the_healthy_range_s_bounds():
    accuracy = HEALTHY["accuracy"]
    bounds = [accuracy.low, accuracy.short, accuracy.poor, accuracy.failed]
    at = [run.grade(bound) for bound in bounds]
    below = [run.grade(bound - 1e-6) for bound in bounds]
    assert at[0] == "good: above 95%"
    assert (
        at[1:]
        == below[:-1]
        == [
            "good, though below the 95% that the reference expects",
            "short of the 90% that the reference expects",
            "under 80%: by the reference, the model is not learning",
        ]
    )
    assert below[-1] == "under 70%: by the reference, training failed"


def test_the_same_seed_draws_the_same_sample():
    pairs = list(range(10))
    drawn = run.draw(pairs, 4, seed=0)
    assert len(set(drawn)) == 4
    assert drawn == run.draw(pairs, 4, seed=0) != run.draw(pairs, 4, seed=1)
    assert run.draw(pairs, 0, seed=0) == pairs == run.draw(pairs, 11, seed=0)


def test_best_of_n_takes_arrays_and_files(tmp_path):
    """Of two responses gold's own pick is worth the mean of the larger: 26 / 4."""
    gold_path = write(tmp_path / "gold.json", GOLD.tolist())
    for proxy, gold in ((GOLD, GOLD), (gold_path, gold_path)):
        curve = run.best_of_n(proxy, gold)
        assert [row["n"] for row in curve] == [1, 2]
        assert curve[1]["gold"] == curve[1]["gold_own"] == pytest.approx(26 / 4)
    with pytest.raises(UserError, match="one reward per prompt"):
        run.best_of_n(GOLD[:, :1], GOLD[:, :1])


# ---- the scorer in memory ----------------------------------------------------------------------


def test_one_model_is_in_memory_and_loaded_once(proxy, monkeypatch):
    first = run.loaded_scorer(proxy, device="cpu")
    assert run.loaded_scorer(proxy, device="cpu") is first
    other = run.loaded_scorer(proxy, device="cpu", max_length=64)
    assert other is not first
    assert other.max_length == 64
    assert list(run._loaded.values()) == [other]


def test_releasing_the_scorer_leaves_the_process_group(proxy, monkeypatch):
    left = []
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: left.append(True))
    run.loaded_scorer(proxy, device="cpu")
    run.release_scorer()
    assert left == [True]
    run.release_scorer()  # nothing is loaded: nothing to leave
    assert left == [True]


def test_a_reward_that_is_not_finite_is_refused_with_its_row(scorer, monkeypatch):
    rewards = GOLD.copy()
    rewards[2, 1] = np.inf
    monkeypatch.setattr(type(scorer), "score", lambda *args, **options: rewards.tolist())
    with pytest.raises(UserError, match="the reward of row 2 is not finite: try --dtype float32"):
        run.score(scorer, join_conversations(PROMPTS, RESPONSES))


def test_the_run_file_of_the_responses_is_read_for_every_proxy(tmp_path):
    """Also where several proxies share one reading of the texts."""
    rows = [{"messages": prompt} for prompt in PROMPTS]
    prompts = write(tmp_path / "prompts.json", rows)
    texts = [{"response_1": one, "response_2": other} for one, other in RESPONSES]
    responses = write(tmp_path / "sft.json", texts)
    sampled = {"command": ["/somewhere/sample.py"], "config": {}, "truncated_share": 0.25}
    write(tmp_path / "sft.json.run.json", sampled)
    gold = write(tmp_path / "gold.json", GOLD.tolist())
    proxies = [write(tmp_path / f"{name}.json", (GOLD / 2).tolist()) for name in "ab"]
    for found in run.diagnose_all(proxies, [], gold, (prompts, responses)):
        assert found.numbers["test_truncated_share"] == 0.25
        assert found.numbers["sampled_here"] == 1.0
        assert "truncated_responses" in [finding["id"] for finding in found.findings]
    [found] = run.diagnose_all(proxies[:1], [], gold, (PROMPTS, RESPONSES))
    assert "sampled_here" not in found.numbers


def test_no_system_turn_and_an_empty_one_are_alike_where_the_model_reads_the_same(toy_tokenizer):
    """The toy world's template writes an empty system turn; one that skips it makes them alike."""
    question = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with_empty = [{"role": "system", "content": ""}, *question]
    pairs = [Pair(chosen=with_empty, rejected=with_empty)]
    found = system_numbers(pairs, [[question]], toy_tokenizer)
    assert found["unknown_system_share"] == 1.0
    assert found["system_words"] == "no system turn; training pairs: an empty one"
    skipping = copy.deepcopy(toy_tokenizer)
    skipping.chat_template = "{% for m in messages if m.content %}{{ m.content }}|{% endfor %}"
    alike = system_numbers(pairs, [[question]], skipping)
    assert alike == {"unknown_system_share": 0.0}


def test_test_responses_that_were_sampled_by_another_template_are_found():
    trained = {"config": {"model_name": "models/sft"}}
    of_training = trained | {"rendered_sha256": "a" * 64}
    of_test = trained | {"rendered_sha256": "b" * 64}
    stages = {"scoring": {"rendered_sha256": "a" * 64}}
    same = sampling_template([of_training, of_training], trained, stages)
    assert same == {"sampling_template_differs": 0.0}
    other = sampling_template([of_training, of_test], trained, stages)
    assert other["sampling_template_differs"] == 1.0
    assert "sampling bbbbbbbb, scoring aaaaaaaa" in other["template_words"]
    moved = of_test | {"config": {"model_name": "/elsewhere/models/sft"}}
    assert sampling_template([moved], trained, stages)["sampling_template_differs"] == 1.0
    # another model's responses have its own template, rightly; and {} is no run file
    of_another = {"config": {"model_name": "models/other"}, "rendered_sha256": "c" * 64}
    assert sampling_template([of_another, {}], trained, stages) == {}


def test_another_sampling_model_or_setting_is_found_by_the_run_files():
    """As paths of one folder or another; a file that sample.py did not write says nothing."""
    train = {"config": {"model_name": "/a/models/sft", "temperature": 1.0, "max_tokens": 256}}
    same = {"config": train["config"] | {"model_name": "models/sft"}}
    assert sampling_numbers_differ(train, same) == {"sampling_differs": 0.0, "sampling_words": ""}
    colder = {"config": train["config"] | {"temperature": 0.2}}
    found = sampling_numbers_differ(train, colder)
    assert found["sampling_differs"] == 1.0
    assert found["sampling_words"] == "--temperature 1.0 for training, 0.2 for the test"
    assert sampling_numbers_differ(train, {}) == {}


def test_two_gold_models_are_found_by_the_run_files():
    one, other = ({"config": {"model_name": f"models/{name}"}} for name in ("a", "b"))
    assert gold_models(one, one) == {"gold_differs": 0.0}
    assert gold_models(one, other)["gold_words"] == "training rewards by a, test rewards by b"
    assert gold_models(one, {}) == {}


def test_pairs_are_new_in_epoch_1_where_each_prompt_comes_in_one_step():
    def pair(i: int, **more) -> Pair:
        side = [{"role": "user", "content": f"prompt {i}"}, {"role": "assistant", "content": "a"}]
        return Pair(chosen=side, rejected=side, **more)

    run = {"config": {}}
    once = [pair(i) for i in range(100)]
    assert pairs_are_new(once, {}, run) == 1.0
    assert pairs_are_new(once * 2, {}, run) == 0.0  # a pair that was seen is not held out
    groups = [pair(i // 6, group=i // 6) for i in range(60)]  # all six pairs of a prompt at once
    assert pairs_are_new(groups, {}, run) == 1.0
    assert pairs_are_new(once, {"config": {"min_margin": 2.0}}, run) == 0.0  # easier ones
    assert pairs_are_new(once, {}, {"config": {"mix": ["other.jsonl"]}}) == 0.0


def test_rows_that_repeat_an_earlier_one_are_counted():
    """Prompt and responses: of one prompt with other responses each row is evidence of its own."""
    assert repeated_rows((PROMPTS, RESPONSES)) == {"repeated_rows": 0.0}
    assert repeated_rows((PROMPTS * 4, RESPONSES * 4)) == {"repeated_rows": 0.75}
    assert repeated_rows((PROMPTS[:1] * 4, RESPONSES)) == {"repeated_rows": 0.0}
    assert repeated_rows(None) == {}


def test_another_way_to_read_must_bring_the_recorded_loss_nearer():
    """Recorded 0.2. As read 0.69; by the other way 0.3, or 0.6, which explains less than half."""
    record = {"config": {}, "step": 1, "pairs": 1, "results": {"epoch 1": {"train": {"loss": 0.2}}}}

    def pairs_of_loss(loss: float) -> np.ndarray:
        return np.array([[-np.log(np.expm1(loss)), 0.0]] * 30)

    for other, fits in ((0.3, 1.0), (0.6, 0.0)):
        found = recorded_loss(pairs_of_loss(0.69), pairs_of_loss(other), record, 0.1)
        assert found["other_way_fits"] == fits
        # by hand: 0.49 over 0.1 times sigmoid(-m) = 1 - exp(-0.69)
        assert found["recorded_gap"] == pytest.approx(0.49 / (0.1 * (1 - np.exp(-0.69))))
    assert recorded_loss(pairs_of_loss(0.69), pairs_of_loss(0.3), {"config": {}}, 0.1) == {}


def test_rounding_cannot_move_a_mean_loss_by_more_than_its_bound():
    """Noise of one sign on every margin is the worst of its size."""
    rng = np.random.default_rng(0)
    record = {"config": {}, "step": 1, "pairs": 1, "results": {"epoch 1": {"train": {"loss": 0.0}}}}
    for spread in (0.5, 2.0, 5.0):
        margins = rng.normal(size=500) * spread + spread
        recorded = np.logaddexp(0, -margins).mean()
        record["results"]["epoch 1"]["train"]["loss"] = recorded
        for noise in (rng.normal(size=500), np.ones(500), 2 * (margins < 0)):
            noise = 0.01 * noise / np.sqrt(np.square(noise).mean())
            read = np.stack([margins + noise, np.zeros(500)], axis=1)
            assert recorded_loss(read, read, record, 0.01)["recorded_gap"] < 1.05


def test_files_behind_the_pairs_that_are_others_by_now_say_nothing(tmp_path, toy_tokenizer):
    """A prompts file of another length, or one response a prompt: no row is compared with them."""
    prompts = [make_prompt(i) for i in range(4)]
    sides = [[*prompts[i], {"role": "assistant", "content": text}] for i in (3,) for text in "ab"]
    pairs = [Pair(*sides, index=3)]
    files = {"prompts": str(tmp_path / "prompts.json"), "responses": str(tmp_path / "texts.json")}
    write_json(files["responses"], [{"response_1": "a", "response_2": "b"}] * 4)

    def numbers() -> dict:
        return pair_numbers(pairs, files, {"config": {}}, [sides], toy_tokenizer)[0]

    write_json(files["prompts"], [{"messages": prompt} for prompt in prompts])
    assert numbers()["foreign_share"] == 0.0
    write_json(files["prompts"], [{"messages": prompt} for prompt in prompts[:3]])
    assert numbers()["foreign_share"] == 0.0  # by the responses alone
    write_json(files["responses"], [{"response_1": "a"}] * 4)
    assert "foreign_share" not in numbers()
    assert "train_twin_share" not in numbers()


def test_cut_responses_of_a_group_are_counted_once(toy_tokenizer):
    """Three of six responses end at 4 characters; each is in two of its prompt's three pairs."""
    pairs = []
    for i, texts in enumerate((["aaaa", "bbbb", "c"], ["dddd", "e", "f"])):
        sides = [[*make_prompt(i), {"role": "assistant", "content": text}] for text in texts]
        pairs += [Pair(sides[a], sides[b], group=i) for a, b in ((0, 1), (0, 2), (1, 2))]
    conversations = [[pairs[0].chosen, pairs[0].rejected]]
    found, _ = pair_numbers(pairs, {}, {"config": {}}, conversations, toy_tokenizer)
    assert found["train_longest_share"] == 0.5
