import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_prompt
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import evaluate
import label
import sample
from rmood import diagnose
from rmood.diagnosis.inputs import gold_cut
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.paths import dataset_paths
from rmood.files.provenance import Journal, allow_mismatch, sha256
from rmood.files.rows import write_json
from rmood.files.tables import join_conversations, read_responses, read_rewards
from rmood.loading import load_reward_model
from rmood.scoring import load_scorer


@pytest.fixture(scope="module")
def gold(toy_model_folder, toy_tokenizer, tmp_path_factory) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    folder = str(tmp_path_factory.mktemp("gold"))
    save_reward_model(folder, model, toy_tokenizer, torch.float32, {})
    return folder


@pytest.fixture
def files(tmp_path) -> dict[str, str]:
    paths = {name: str(tmp_path / f"{name}.json") for name in ("prompts", "responses", "target")}
    prompts = [{"messages": make_prompt(i)} for i in range(30)]
    responses = [
        {
            "response_1": "cat " * (i % 7 + 1),
            "response_2": f"dog {i}",
            "response_3": "same" if i else "x",
        }
        for i in range(30)
    ]
    write_json(paths["prompts"], prompts)
    write_json(paths["responses"], responses)
    return paths


def arguments(gold: str, files: dict[str, str], *flags: str) -> list[str]:
    argv = ["--model-name", gold, "--dtype", "float32", "--tokens-per-pass", "200"]
    argv += ["--device", "cpu"]
    for name, path in files.items():
        argv += [f"--{name}-path", path]
    return argv + list(flags)


def run_label(monkeypatch, gold: str, files: dict[str, str], *flags: str) -> None:
    monkeypatch.setattr(sys, "argv", ["label.py", *arguments(gold, files, *flags)])
    assert label.main() == 0


def run(monkeypatch, gold: str, files: dict[str, str], *flags: str) -> list[list[float]]:
    run_label(monkeypatch, gold, files, *flags)
    return read_rewards(files["target"])


def run_on_two_processes(argv: list[str]) -> subprocess.CompletedProcess:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.run(
        [*torchrun, "--nproc-per-node", "2", "label.py", *argv],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=300,
    )


def run_file(files: dict[str, str]) -> dict:
    return json.loads(Path(f"{files['target']}.run.json").read_text())


# ---- rewards ----


def test_rewards_are_those_of_transformers_in_the_order_of_the_responses(gold, files, monkeypatch):
    rewards = run(monkeypatch, gold, files)
    model = AutoModelForSequenceClassification.from_pretrained(gold)
    tokenizer = AutoTokenizer.from_pretrained(gold)
    for i, row in enumerate(read_responses(files["responses"])):
        for reward, text in zip(rewards[i], row, strict=True):
            messages = [*make_prompt(i), {"role": "assistant", "content": text}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False)
            ids = tokenizer(rendered, add_special_tokens=False, return_tensors="pt")
            assert model(**ids).logits.item() == pytest.approx(reward, abs=1e-5)


def test_the_other_rows_of_a_batch_do_not_change_a_reward(gold, files, monkeypatch):
    rewards = run(monkeypatch, gold, files)
    others = ["--tokens-per-pass", "4000", "--batch-size", "3", "--overwrite"]
    other = run(monkeypatch, gold, files, *others)
    assert rewards == [pytest.approx(row, abs=1e-5) for row in other]


def test_a_long_response_is_cut_and_still_closed(gold, files, monkeypatch, capsys):
    rows = [{"response_1": "cat " * 100, "response_2": "dog"}] * 30
    write_json(files["responses"], rows)
    run(monkeypatch, gold, files, "--max-length", "64")
    assert "30 of 60 conversations were cut to 64 tokens" in capsys.readouterr().err
    assert run_file(files)["conversations_cut"] == 0.5
    assert gold_cut(files["target"]) == {"gold_cut": 0.5}  # which evaluate.py diagnose reads
    run(monkeypatch, gold, files, "--overwrite")
    assert gold_cut(files["target"]) == {"gold_cut": 0.0}
    assert gold_cut(None) == gold_cut("no/such/rewards.json") == {}


# ---- one default dtype for gold and proxy ----


def test_every_script_that_runs_a_model_to_score_or_sample_has_the_same_default_dtype():
    """With other defaults gold would be scored in bf16 and the proxy in float32, on a CPU."""
    configs = [label.Config, sample.Config]
    configs += [
        value
        for value in vars(evaluate).values()
        if isinstance(value, type) and "dtype" in getattr(value, "__dataclass_fields__", {})
    ]
    assert len(configs) > 2
    for config in configs:
        assert config.__dataclass_fields__["dtype"].default == "auto", config


