"""evaluate.py as its user meets it: tables, JSON, exit statuses, and letters for bad input."""

import json
import re
import subprocess
import sys

import pytest
import torch
from conftest import DATA, REPOSITORY, make_prompt, needs_data
from transformers import Qwen3ForSequenceClassification

import evaluate
from rmood import records
from rmood.records import BadInput

REAL = DATA / "alpacafarm"


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A dataset folder of its own; the other tests' process group outlives this command."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    return tmp_path


def run(capsys, *argv) -> tuple[int, str, dict]:
    """Exit status, stdout, and what --json wrote."""
    out = f"{evaluate.layout('toy')['home']}/out.json"
    status = evaluate.main([*map(str, argv), "--json", out])
    return status, capsys.readouterr().out, json.load(open(out, encoding="utf-8"))


def write(path, value) -> str:
    records.write_json(str(path), value)
    return str(path)


@pytest.fixture
def finished(home) -> tuple[str, str]:
    """Rewards of a proxy and of gold: three prompts; right, wrong, tied."""
    return write(home / "proxy.json", [[2, 1], [1, 2], [0.5, 0.5]]), write(home / "gold.json", [[4, 1], [6, 1], [1, 9]])


# ---- match -----------------------------------------------------------------------------------------------------


@needs_data
def test_match_on_the_reference_s_own_files(capsys):
    status, out, numbers = run(capsys, "match", "--rewards-path", REAL / "test_reward_rm.json", "--gold-path", REAL / "test_reward_gold.json")
    assert status == 0
    assert [numbers[key] for key in ("pairs", "gold_ties", "compared")] == [1000, 46, 954]
    assert (round(numbers["match"], 4), round(numbers["match_ties_half"], 4)) == (0.7243, 0.7301)
    assert (round(numbers["margin_std_ratio"], 3), round(numbers["std_ratio"], 3)) == (0.180, 0.175)
    assert [finding["id"] for finding in numbers["findings"]] == ["compressed_rewards", "low_match"]
    assert set(numbers["findings"][0]) == {"id", "severity", "evidence", "causes", "advice"}
    for shown in ("1,000", "46", "954", "0.7243", "0.7301", "0.180", "0.175", "compressed rewards"):
        assert shown in out


def test_json_holds_the_numbers_of_the_table(finished, capsys):
    """Match 1/3, with the tie as half 1.5/3; margins 1, -1, 0 against 3, 5, -8."""
    status, out, numbers = run(capsys, "match", "--rewards-path", finished[0], "--gold-path", finished[1])
    assert status == 0 and numbers["match"] == 1 / 3 and numbers["match_ties_half"] == 0.5
    lines = {line.split("  ")[0]: line for line in out.splitlines()}
    for label, key in {"pairs": "pairs", "gold ties, not compared": "gold_ties", "compared": "compared"}.items():
        assert lines[label].split()[-1] == str(numbers[key])
    assert f"{numbers['match']:.4f}" in lines["match, a proxy tie is a miss"] and f"{numbers['match_low']:.4f} to {numbers['match_high']:.4f}" in lines["match, a proxy tie is a miss"]
    assert f"{numbers['match_ties_half']:.4f}" in lines["match, a proxy tie is half"]
    for label, name in {"margins within a prompt, std": "margin_std", "rewards, std": "std", "means across prompts, std": "across_std"}.items():
        assert lines[label].split()[-3:] == [f"{numbers[f'proxy_{name}']:.2f}", f"{numbers[f'gold_{name}']:.2f}", f"{numbers[f'{name}_ratio']:.3f}"]
    assert [finding["id"].replace("_", " ") in out for finding in numbers["findings"]] == [True] * len(numbers["findings"])


def test_min_match_turns_a_low_match_into_status_1(finished, capsys):
    files = ("--rewards-path", finished[0], "--gold-path", finished[1])
    assert run(capsys, "match", *files, "--min-match", 0.3)[0] == 0
    status, out, _ = run(capsys, "match", *files, "--min-match", 0.5)
    assert status == 1 and "0.3333 is below --min-match 0.5" in out


