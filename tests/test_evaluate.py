"""evaluate.py as its user meets it: tables, JSON, exit statuses, error messages for bad input."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import DATA, REPOSITORY, make_prompt, needs_data
from transformers import AutoConfig, Qwen3ForSequenceClassification

import evaluate
from rmood.diagnosis.text import estimate
from rmood.errors import UserError
from rmood.files.paths import dataset_paths
from rmood.files.provenance import write_run_file
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_rewards

REAL = DATA / "alpacafarm"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A dataset folder of its own; the other tests' process group outlives this command."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return tmp_path


def main(command: str) -> int:
    return evaluate.main(command.split())


def run(capsys, command: str) -> tuple[int, str, dict]:
    """Exit status, stdout, and what --json wrote."""
    path = f"{dataset_paths('toy')['home']}/out.json"
    status = main(f"{command} --json {path}")
    with open(path, encoding="utf-8") as file:
        return status, capsys.readouterr().out, json.load(file)


def write(path, value) -> str:
    write_json(str(path), value)
    return str(path)


def read_lines(path) -> list[dict]:
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file if line.strip()]


def ids(findings: list[dict]) -> list[str]:
    return [finding["id"] for finding in findings]


@pytest.fixture
def finished(home) -> str:
    """Flags: rewards of a proxy and of gold, three prompts; right, wrong, tied."""
    proxy = write(home / "proxy.json", [[2, 1], [1, 2], [0.5, 0.5]])
    gold = write(home / "gold.json", [[4, 1], [6, 1], [1, 9]])
    return f"--rewards-path {proxy} --gold-path {gold}"


# ---- match -------------------------------------------------------------------------------------


@needs_data
def test_match_on_the_reference_s_own_files(capsys):
    proxy = REAL / "test_reward_rm.json"
    gold = REAL / "test_reward_gold.json"
    status, out, numbers = run(capsys, f"match --rewards-path {proxy} --gold-path {gold}")
    assert status == 0
    assert [numbers[key] for key in ("pairs", "gold_ties", "compared")] == [1000, 46, 954]
    assert round(numbers["match"], 4) == 0.7243
    assert round(numbers["match_ties_half"], 4) == 0.7301
    assert round(numbers["spread_ratio"], 3) == 0.180
    assert round(numbers["std_ratio"], 3) == 0.175
    assert ids(numbers["findings"]) == ["compressed_rewards"]
    assert set(numbers["findings"][0]) == {"id", "severity", "evidence", "causes", "advice"}
    for shown in ("1,000", "46", "954", "0.7243", "0.7301", "0.180", "0.175", "compressed rewards"):
        assert shown in out


def test_json_holds_the_numbers_of_the_table(finished, capsys):
    """Match 1/3, with the tie as half 1.5/3; margins 1, -1, 0 against 3, 5, -8."""
    status, out, numbers = run(capsys, f"match {finished}")
    assert status == 0
    assert numbers["match"] == 1 / 3
    assert numbers["match_ties_half"] == 0.5
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    for label, key in (
        ("pairs", "pairs"),
        ("gold ties, not compared", "gold_ties"),
        ("compared", "compared"),
    ):
        assert lines[label].split()[-1] == str(numbers[key])
    miss = lines["match, a proxy tie is a miss"]
    assert f"{numbers['match']:.4f}" in miss
    assert f"{numbers['match_low']:.4f} to {numbers['match_high']:.4f}" in miss
    assert f"{numbers['match_ties_half']:.4f}" in lines["match, a proxy tie is half"]
    for label, name, ratio in (
        ("within a prompt, std", "std_within", "spread_ratio"),
        ("all rewards, std", "std", "std_ratio"),
        ("means across prompts, std", "std_across", "std_across_ratio"),
    ):
        proxy, gold = numbers[f"proxy_{name}"], numbers[f"gold_{name}"]
        shown = [f"{proxy:.2f}", f"{gold:.2f}", f"{numbers[ratio]:.3f}"]
        assert lines[label].split()[-3:] == shown
    assert numbers["proxy_std_within"] == pytest.approx((2 / 3 / 2) ** 0.5)
    assert numbers["gold_std_within"] == pytest.approx((98 / 3 / 2) ** 0.5)
    assert numbers["findings"]
    assert all(fault.replace("_", " ") in out for fault in ids(numbers["findings"]))


def test_min_match_turns_a_low_match_into_status_1(finished, capsys):
    assert run(capsys, f"match {finished} --min-match 0.3")[0] == 0
    status, out, _ = run(capsys, f"match {finished} --min-match 0.5")
    assert status == 1
    assert "0.3333 is below --min-match 0.5" in out


def test_four_responses_a_prompt_make_six_pairs(home, capsys):
    gold = write(home / "gold.json", [[1, 2, 3, 4], [4, 3, 2, 2]])
    proxy = write(home / "proxy.json", [[1, 2, 3, 4], [1, 2, 3, 4]])
    _, _, numbers = run(capsys, f"match --rewards-path {proxy} --gold-path {gold}")
    assert (numbers["pairs"], numbers["gold_ties"], numbers["match"]) == (12, 1, 6 / 11)


@pytest.mark.parametrize(
    "rewards, message",
    [
        ([[1, 2], [1, 2]], r"proxy.json: 2 rows, but 3 in .*gold.json"),
        ([[1, 2, 3]] * 3, r"proxy.json: 3 entries per row, but 2 in"),
        ([[1, 2], [1, None], [1, 2]], r"proxy.json: row 1 has the reward None"),
        ([[1], [1], [1]], r"proxy.json: 1 entries per row, but 2"),
    ],
)
def test_rewards_that_do_not_belong_to_gold_are_refused(finished, home, rewards, message):
    write(home / "proxy.json", rewards)
    with pytest.raises(UserError, match=message) as caught:
        main(f"match {finished}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("command", ["match", "scale", "bench --bench-path x.json"])
def test_finished_rewards_and_a_model_are_not_both_taken(home, command):
    with pytest.raises(UserError, match="--rewards-path and --model-name: give one"):
        main(f"{command} --rewards-path proxy.json --model-name models/other")


def test_a_nan_in_gold_is_refused_with_its_row(finished, home):
    (home / "gold.json").write_text("[[1, 2], [1, 2], [NaN, 2]]")
    with pytest.raises(UserError, match="row 2 has the reward nan"):
        main(f"match {finished}")


def test_rewards_of_other_texts_are_refused(finished, home):
    """Both files hold their texts, as the reference's test files do, and those of row 1 differ."""
    rows = [
        {
            "messages": make_prompt(i),
            "response_1": "a",
            "reward_1": 1.0,
            "response_2": "b",
            "reward_2": 2.0,
        }
        for i in range(3)
    ]
    write(home / "gold.json", rows)
    rows[1]["response_2"] = "c"
    write(home / "proxy.json", rows)
    with pytest.raises(UserError, match="row 1 holds another text"):
        main(f"match {finished}")