def test_the_default_dtype_on_a_cpu_is_float32(gold, files, monkeypatch):
    as_float32 = run(monkeypatch, gold, files)
    as_bf16 = run(monkeypatch, gold, files, "--dtype", "bf16", "--overwrite")
    assert run_file(files)["work"]["dtype"] == "bf16"
    by_default = run(monkeypatch, gold, files, "--dtype", "auto", "--overwrite")
    assert by_default == as_float32
    assert by_default != as_bf16
    # The run file has what was asked for, and what it came to.
    assert run_file(files)["config"]["dtype"] == "auto"
    assert run_file(files)["work"]["dtype"] == "float32"


# ---- interruptions, processes and shards ----


def test_a_resumed_run_writes_the_same_bytes(gold, files, monkeypatch):
    target = Path(files["target"])
    run(monkeypatch, gold, files, "--dtype", "bf16")
    whole = target.read_bytes()
    target.unlink()

    class Killed(Exception):
        pass

    add = Journal.add
    kept = []

    def add_once_then_die(journal, entries):
        if kept:
            raise Killed
        kept.extend(entries)
        add(journal, entries)

    monkeypatch.setattr(Journal, "add", add_once_then_die)
    with pytest.raises(Killed):
        run(monkeypatch, gold, files, "--dtype", "bf16")
    assert 0 < len(kept) < 30
    assert not target.exists()
    monkeypatch.setattr(Journal, "add", add)
    run(monkeypatch, gold, files, "--dtype", "bf16")
    assert target.read_bytes() == whole


def test_two_processes_write_what_one_writes(collectives, gold, files, monkeypatch):
    target = Path(files["target"])
    run(monkeypatch, gold, files)
    alone = target.read_bytes()
    target.unlink()
    result = run_on_two_processes(arguments(gold, files))
    assert result.returncode == 0, result.stderr[-2000:]
    assert target.read_bytes() == alone
    assert not list(target.parent.glob("*journal*"))


def test_shards_together_are_the_unsharded_run(collectives, gold, files, monkeypatch):
    """Each shard plans the passes of the whole and takes its share: the same bits, in bf16 too."""
    target = Path(files["target"])
    run(monkeypatch, gold, files, "--dtype", "bf16")
    alone = target.read_bytes()
    facts = run_file(files)
    target.unlink()

    def label_shard(shard: str) -> None:
        run_label(monkeypatch, gold, files, "--dtype", "bf16", "--shard", shard)

    label_shard("1/3")
    missing = "target.json.shard-2-of-3: missing, and with it 2 of 3 shards"
    with pytest.raises(UserError, match=missing):
        label_shard("merge")
    result = run_on_two_processes(arguments(gold, files, "--dtype", "bf16", "--shard", "2/3"))
    assert result.returncode == 0, result.stderr[-2000:]
    assert "label.py --shard merge" in result.stdout
    label_shard("3/3")

    rows = []
    for i in (1, 2, 3):
        lines = Path(f"{target}.shard-{i}-of-3").read_text().splitlines()
        assert lines
        rows += [json.loads(line)["row"] for line in lines]
    assert sorted(rows) == list(range(30))
    assert not target.exists()

    label_shard("merge")
    merged = run_file(files)
    assert target.read_bytes() == alone
    assert {name for name in facts if merged[name] != facts[name]} <= {"time", "command"}
    with pytest.raises(UserError, match="no work is left for this shard"):
        label_shard("30/30")


# ---- nothing of the user's is replaced ----


@pytest.fixture
def proxy(gold, tmp_path) -> str:
    """Gold's folder with another head."""
    folder = tmp_path / "proxy"
    shutil.copytree(gold, folder)
    weights = load_file(folder / "model.safetensors")
    weights["score.weight"] = weights["score.weight"] * 2
    save_file(weights, folder / "model.safetensors")
    return str(folder)


def test_the_same_command_again_does_nothing(gold, files, monkeypatch, capsys):
    run(monkeypatch, gold, files)
    first = [Path(files["target"]).stat(), Path(f"{files['target']}.run.json").stat()]
    monkeypatch.setattr(label, "load_scorer", None)  # no model is loaded either
    run(monkeypatch, gold, files)
    assert "already exists, made with these settings and inputs" in capsys.readouterr().err
    again = [Path(files["target"]).stat(), Path(f"{files['target']}.run.json").stat()]
    assert again == first
    # The same texts in a file that was saved in another form are the same sample.
    rows = json.loads(Path(files["responses"]).read_text())
    Path(files["responses"]).write_text("\n".join(map(json.dumps, rows)))
    run(monkeypatch, gold, files, "--overwrite")
    assert Path(files["target"]).stat() == first[0]