def test_four_responses_a_prompt_make_six_pairs(home, capsys):
    gold = write(home / "gold.json", [[1, 2, 3, 4], [4, 3, 2, 2]])
    proxy = write(home / "proxy.json", [[1, 2, 3, 4], [1, 2, 3, 4]])
    _, _, numbers = run(capsys, "match", "--rewards-path", proxy, "--gold-path", gold)
    assert (numbers["pairs"], numbers["gold_ties"], numbers["match"]) == (12, 1, 6 / 11)


@pytest.mark.parametrize(
    "rewards, letter",
    [
        ([[1, 2], [1, 2]], r"proxy.json: 2 rows, but 3 in .*gold.json"),
        ([[1, 2, 3]] * 3, r"proxy.json: 3 entries a row, but 2 in"),
        ([[1, 2], [1, None], [1, 2]], r"proxy.json: row 1 has the reward None"),
        ([[1], [1], [1]], r"proxy.json: 1 entries a row, but 2"),
    ],
)
def test_rewards_that_do_not_belong_to_gold_are_refused(finished, home, rewards, letter):
    with pytest.raises(BadInput, match=letter) as caught:
        evaluate.main(["match", "--rewards-path", write(home / "proxy.json", rewards), "--gold-path", finished[1]])
    assert "\n" not in str(caught.value)


def test_a_nan_in_gold_is_refused_with_its_row(finished, home):
    (home / "gold.json").write_text("[[1, 2], [1, 2], [NaN, 2]]")
    with pytest.raises(BadInput, match="row 2 has the reward nan"):
        evaluate.main(["match", "--rewards-path", finished[0], "--gold-path", finished[1]])


def test_rewards_of_other_texts_are_refused(home):
    """Both files hold their texts, as the reference's test files do, and those of row 1 differ."""
    rows = [{"messages": make_prompt(i), "response_1": "a", "reward_1": 1.0, "response_2": "b", "reward_2": 2.0} for i in range(3)]
    gold = write(home / "gold.json", rows)
    rows[1]["response_2"] = "c"
    with pytest.raises(BadInput, match="row 1 holds another text"):
        evaluate.main(["match", "--rewards-path", write(home / "proxy.json", rows), "--gold-path", gold])


def test_rewards_scored_from_other_responses_are_refused(finished, home):
    for name, text in (("proxy", "one"), ("gold", "another")):
        source = write(home / f"{name}_responses.json", [text])
        records.write_run_file(str(home / f"{name}.json"), evaluate.Match(), {"responses": source})
    with pytest.raises(BadInput, match="scored from other responses"):
        evaluate.main(["match", "--rewards-path", finished[0], "--gold-path", finished[1]])


# ---- with a model ----------------------------------------------------------------------------------------------


@pytest.fixture
def dataset(home, toy_model_folder, toy_tokenizer) -> dict:
    """A whole dataset "toy" under home, and models/toy-rm; gold is that model's own opinion, so it agrees with itself."""
    from transformers import AutoConfig

    torch.manual_seed(0)
    config = AutoConfig.from_pretrained(toy_model_folder, num_labels=1, problem_type="regression")
    model = Qwen3ForSequenceClassification(config).eval()
    model.score.weight.data *= 5
    model.save_pretrained(home / "models" / "toy-rm")
    toy_tokenizer.save_pretrained(home / "models" / "toy-rm")
    records.write_jsonl(str(home / "models" / "toy-rm" / "metrics.jsonl"), [{"step": s, "epoch": 1, "loss": 0.7 / s, "accuracy": 0.96} for s in range(1, 6)])

    prompts = [make_prompt(i) for i in range(12)]
    responses = [{"response_1": f"cat {i}", "response_2": f"dog one two {i}"} for i in range(12)]
    rewards = []
    for prompt, row in zip(prompts, responses):
        ids = [toy_tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False) for text in row.values()]
        with torch.no_grad():
            hidden = [model.model(torch.tensor([toy_tokenizer(text, add_special_tokens=False)["input_ids"]])).last_hidden_state[0, -1] for text in ids]
            rewards.append([model.score(h).item() for h in hidden])
    pairs = []
    for index, (prompt, row, (a, b)) in enumerate(zip(prompts, responses, rewards)):
        sides = [[*prompt, {"role": "assistant", "content": text}] for text in row.values()]
        chosen = 0 if a > b else 1
        pairs.append({"chosen": sides[chosen], "rejected": sides[1 - chosen], "index": index, "chosen_reward": max(a, b), "rejected_reward": min(a, b)})
    for split in ("train", "test"):
        paths = evaluate.layout("toy", split)
        write(paths["prompts"], [{"messages": prompt} for prompt in prompts])
        write(paths["responses"], responses)
        write(paths["rewards"], rewards)
        records.write_jsonl(paths["pairs"], pairs)
    return evaluate.layout("toy")