def test_rewards_scored_from_other_responses_are_refused(finished, home):
    for name, text in (("proxy", "one"), ("gold", "another")):
        source = write(home / f"{name}_responses.json", [text])
        made_by = evaluate.Match(model_name=f"someone/{name}")
        write_run_file(str(home / f"{name}.json"), made_by, {"responses": source})
    with pytest.raises(UserError, match="scored from other responses"):
        main(f"match {finished}")


# ---- with a model ------------------------------------------------------------------------------


@pytest.fixture
def dataset(home, toy_model_folder, toy_tokenizer) -> dict:
    """A whole dataset "toy" under home, and models/toy-rm.

    Gold's rewards are those of that model, by transformers alone: it agrees with itself.
    """
    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(toy_model_folder, num_labels=1, problem_type="regression")
    model = Qwen3ForSequenceClassification(config).eval()
    model.score.weight.data *= 5
    folder = home / "models" / "toy-rm"
    model.save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    lines = [
        {"step": step, "epoch": 1, "loss": 0.7 / step, "accuracy": 0.96} for step in range(1, 6)
    ]
    write_jsonl(str(folder / "metrics.jsonl"), lines)

    prompts = [make_prompt(i) for i in range(12)]
    responses = [{"response_1": f"cat {i}", "response_2": f"dog one two {i}"} for i in range(12)]
    rewards = []
    pairs = []
    for index, (prompt, row) in enumerate(zip(prompts, responses)):
        sides = [[*prompt, {"role": "assistant", "content": text}] for text in row.values()]
        of_row = [reward_by_transformers(model, toy_tokenizer, side) for side in sides]
        chosen = 0 if of_row[0] > of_row[1] else 1
        pair = {
            "chosen": sides[chosen],
            "rejected": sides[1 - chosen],
            "index": index,
            "chosen_reward": max(of_row),
            "rejected_reward": min(of_row),
        }
        rewards.append(of_row)
        pairs.append(pair)
    for split in ("train", "test"):
        paths = dataset_paths("toy", split)
        write(paths["prompts"], [{"messages": prompt} for prompt in prompts])
        write(paths["responses"], responses)
        write(paths["rewards"], rewards)
        write_jsonl(paths["pairs"], pairs)
    return dataset_paths("toy")