def another_model(files, proxy):
    return ["--model-name", proxy], "made by .* with other weights"


def another_dtype(files, proxy):
    return ["--dtype", "bf16"], r"with other dtype \(float32, now bf16\)"


def fewer_responses(files, proxy):
    return ["--num-responses", "2"], r"with other num responses \(3, now 2\)"


def another_sample(files, proxy):
    rows = json.loads(Path(files["responses"]).read_text())
    write_json(files["responses"], [row | {"response_1": "other"} for row in rows])
    Path(f"{files['responses']}.run.json").unlink(missing_ok=True)
    return ["--allow-mismatch"], "with other responses"


def edited_by_hand(files, proxy):
    rewards = read_rewards(files["target"])
    write_json(files["target"], [[0.0, 0.0, 0.0], *rewards[1:]])
    return [], "edited since it was written .of 30 rows 1 changed."


def no_run_file(files, proxy):
    Path(f"{files['target']}.run.json").unlink()
    return [], "no run file says how it was made"


@pytest.mark.parametrize(
    "differs",
    [another_model, another_dtype, fewer_responses, another_sample, edited_by_hand, no_run_file],
)
def test_a_target_that_is_something_else_is_kept_unless_overwrite_is_given(
    differs, gold, proxy, files, monkeypatch
):
    run(monkeypatch, gold, files)
    flags, words = differs(files, proxy)
    before = Path(files["target"]).read_bytes()
    with pytest.raises(UserError, match=f"already there, .*{words}.*or --overwrite to replace"):
        run(monkeypatch, gold, files, *flags)
    assert Path(files["target"]).read_bytes() == before
    run(monkeypatch, gold, files, *flags, "--overwrite")
    assert Path(files["target"]).read_bytes() != before or differs is no_run_file
    run(monkeypatch, gold, files, *flags)  # and now it stands


def test_work_that_was_allowed_to_replace_the_target_is_resumed(gold, files, monkeypatch):
    run(monkeypatch, gold, files)
    before = Path(files["target"]).read_bytes()
    add = Journal.add

    def add_then_die(journal, entries):
        add(journal, entries)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Journal, "add", add_then_die)
        run(monkeypatch, gold, files, "--dtype", "bf16", "--overwrite")
    assert Path(files["target"]).read_bytes() == before
    run(monkeypatch, gold, files, "--dtype", "bf16")  # without --overwrite, as the advice says
    assert Path(files["target"]).read_bytes() != before


def test_by_default_another_model_gets_a_file_of_its_own(gold, proxy, tmp_path, monkeypatch):
    """label.py --split test --model-name PROXY once replaced gold's rewards."""
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    shutil.copytree(gold, tmp_path / "models/toy-gold")
    paths = dataset_paths("toy", "test")
    write_json(paths["prompts"], [{"messages": make_prompt(i)} for i in range(4)])
    write_json(
        paths["responses"], [{"response_1": "cat", "response_2": f"dog {i}"} for i in "1234"]
    )
    argv = ["label.py", "--dataset", "toy", "--split", "test", "--device", "cpu"]
    for flags in ([], ["--model-name", proxy]):
        monkeypatch.setattr(sys, "argv", [*argv, *flags])
        assert label.main() == 0
    its_own = f"{tmp_path}/datasets/toy/rm/test_reward_proxy.json"
    assert read_rewards(its_own) == [[2 * r for r in row] for row in read_rewards(paths["rewards"])]
    with pytest.raises(UserError, match="made by .*models/toy-gold, the proxy itself"):
        diagnose(str(tmp_path / "models/toy-gold"), paths["rewards"])
    shutil.copy(its_own, tmp_path / "gold.json")
    shutil.copy(f"{its_own}.run.json", tmp_path / "gold.json.run.json")
    with pytest.raises(UserError, match="gold.json: by its run file .* the proxy itself"):
        diagnose(its_own, str(tmp_path / "gold.json"))
    allow_mismatch(True)
    assert diagnose(its_own, str(tmp_path / "gold.json")).numbers["match"] == 1.0
    allow_mismatch(False)
    assert diagnose(its_own, paths["rewards"]).numbers["match"] == 1.0


# ---- a text instead of files ----