def test_a_model_scored_here_matches_its_own_rewards(dataset, capsys):
    status, _, numbers = run(capsys, "match", "--dataset", "toy", "--device", "cpu")
    assert status == 0 and numbers["match"] == 1 and numbers["margin_std_ratio"] == pytest.approx(1, abs=1e-4) and numbers["name"] == "toy-rm"
    assert numbers["train_accuracy"] == pytest.approx(0.96) and numbers["findings"] == []


def test_quality_on_pairs_the_model_agrees_with(dataset, capsys):
    """Every margin is above 0 by construction: accuracy 1; its spread is that of its own rewards."""
    status, out, numbers = run(capsys, "quality", "--dataset", "toy", "--num-samples", 8, "--model-path", "rm", "--device", "cpu")
    assert status == 0 and numbers["pairs"] == 8 and numbers["train_accuracy"] == 1 and numbers["margin_std_ratio"] == pytest.approx(1, abs=1e-4)
    assert "training accuracy 100.0%: good" in out and f"{numbers['train_loss']:.4f}" in out


def test_quality_says_when_training_failed(dataset, home, capsys):
    swapped = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) for row in map(json.loads, open(dataset["pairs"], encoding="utf-8"))]
    records.write_jsonl(str(home / "swapped.jsonl"), swapped)
    status, out, numbers = run(capsys, "quality", "--dataset", "toy", "--data-path", home / "swapped.jsonl", "--min-accuracy", 0.8, "--device", "cpu")
    assert status == 1 and numbers["train_accuracy"] == 0 and "under 70%: training failed" in out
    assert "training_failed" in [finding["id"] for finding in numbers["findings"]]


def test_diagnose_compares_models_and_files_in_one_table_and_a_report(dataset, home, capsys):
    squeezed = write(home / "squeezed.json", [[r / 10 for r in row] for row in records.read_rewards(dataset["test_rewards"])])
    status, out, numbers = run(capsys, "diagnose", "--dataset_name", "toy", "--models", "rm", "--rewards-path", squeezed, "--device", "cpu")
    assert status == 0
    assert [(model["name"], [finding["id"] for finding in model["findings"]]) for model in numbers["models"]] == [("squeezed", ["compressed_rewards"]), ("toy-rm", [])]
    rows = {line.split()[0]: line for line in out.splitlines() if line}
    for model in numbers["models"]:
        assert f"{model['match']:.4f}" in rows[model["name"]] and f"{model['margin_std_ratio']:.3f}" in rows[model["name"]]
    assert rows["toy-rm"].endswith("no finding") and "96.0%" in rows["toy-rm"]
    html = (home / "reports" / "toy.html").read_text(encoding="utf-8")
    assert "compressed rewards" in html and "toy-rm: training" in html


def test_diagnose_asks_the_model_that_made_a_rewards_file(dataset, home, capsys):
    """The same rewards in another order: the run file names the model, the model tells."""
    rewards = records.read_rewards(dataset["test_rewards"])
    path = write(home / "shuffled.json", rewards[7:] + rewards[:7])
    write(home / "shuffled.json.run.json", {"config": {"model_name": dataset["proxy"]}, "inputs": {}})
    _, out, numbers = run(capsys, "diagnose", "--dataset", "toy", "--rewards-path", path, "--device", "cpu")
    assert numbers["findings"][0]["id"] == "rewards_shuffled" and numbers["findings"][0]["model"] == "shuffled" and numbers["models"][0]["order_differs"] == 1
    assert "in another order" in out
    _, _, numbers = run(capsys, "diagnose", "--dataset", "toy", "--rewards-path", path, "--device", "cpu", "--no-probes")
    assert "rewards_shuffled" not in [finding["id"] for finding in numbers["findings"]]  # from the numbers alone it is a random match