@torch.no_grad()
def reward_by_transformers(model, tokenizer, conversation) -> float:
    text = tokenizer.apply_chat_template(conversation, tokenize=False)
    input_ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    return model.score(model.model(input_ids).last_hidden_state[0, -1]).item()


def test_a_model_scored_here_matches_its_own_rewards(dataset, capsys):
    status, _, numbers = run(capsys, "match --dataset toy --device cpu")
    assert status == 0
    assert numbers["match"] == 1
    assert numbers["spread_ratio"] == pytest.approx(1, abs=1e-4)
    assert numbers["name"] == "toy-rm"
    assert numbers["last_accuracy"] == pytest.approx(0.96)
    assert "train_accuracy" not in numbers  # which only `quality` measures
    assert ids(numbers["findings"]) == ["too_few_prompts"]
    assert "train_bits" in [missing["what"] for missing in numbers["not_measured"]]


@needs_data
def test_scale_answers_the_reference_s_question_from_its_two_files(capsys):
    """Calibrated, and two files cannot tell what it knows of its training pairs."""
    files = f"--rewards-path {REAL}/test_reward_rm.json --gold-path {REAL}/test_reward_gold.json"
    status, out, numbers = run(capsys, f"scale {files}")
    assert status == 0
    assert numbers["scale_word"] == "calibrated" and round(numbers["scale"], 2) == 0.98
    assert round(numbers["bits"], 2) == 0.27 and "train_bits" not in numbers
    assert "learning_word" in [missing["what"] for missing in numbers["not_measured"]]
    for words in ("calibrated: scale 0.98", "look alike", "gold's unit is arbitrary"):
        assert words in " ".join(out.split())


def test_scale_reads_finished_rewards_of_the_training_responses(home, capsys):
    """59 of 60 training pairs right by 3, of 60 held-out ones 33: it does not carry over."""
    gold = write(home / "gold.json", [[1, 0]] * 60)
    test = write(home / "test.json", [[3, 0]] * 33 + [[0, 3]] * 27)
    train = write(home / "train.json", [[3, 0]] * 59 + [[0, 3]])
    files = f"--rewards-path {test} --gold-path {gold}"
    _, out, numbers = run(
        capsys, f"scale {files} --train-rewards-path {train} --train-gold-path {gold}"
    )
    assert numbers["learning_word"] == "memorised" and "memorised" in out
    assert numbers["train_bits"] > 0.8 > 0.2 > numbers["bits"]


def test_calibrate_writes_a_model_whose_rewards_are_the_factor_times_the_old_ones(
    dataset, home, capsys
):
    """Gold of 9 of 12 pairs is turned round: margins are then too wide for 3 right of 12."""
    paths = dataset_paths("toy", "test")
    gold = [list(row) for row in read_rewards(paths["rewards"])]
    turned = [row[::-1] if i % 3 == 0 else row for i, row in enumerate(gold)]
    write(paths["rewards"], turned)
    command = "calibrate --dataset toy --device cpu"
    status, out, numbers = run(capsys, command)
    assert status == 0 and 0 < numbers["factor"]["value"] < 1
    applied = f"{command} --factor 0.25 --output-dir {home / 'models' / 'narrow'}"
    status, out, numbers = run(capsys, applied)
    assert status == 0 and numbers["applied"] == 0.25 and "narrow: written" in out
    with pytest.raises(UserError, match="narrow: exists: pass --overwrite"):
        main(applied)
    before = run(capsys, "match --dataset toy --device cpu")[2]
    after = run(capsys, f"match --dataset toy --device cpu --model-name {home}/models/narrow")[2]
    assert after["match"] == before["match"]
    for name in ("proxy_min", "proxy_max", "proxy_std_within"):
        assert after[name] == pytest.approx(0.25 * before[name], rel=1e-5)