def test_the_reward_of_a_text_is_printed(gold, files, monkeypatch, capsys):
    expected = run(monkeypatch, gold, files)[3]
    texts = read_responses(files["responses"])[3]
    capsys.readouterr()
    argv = ["label.py", "--model-name", gold, "--device", "cpu", "--text", "say name 3"]
    monkeypatch.setattr(sys, "argv", [*argv, "--response", *texts])
    assert label.main() == 0
    captured = capsys.readouterr()
    printed = [float(line) for line in captured.out.splitlines()]
    without_system = [[{"role": "user", "content": "say name 3"}]]
    scored = load_scorer(gold).score(join_conversations(without_system, [texts]))
    assert printed == pytest.approx(scored[0], abs=1e-5)
    assert printed != pytest.approx(expected, abs=1e-3)  # the files have an empty system turn
    assert "⟦" in captured.err


def test_lines_of_standard_input_come_back_with_their_rewards(gold, monkeypatch, capsys, tmp_path):
    messages = [*make_prompt(1), {"role": "assistant", "content": "cat"}]
    rows = [
        {"id": 7, "messages": messages},
        {"prompt": make_prompt(1), "response": "cat"},
        {"prompt": "say one", "response": "\U0001f600", "reward": "an old one"},
    ]
    given = tmp_path / "rows.jsonl"
    lines = [json.dumps(rows[0]), "", json.dumps(rows[1]), json.dumps(rows[2], ensure_ascii=False)]
    given.write_text("\n".join(lines), encoding="utf-8")
    argv = ["label.py", "--model-name", gold, "--device", "cpu", "--stdin"]
    monkeypatch.setattr(sys, "argv", argv)
    with open(given) as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert label.main() == 0
    written = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row | {"reward": 0} for row in written] == [row | {"reward": 0} for row in rows]
    [[expected]] = load_scorer(gold).score([[messages]])
    assert written[0]["reward"] == written[1]["reward"] == pytest.approx(expected, abs=1e-5)


def test_a_line_is_answered_before_the_next_one_comes():
    read, write = os.pipe()
    lines = label.whole_lines(read)
    os.write(write, b'{"a": 1}\n\n{"b"')
    assert next(lines) == [(1, b'{"a": 1}')]
    os.write(write, b": 2}\nlast")
    assert next(lines) == [(3, b'{"b": 2}')]
    os.close(write)
    assert next(lines) == [(4, b"last")]
    assert next(lines, None) is None
    os.close(read)


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 1: not JSON"),
        ("[1]", "line 1: not a JSON object"),
        ('{"prompt": "a"}', "line 1: neither 'messages' nor 'prompt' and 'response'"),
        ('{"prompt": "a", "response": 3}', "line 1: .*content"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "line 1: the last turn must be"),
    ],
)
def test_a_line_that_cannot_be_scored_is_named(line, words):
    with pytest.raises(UserError, match=f"standard input: {words}"):
        label.score_lines(None, [(1, line.encode())])


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--text", "a"], "--text without --response"),
        (["--response", "a"], "--response without --text, or with an empty one"),
        (["--text", "", "--response", "a"], "--response without --text, or with an empty one"),
        (["--text", "a", "--response", "b", "--stdin"], "give one of them"),
        (["--send", "text"], "--send is for a server"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, words, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["label.py", *flags])
    with pytest.raises(UserError, match=words):
        label.main()


# ---- what it says ----


def test_the_run_file_says_what_was_scored_by_what(gold, files, monkeypatch, capsys):
    run(monkeypatch, gold, files, "--num-responses", "2")
    facts = run_file(files)
    assert facts["inputs"]["responses"]["sha256"] == sha256(files["responses"])
    assert facts["inputs"]["responses"]["path"] == "responses.json"
    assert facts["config"]["num_responses"] == 2
    captured = capsys.readouterr()
    assert "<|im_end|>⟦\\n⟧" in captured.err
    assert "30 x 2 rewards" in captured.out
    assert "rows with a tie" in captured.out


def test_files_of_different_length_are_refused(gold, files, monkeypatch):
    write_json(files["responses"], [{"response_1": "a"}])
    with pytest.raises(UserError, match="1 rows for 30 prompts"):
        run(monkeypatch, gold, files)


def test_more_responses_than_the_file_has_are_refused(gold, files, monkeypatch):
    with pytest.raises(UserError, match="3 responses per prompt, but --num-responses 4"):
        run(monkeypatch, gold, files, "--num-responses", "4")


def test_a_causal_lm_is_no_reward_model(toy_model_folder, files, monkeypatch):
    with pytest.raises(UserError, match="no reward head"):
        run(monkeypatch, toy_model_folder, files)
    assert not os.path.exists(files["target"])