def test_diagnose_reads_the_run_and_its_training_pairs(dataset, home, capsys):
    """The test prompts are the training prompts here, a third of the pairs turned round, and half of them were too long."""
    rows = [json.loads(line) for line in open(dataset["pairs"], encoding="utf-8")]
    turned = [row | {"chosen": row["rejected"], "rejected": row["chosen"]} if i % 3 == 0 else row for i, row in enumerate(rows)]
    records.write_jsonl(str(home / "turned.jsonl"), turned)
    write(home / "turned.jsonl.run.json", {"config": {}, "inputs": {role: {"path": dataset[role]} for role in ("responses", "rewards")}})
    config = {"model_name": "nowhere", "data_path": str(home / "turned.jsonl"), "max_length": 40}
    write(home / "models" / "toy-rm" / "run.json", {"config": config, "pairs": len(rows) // 2, "held_out_pairs": 0, "template_sha256": "of another template"})
    _, out, numbers = run(capsys, "report", "--dataset", "toy", "--models", "rm", "--device", "cpu")
    n = numbers["models"][0]
    assert n["label_noise"] == pytest.approx(1 / 3, abs=0.05) and n["duplicate_share"] == 1 and n["dropped_share"] == pytest.approx(0.5, abs=0.05)
    assert n["read_accuracy"] == pytest.approx(2 / 3, abs=0.06)  # it still likes what gold likes
    assert [finding["id"] for finding in numbers["findings"]][:4] == ["chat_template_differs", "closing_token_cut", "noisy_labels", "duplicate_prompts"]


def test_inspect_shows_pairs_from_elsewhere(toy_model_folder, home, capsys):
    """No responses file, no gold file: the pairs speak for themselves."""
    path = home / "uf.jsonl"
    sides = {side: [{"role": "user", "content": "say cat"}, {"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    records.write_jsonl(str(path), [{"prompt": "say cat", "score_chosen": 3.0, "score_rejected": better} | sides for better in (1.0, 9.0)])
    status, out, numbers = run(capsys, "inspect", "--dataset", "toy", "--data-path", path, "--model-name", toy_model_folder)
    assert status == 1 and numbers["wrong"] == 1 and "chosen 3, rejected 9; no responses file to look it up in: WRONG" in out and "⟦" in out


def test_best_of_n_of_gold_itself_gains_all_there_is(home, capsys):
    gold = write(home / "gold.json", [[1, 5, 3, 2], [0, -1, 4, 2], [3, 3, 3, 9]])
    against = write(home / "against.json", [[-r for r in row] for row in records.read_rewards(gold)])
    status, out, numbers = run(capsys, "bon", "--rewards-path", gold, against, "--gold-path", gold)
    rows = numbers["curves"][gold]
    assert status == 0 and [row["gold"] for row in rows][::3] == pytest.approx([34 / 12, 18 / 3]) and "gains 100%" in out  # mean of all, mean of the largest
    assert numbers["curves"][against][-1]["gold"] == pytest.approx((1 - 1 + 3) / 3) and "its best is n = 1" in out
    assert (home / "reports" / "best-of-n.html").read_text(encoding="utf-8").count("<svg") == 2
    with pytest.raises(BadInput, match="pass --rewards-path"):
        evaluate.main(["bon", "--gold-path", gold])


def test_validate_passes_good_files_and_names_the_first_bad_row(dataset, home, capsys):
    status, out, numbers = run(capsys, "validate", "--dataset", "toy", "--model-name", "rm", "--device", "cpu")
    assert status == 0 and numbers["failed"] == 0 and "none of 11 checks failed" in out
    assert [check["check"] for check in numbers["checks"] if check["passed"] is None] == ["rm_implicit.jsonl made from these files", "rm_rewards.json made from these files"]
    rewards = records.read_rewards(dataset["rewards"])
    rewards[3], rewards[5] = rewards[3][::-1], rewards[5][::-1]
    status, out, numbers = run(capsys, "validate", "--dataset", "toy", "--rewards-path", write(home / "other.json", rewards))
    failed = {check["check"]: check for check in numbers["checks"] if check["passed"] is False}
    assert status == 1 and failed["chosen is what gold prefers"]["failures"] == 2 and "the first: pair 3 (row 3)" in failed["chosen is what gold prefers"]["detail"]
    assert failed.keys() == {"chosen is what gold prefers", "rewards in the pairs are gold's"} and "FAIL  2 wrong, the first: pair 3 (row 3)" in out


def test_validate_reads_the_run_files(dataset, home, capsys):
    records.write_run_file(dataset["pairs"], evaluate.Validate(), {role: dataset[role] for role in ("prompts", "responses", "rewards")})
    assert run(capsys, "validate", "--dataset", "toy")[0] == 0
    with open(dataset["pairs"], "a", encoding="utf-8") as file:
        file.write("\n")
    status, out, _ = run(capsys, "validate", "--dataset", "toy")
    assert status == 1 and "changed after it was written" in out


def test_a_malformed_pairs_file_fails_the_check_and_a_missing_one_is_bad_input(dataset, capsys):
    with open(dataset["pairs"], "a", encoding="utf-8") as file:
        file.write('{"chosen": []}\n')
    status, out, _ = run(capsys, "validate", "--dataset", "toy")
    assert status == 1 and "line 13: a pair needs 'chosen' and 'rejected'" in out
    with pytest.raises(BadInput, match="no such file: run preprocess.py"):
        evaluate.main(["validate", "--dataset", "toy", "--data-path", "nowhere.jsonl"])


def test_inspect_shows_the_text_and_the_scored_token(dataset, home, capsys):
    status, out, numbers = run(capsys, "inspect", "--dataset", "toy", "--model-name", "rm", "--num-samples", 2)
    assert status == 0 and len(numbers["pairs"]) == 2 and all(pair["agrees"] for pair in numbers["pairs"])
    assert out.count("⟦") == 4 and f"response_1 {numbers['pairs'][0]['gold'][0]:g}" in out
    rewards = [row[::-1] for row in records.read_rewards(dataset["rewards"])]
    status, out, numbers = run(capsys, "inspect", "--dataset", "toy", "--model-name", "rm", "--num-samples", 2, "--rewards-path", write(home / "other.json", rewards))
    assert status == 1 and numbers["wrong"] == 2 and "WRONG" in out


def test_a_model_that_is_nowhere_is_named_with_what_is_there(dataset):
    with pytest.raises(BadInput, match=r"mrm: no such model, nor under .*models \(there: toy-rm\)"):
        evaluate.main(["match", "--dataset", "toy", "--model-name", "mrm"])


# ---- the command itself ----------------------------------------------------------------------------------------


def command(*argv):
    return subprocess.run([sys.executable, REPOSITORY / "evaluate.py", *argv], capture_output=True, text=True)


def test_help_names_every_command_and_a_wrong_one_is_bad_input():
    shown = command("--help")
    assert shown.returncode == 0 and all(f"evaluate.py {name}" in shown.stdout for name in evaluate.COMMANDS) and "Exit status" in shown.stdout
    for argv in ([], ["score"], ["match", "--nonsense", "1"]):
        failed = command(*argv)
        assert failed.returncode == 2 and failed.stderr.count("\n") == 1 and not failed.stdout


def test_comparing_finished_rewards_does_not_import_torch(finished):
    """A second instead of ten: torch and transformers are imported only where a model is scored."""
    code = f"import sys, evaluate; evaluate.main(['match', '--rewards-path', {finished[0]!r}, '--gold-path', {finished[1]!r}]); assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", evaluate.COMMANDS)
def test_every_command_says_its_exit_status_in_its_help(name, capsys):
    with pytest.raises(SystemExit) as done:
        evaluate.main([name, "--help"])
    assert done.value.code == 0 and re.search("Exit status: 0 .* 2 bad input", capsys.readouterr().out.replace("\n", " "))