def test_quality_on_pairs_the_model_agrees_with(dataset, capsys):
    """Every margin is above 0 by construction, and its spread is that of its own rewards."""
    command = "quality --dataset toy --num-samples 8 --model-path rm --device cpu"
    status, out, numbers = run(capsys, command)
    assert status == 0
    assert numbers["pairs"] == 8
    assert numbers["train_accuracy"] == 1
    assert numbers["train_accuracy_low"] < 1 == numbers["train_accuracy_high"]
    assert numbers["spread_ratio"] == pytest.approx(1, abs=1e-4)
    assert "training accuracy 100.0%: good" in out
    assert f"{numbers['train_loss']:.4f}" in out
    assert "healthy: at most 0.3" in out


def test_quality_says_when_training_failed(dataset, home, capsys):
    swapped = [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]}
        for row in read_lines(dataset["pairs"])
    ]
    path = str(home / "swapped.jsonl")
    write_jsonl(path, swapped)
    command = f"quality --dataset toy --data-path {path} --min-accuracy 0.8 --device cpu"
    status, out, numbers = run(capsys, command)
    assert status == 1
    assert numbers["train_accuracy"] == 0
    assert "under 70%: by the reference, training failed" in out
    assert numbers["train_right_high"] < 0.3
    assert numbers["findings"] == []  # of 12 prompts nothing is concluded


def test_quality_says_in_which_form_the_pairs_were_read(dataset, capsys):
    main("quality --dataset toy --device cpu")
    assert "12 pairs, read as conversations" in capsys.readouterr().err


def test_diagnose_compares_models_and_files_in_one_table_and_a_report(dataset, home, capsys):
    rewards = read_rewards(dataset["test_rewards"])
    squeezed = write(home / "squeezed.json", [[r / 10 for r in row] for row in rewards])
    command = f"diagnose --dataset_name toy --models rm --rewards-path {squeezed} --device cpu"
    status, out, numbers = run(capsys, command)
    assert status == 0
    found = {model["name"]: ids(model["findings"]) for model in numbers["models"]}
    few = ["too_few_prompts"]  # 12 of them: nothing is concluded
    assert list(found.items()) == [("squeezed", few), ("toy-rm", few)]
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    for model in numbers["models"]:
        assert f"{model['match']:.4f}" in rows[model["name"]]
        assert f"{model['spread_ratio']:.3f}" in rows[model["name"]]
        assert estimate(model, "bits") in rows[model["name"]]
    html = (home / "reports" / "toy.html").read_text(encoding="utf-8")
    assert "too few prompts" in html
    assert "toy-rm: training" in html


def test_proxies_of_the_same_name_are_told_apart_by_their_paths(dataset, home, capsys):
    rewards = read_rewards(dataset["test_rewards"])
    one = write(home / "a" / "rm.json", rewards)
    two = write(home / "b" / "rm.json", rewards)
    command = f"diagnose --dataset toy --rewards-path {one} {two} --no-probes"
    _, _, numbers = run(capsys, command)
    assert [model["name"] for model in numbers["models"]] == [one, two]


def test_diagnose_asks_the_model_that_made_a_rewards_file(dataset, home, capsys):
    """The same rewards in another order: the run file names the model, and the model tells."""
    rewards = read_rewards(dataset["test_rewards"])
    path = write(home / "shuffled.json", rewards[7:] + rewards[:7])
    made_by = {"config": {"model_name": dataset["proxy"]}, "inputs": {}}
    write(home / "shuffled.json.run.json", made_by)
    command = f"diagnose --dataset toy --rewards-path {path} --device cpu"
    _, out, numbers = run(capsys, command)
    assert numbers["findings"][0]["id"] == "rewards_shuffled"
    assert numbers["findings"][0]["model"] == "shuffled"
    assert numbers["models"][0]["file_is"] == "shuffled"
    assert "row 0 holds the rewards of row 7" in out
    _, _, numbers = run(capsys, f"{command} --no-probes")  # by the numbers alone: a random match
    assert "rewards_shuffled" not in ids(numbers["findings"])


def test_diagnose_reads_the_run_and_its_training_pairs(dataset, home, capsys):
    """The test prompts are the training prompts here, a third of the pairs is swapped, and half of
    them were too long."""
    rows = read_lines(dataset["pairs"])
    for row in rows[::3]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    pairs = str(home / "swapped.jsonl")
    write_jsonl(pairs, rows)
    inputs = {role: {"path": dataset[role]} for role in ("responses", "rewards")}
    write(f"{pairs}.run.json", {"config": {}, "inputs": inputs})
    run_file = {
        "config": {"model_name": "nowhere", "data_path": pairs, "max_length": 40},
        "pairs": len(rows) // 2,
        "held_out_pairs": 0,
        "template_sha256": "of another template",
    }
    write(home / "models" / "toy-rm" / "run.json", run_file)

    _, _, numbers = run(capsys, "report --dataset toy --models rm --device cpu")
    n = numbers["models"][0]
    assert n["label_noise"] == pytest.approx(1 / 3, abs=0.05)
    assert n["duplicate_share"] == 1
    assert n["dropped_share"] == pytest.approx(0.5, abs=0.05)
    assert n["read_accuracy"] == pytest.approx(2 / 3, abs=0.06)  # it still prefers what gold does
    assert n["label_noise_low"] < 0.2 < 0.5 < n["label_noise_high"]  # 4 of 12: cannot tell
    assert ids(numbers["findings"]) == [
        "chat_template_differs",
        "long_pairs_left_out",
        "duplicate_prompts",
        "too_few_prompts",
    ]


# ---- best of n ---------------------------------------------------------------------------------


def test_best_of_n_of_gold_itself_gains_all_there_is(home, capsys):
    """Of gold's own picks: the mean of all, and the mean of the largest in a row."""
    rewards = [[1, 5, 3, 2], [0, -1, 4, 2], [3, 3, 3, 9]]
    gold = write(home / "gold.json", rewards)
    against = write(home / "against.json", [[-r for r in row] for row in rewards])
    status, out, numbers = run(capsys, f"bon --rewards-path {gold} {against} --gold-path {gold}")
    assert status == 0
    of_gold = [row["gold"] for row in numbers["curves"][gold]]
    assert [of_gold[0], of_gold[-1]] == pytest.approx([34 / 12, 18 / 3])
    assert "gains 100%" in out
    of_opponent = numbers["curves"][against]
    assert of_opponent[-1]["gold"] == pytest.approx((1 - 1 + 3) / 3)
    assert "its best is n = 1" in out
    html = (home / "reports" / "best-of-n.html").read_text(encoding="utf-8")
    assert html.count("<svg") == 2
    with pytest.raises(UserError, match="pass --rewards-path"):
        main(f"bon --gold-path {gold}")


# ---- validate and inspect ----------------------------------------------------------------------


def test_validate_passes_good_files_and_names_the_first_bad_row(dataset, home, capsys):
    command = "validate --dataset toy --model-name rm --device cpu"
    status, out, numbers = run(capsys, command)
    assert status == 0
    assert numbers["failed"] == 0
    assert "none of 11 checks failed" in out
    unknown = [check["check"] for check in numbers["checks"] if check["passed"] is None]
    assert unknown == [
        "rm_implicit.jsonl made from these files",
        "rm_rewards.json made from these files",
    ]
    rewards = read_rewards(dataset["rewards"])
    rewards[3].reverse()
    rewards[5].reverse()
    path = write(home / "other.json", rewards)
    status, out, numbers = run(capsys, f"validate --dataset toy --rewards-path {path}")
    failed = {check["check"]: check for check in numbers["checks"] if check["passed"] is False}
    assert status == 1
    assert failed.keys() == {"chosen is what gold prefers", "rewards in the pairs are gold's"}
    preferred = failed["chosen is what gold prefers"]
    assert preferred["failures"] == 2
    assert "the first: pair 3 (row 3)" in preferred["detail"]
    assert "FAIL  2 wrong, the first: pair 3 (row 3)" in out


def test_validate_reads_the_run_files(dataset, capsys):
    inputs = {role: dataset[role] for role in ("prompts", "responses", "rewards")}
    write_run_file(dataset["pairs"], evaluate.Validate(), inputs)
    assert run(capsys, "validate --dataset toy")[0] == 0
    with open(dataset["pairs"], "a", encoding="utf-8") as file:
        file.write("\n")  # the rows are the same
    assert run(capsys, "validate --dataset toy")[0] == 0
    rows = read_lines(dataset["pairs"])
    rows[-1]["chosen"][-1]["content"] = "changed by hand"
    write_jsonl(dataset["pairs"], rows)
    status, out, _ = run(capsys, "validate --dataset toy")
    print(out)
    assert status == 1


def test_a_malformed_pairs_file_fails_the_check_and_a_missing_one_is_bad_input(dataset, capsys):
    with open(dataset["pairs"], "a", encoding="utf-8") as file:
        file.write('{"chosen": []}\n')
    status, out, _ = run(capsys, "validate --dataset toy")
    assert status == 1
    assert "line 13: a pair needs 'chosen' and 'rejected'" in out
    with pytest.raises(UserError, match="no such file: run preprocess.py"):
        main("validate --dataset toy --data-path nowhere.jsonl")


def test_inspect_shows_the_text_and_the_scored_token(dataset, home, capsys):
    command = "inspect --dataset toy --model-name rm --num-samples 2"
    status, out, numbers = run(capsys, command)
    assert status == 0
    assert [pair["agrees"] for pair in numbers["pairs"]] == [True, True]
    assert out.count("⟦") == 4
    assert f"response_1 {numbers['pairs'][0]['gold'][0]:g}" in out
    assert "⟦" in numbers["pairs"][0]["chosen"]
    rewards = [row[::-1] for row in read_rewards(dataset["rewards"])]
    path = write(home / "other.json", rewards)
    status, out, numbers = run(capsys, f"{command} --rewards-path {path}")
    assert status == 1
    assert numbers["wrong"] == 2
    assert "WRONG" in out


def test_inspect_shows_pairs_from_elsewhere(toy_model_folder, home, capsys):
    """No responses file, no gold file: the rewards in the pairs are all that is known."""
    row = {"prompt": "say cat", "score_chosen": 3.0}
    for side in ("chosen", "rejected"):
        row[side] = [
            {"role": "user", "content": "say cat"},
            {"role": "assistant", "content": side},
        ]
    path = str(home / "uf.jsonl")
    write_jsonl(path, [row | {"score_rejected": 1.0}, row | {"score_rejected": 9.0}])
    command = f"inspect --dataset toy --data-path {path} --model-name {toy_model_folder}"
    status, out, numbers = run(capsys, command)
    assert status == 1
    assert numbers["wrong"] == 1
    assert "chosen 3, rejected 9; no responses file to look it up in: WRONG" in out
    assert "⟦" in out


def test_a_model_that_is_nowhere_is_named_with_what_is_there(dataset):
    message = r"mrm: no such model, nor under .*models \(there: toy-rm\)"
    with pytest.raises(UserError, match=message):
        main("match --dataset toy --model-name mrm")


# ---- the command itself ------------------------------------------------------------------------


def command(*argv):
    return subprocess.run(
        [sys.executable, REPOSITORY / "evaluate.py", *argv], capture_output=True, text=True
    )


def test_help_names_every_command_and_a_wrong_one_is_bad_input():
    shown = command("--help")
    assert shown.returncode == 0
    assert all(f"evaluate.py {name}" in shown.stdout for name in evaluate.COMMANDS)
    assert "Exit status" in shown.stdout
    for argv in ([], ["score"], ["match", "--nonsense", "1"]):
        failed = command(*argv)
        assert failed.returncode == 2
        assert failed.stderr.count("\n") == 1
        assert not failed.stdout


def test_comparing_finished_rewards_imports_neither_torch_nor_matplotlib(finished):
    """A second instead of ten: torch and transformers are imported only where a model is scored."""
    code = (
        "import sys, evaluate\n"
        f"evaluate.main({['match', *finished.split()]!r})\n"
        "assert not {'torch', 'transformers', 'matplotlib'} & sys.modules.keys()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr


def test_the_command_ends_its_process_group(dataset):
    """Whoever starts a process group finishes it: nothing is left when the command returns."""
    code = (
        "import evaluate, torch.distributed\n"
        "assert evaluate.main('match --dataset toy --device cpu'.split()) == 0\n"
        "assert not torch.distributed.is_initialized()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", evaluate.COMMANDS)
def test_every_command_says_its_exit_status_in_its_help(name, capsys):
    with pytest.raises(SystemExit) as done:
        main(f"{name} --help")
    assert done.value.code == 0
    shown = capsys.readouterr().out.replace("\n", " ")
    assert re.search("Exit status: 0 .* 2 bad input", shown)


def test_help_takes_its_healthy_ranges_from_the_one_table(capsys):
    for name, healthy in (("match", "at least 0.8;"), ("quality", "at least 0.95; below 0.8")):
        with pytest.raises(SystemExit):
            main(f"{name} --help")
        assert healthy in capsys.readouterr().out
