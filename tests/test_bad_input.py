"""What is wrong, which script meets it, and the words of its letter: one line that says where, what, and what next, exit
status 2, no traceback, nothing written, nothing that stood there touched. And what looks wrong but is taken as it is.
"""

import fcntl
import importlib
import json
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import CHATML, REPOSITORY, make_model, make_pairs, make_prompt
from safetensors.torch import load_file, save_file

from rmood import records
from rmood.config import run_script
from rmood.model import load_reward_model, save_reward_model

FLAGS = {
    "sample.py": "--model-name sft --prompts-path prompts.json --target-path out/sft.json --backend transformers --max-tokens 4 --device cpu",
    "label.py": "--model-name gold --prompts-path prompts.json --responses-path responses.json --target-path out/rewards.json --dtype float32 --device cpu",
    "preprocess.py": "--prompts-path prompts.json --responses-path responses.json --rewards-path rewards.json --target-path out/pairs.jsonl",
    "train.py": "--model-name sft --data-path pairs.jsonl --output-dir out/rm --lr 1e-3 --epochs 1 --batch-size 4 --tokens-per-pass 1000 --device cpu",
}
USER = {"role": "user", "content": "hi"}


# ---- ways to break things ---------------------------------------------------------------------------------------


def put(name: str, value):
    """The file holds this instead: bytes, text, or a JSON value; None: it is gone."""

    def break_it(here: Path) -> None:
        path = here / name
        path.unlink(missing_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif value is not None:
            path.write_text(value if isinstance(value, str) else json.dumps(value))

    return break_it


def row(name: str, i: int, value):
    """Row i of a JSON list is this instead."""
    return lambda here: put(name, [value if k == i else kept for k, kept in enumerate(json.loads((here / name).read_text()))])(here)


def cut(name: str, share: float):
    """Only this share of the file's bytes is left."""
    return lambda here: put(name, (here / name).read_bytes()[: int((here / name).stat().st_size * share)])(here)


def pairs(change):
    """change(rows) alters the pairs."""

    def break_it(here: Path) -> None:
        rows = make_pairs(8)
        change(rows)
        (here / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    return break_it


def config(folder: str, **changes):
    return lambda here: put(f"{folder}/config.json", json.loads((here / folder / "config.json").read_text()) | changes)(here)


def template(folder: str, text: str | None):
    return put(f"{folder}/chat_template.jinja", text)


def made_by(name: str, **inputs: str):
    """A run file says that `name` was made from these inputs, as they are now."""

    def break_it(here: Path) -> None:
        facts = {"inputs": {role: {"path": path, "sha256": records.sha256(str(here / path))} for role, path in inputs.items()}}
        put(f"{name}.run.json", facts | {"output": {"path": name, "sha256": records.sha256(str(here / name))}})(here)

    return break_it


def both(*ways):
    return lambda here: [way(here) for way in ways]


def head(labels: int):
    def break_it(here: Path) -> None:
        weights = load_file(here / "gold/model.safetensors")
        save_file(weights | {"score.weight": torch.zeros(labels, 32)}, here / "gold/model.safetensors")

    return break_it


def only_a_pickle(here: Path) -> None:
    torch.save(load_file(here / "gold/model.safetensors"), here / "gold/pytorch_model.bin")
    (here / "gold/model.safetensors").unlink()


class Trap:
    """Whoever unpickles it makes the folder /tmp would not have: see test_safety.py for proof that nobody does."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def at_work(name: str, folder: bool = False):
    """Another run is writing there now: its lock is held until the test ends."""

    def break_it(here: Path) -> None:
        (here / name).mkdir(parents=True) if folder else (here / name).write_text("{}\n")
        held = os.open(here / name, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        HELD.append(held)

    return break_it


HELD: list[int] = []


def checkpoint(change):
    """An interrupted run of train.py, then change(its newest checkpoint)."""

    def break_it(here: Path) -> None:
        import train
        from rmood import checkpoint

        class Stopped(Exception):
            pass

        def stop(*_):
            raise Stopped

        kept = checkpoint.RunLog.write
        checkpoint.RunLog.write = lambda log, metrics, timing=None: stop() if metrics["step"] == 2 else kept(log, metrics, timing)
        sys.argv = ["train.py", *FLAGS["train.py"].split(), "--save-every", "1"]
        try:
            train.main()
        except Stopped:
            pass
        finally:
            checkpoint.RunLog.write = kept
        change(checkpoint.checkpoints("out/rm")[-1])

    return break_it


def nothing(here: Path) -> None:
    pass


# ---- the table --------------------------------------------------------------------------------------------------

BAD = {  # what is wrong: (script, further flags, how it comes about, words of the letter)
    # files
    "prompts missing": ("sample.py", "", put("prompts.json", None), "prompts.json: no such file"),
    "prompts a folder": ("sample.py", "--prompts-path sft", nothing, "sft: cannot be read"),
    "prompts empty": ("sample.py", "", put("prompts.json", ""), "prompts.json: the file is empty"),
    "prompts only white": ("sample.py", "", put("prompts.json", " \n\n"), "prompts.json: the file is empty"),
    "prompts without a row": ("sample.py", "", put("prompts.json", []), "at least one row"),
    "responses truncated": ("label.py", "", cut("responses.json", 0.7), "responses.json: not valid JSON at line"),
    "rewards truncated": ("preprocess.py", "", cut("rewards.json", 0.5), "rewards.json: not valid JSON"),
    "pairs truncated": ("train.py", "", cut("pairs.jsonl", 0.9), "pairs.jsonl: line 8: not valid JSON"),
    "prompts not UTF-8": ("sample.py", "", put("prompts.json", b'[{"messages": [{"role": "user", "content": "\xe9"}]}]'), "prompts.json: not UTF-8 text"),
    "half a character": ("label.py", "", put("responses.json", '[{"response_1": "\\ud83d", "response_2": "x"}]'), "responses.json: row 0"),
    "half a character in a prompt": ("sample.py", "", put("prompts.json", '[{"messages": [{"role": "user", "content": "\\udc00"}]}]'), "prompts.json: row 0"),
    "a number of 5,000 digits": ("preprocess.py", "", put("rewards.json", "[[" + "1" * 5000 + ", 1]]"), "rewards.json: "),
    "a reward of 400 digits": ("preprocess.py", "", put("rewards.json", "[[" + "1" * 400 + ", 1]]"), "rewards.json: row 0"),
    "brackets without end": ("preprocess.py", "", put("rewards.json", "[" * 100_000), "rewards.json: "),
    # rows
    "prompts an object": ("sample.py", "", put("prompts.json", {"prompts": []}), "prompts.json"),
    "wrong key": ("sample.py", "", row("prompts.json", 3, {"message": [USER]}), "prompts.json: row 3 has no 'messages'"),
    "unknown role": ("sample.py", "", row("prompts.json", 2, {"messages": [{"role": "human", "content": ""}]}), "row 2: unknown role 'human'"),
    "a role that is no text": ("sample.py", "", row("prompts.json", 2, {"messages": [{"role": ["user"], "content": ""}]}), "row 2: unknown role"),
    "no user turn": ("sample.py", "", row("prompts.json", 1, {"messages": [{"role": "system", "content": "x"}]}), "row 1: no user turn"),
    "no turn": ("sample.py", "", row("prompts.json", 1, {"messages": []}), "row 1: 'messages' must be a list"),
    "content of parts": ("sample.py", "", row("prompts.json", 1, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "row 1: a message needs"),
    "a prompt with its answer": ("sample.py", "", row("prompts.json", 1, {"messages": [USER, {"role": "assistant", "content": "x"}]}), "row 1 ends with an assistant turn"),
    "a response that is null": ("label.py", "", row("responses.json", 4, {"response_1": "x", "response_2": None}), "row 4: 'response' of the wrong type"),
    "a response too few": ("label.py", "", row("responses.json", 4, {"response_1": "x"}), "row 4 has 1 entries, row 0 has 2"),
    "responses misnumbered": ("label.py", "", row("responses.json", 4, {"response_1": "x", "response_3": "y"}), "row 4: the 'response_N' keys"),
    "reward NaN": ("preprocess.py", "", row("rewards.json", 2, [float("nan"), 1.0]), "row 2 has the reward nan"),
    "reward infinite": ("preprocess.py", "", row("rewards.json", 2, [1.0, float("inf")]), "row 2 has the reward inf"),
    "reward a text": ("preprocess.py", "", row("rewards.json", 2, ["1.0", 1.0]), "row 2 has the reward '1.0'"),
    "reward null": ("preprocess.py", "", row("rewards.json", 2, [None, 1.0]), "row 2 has the reward None"),
    "reward true": ("preprocess.py", "", row("rewards.json", 2, [True, 1.0]), "row 2 has the reward True"),
    "rewards flat": ("preprocess.py", "", put("rewards.json", [1.0] * 8), "rewards.json: row 0 is neither a list"),
    "a pair without rejected": ("train.py", "", pairs(lambda rows: rows[5].pop("rejected")), "pairs.jsonl: line 6: a pair needs"),
    "a pair that is a list": ("train.py", "", pairs(lambda rows: rows.__setitem__(5, [])), "pairs.jsonl: line 6"),
    "a pair without an answer": ("train.py", "", pairs(lambda rows: rows[5]["chosen"].pop()), "line 6, chosen: the last turn must be the assistant's"),
    "a pair's reward a text": ("train.py", "", pairs(lambda rows: rows[5].update(chosen_reward="high")), "line 6: chosen_reward is 'high'"),
    "a pair's reward a list": ("train.py", "", pairs(lambda rows: rows[5].update(chosen_reward=[1])), "line 6: chosen_reward is [1]"),
    "no pairs": ("train.py", "", put("pairs.jsonl", "\n"), "pairs.jsonl: the file is empty"),
    # neighbours
    "a prompt too few": ("label.py", "", lambda here: put("prompts.json", json.loads((here / "prompts.json").read_text())[1:])(here), "8 rows for 7 prompts"),
    "a row of rewards too few": ("preprocess.py", "", lambda here: put("rewards.json", json.loads((here / "rewards.json").read_text())[1:])(here), "7 rows for 8 responses"),
    "a reward too many": ("preprocess.py", "", put("rewards.json", [[1.0, 2.0, 3.0]] * 8), "3 rewards for 2 responses a row"),
    "one response only": ("preprocess.py", "", both(put("responses.json", [{"response_1": "x"}] * 8), put("rewards.json", [[1.0]] * 8)), "one response a prompt makes no pair"),
    "more responses asked than there are": ("label.py", "--num-responses 3", nothing, "2 responses a prompt, --num-responses wants 3"),
    "shuffled against its neighbour": (
        "preprocess.py",
        "",
        both(made_by("rewards.json", responses="responses.json"), lambda here: put("responses.json", json.loads((here / "responses.json").read_text())[::-1])(here)),
        "rewards.json: was made from other responses",
    ),
    "from another run": ("label.py", "", both(made_by("responses.json", prompts="prompts.json"), row("prompts.json", 0, {"messages": [USER]})), "was made from other prompts"),
    "changed by hand": ("preprocess.py", "", both(made_by("rewards.json"), row("rewards.json", 0, [9.0, 1.0])), "rewards.json: changed after it was written"),
    "a run file cut short": ("preprocess.py", "", both(made_by("rewards.json"), cut("rewards.json.run.json", 0.5)), "rewards.json.run.json: not valid JSON"),
    "a run file of something else": ("preprocess.py", "", put("rewards.json.run.json", [1]), "rewards.json.run.json"),
    "a run file with lists in it": ("preprocess.py", "", put("rewards.json.run.json", {"inputs": [1], "output": 3}), "rewards.json.run.json: not a run file"),
    "labelled other texts": (
        "preprocess.py",
        "",
        put("rewards.json", [{"messages": make_prompt(i), "response_1": "other", "reward_1": 1.0, "response_2": "text", "reward_2": 2.0} for i in range(8)]),
        "row 0 holds another text than responses.json",
    ),
    "only ties": ("preprocess.py", "", put("rewards.json", [[1.0, 1.0]] * 8), "no pair is left of 8 (8 equal gold reward)"),
    # lengths
    "a prompt longer than the limit": ("label.py", "--max-length 64", row("prompts.json", 1, {"messages": [{"role": "user", "content": "cat " * 100}]}), "raise it, or drop the row"),
    "a prompt longer than the context": ("sample.py", "", row("prompts.json", 1, {"messages": [{"role": "user", "content": "Q" * 600}]}), "prompts.json: row 1 has"),
    "every pair too long": ("train.py", "--max-length 8", nothing, "all 8 pairs are longer than 8 tokens"),
    "a budget smaller than the longest pair": ("train.py", "--tokens-per-pass 20", nothing, "a pass only 20: raise --tokens-per-pass"),
    "a budget smaller than a prompt's responses": ("label.py", "--tokens-per-pass 20", nothing, "a pass only 20: raise --tokens-per-pass"),
    # templates and tokenizers
    "a tokenizer without a chat template": ("label.py", "", template("gold", None), "gold: its tokenizer has no chat template: give one with --chat-template"),
    "a template that raises": ("label.py", "", template("gold", "{{ raise_exception('no system turns') }}"), "the chat template refuses the turns [system, user, assistant] (no system turns)"),
    "a template with a mistake": ("train.py", "", template("sft", "{% for m in messages %}"), "the chat template refuses"),
    "a template that divides by zero": ("train.py", "", template("sft", "{{ 1 / 0 }}"), "the chat template refuses"),
    "a template that writes nothing": ("train.py", "", template("sft", "{# nothing #}"), "the chat template writes nothing"),
    "a template file that is missing": ("train.py", "--chat-template none.jinja", nothing, "none.jinja: the chat template cannot be read"),
    "a tokenizer cut short": ("label.py", "", cut("gold/tokenizer.json", 0.5), "gold: no tokenizer could be loaded"),
    # models
    "a model that is nowhere": ("train.py", "--model-name nowhere/at-all", nothing, "nowhere/at-all: no model could be loaded"),
    "a model that is a file": ("train.py", "--model-name pairs.jsonl", nothing, "pairs.jsonl: no "),
    "vocabulary larger than the embedding": ("label.py", "", lambda here: (make_model("qwen3", vocab_size=20).save_pretrained(here / "small"), head_of(here, "small")), "lies outside the model's 20 embeddings"),
    "the same for sampling": ("sample.py", "--model-name small", lambda here: small(here), "lies outside the model's 20 embeddings"),
    "a head of two labels": ("label.py", "", head(2), "its head has shape (2, 32)"),
    "no head": ("label.py", "--model-name sft", nothing, "sft: has no reward head"),
    "a folder half written": ("label.py", "", put("gold/config.json", None), "gold: "),
    "a config cut short": ("label.py", "", cut("gold/config.json", 0.5), "gold: "),
    "safetensors cut short": ("label.py", "", cut("gold/model.safetensors", 0.5), "gold: the model could not be loaded"),
    "safetensors cut short, for training": ("train.py", "", cut("sft/model.safetensors", 0.5), "sft: the model could not be loaded"),
    "safetensors cut short, for sampling": ("sample.py", "", cut("sft/model.safetensors", 0.5), "sft: the model could not be loaded"),
    "a pickle in place of safetensors": ("label.py", "", only_a_pickle, "gold: the model could not be loaded"),
    "a pickle by the name of safetensors": ("label.py", "", put("gold/model.safetensors", pickle.dumps(Trap())), "gold: the model could not be loaded"),
    "config of another architecture": ("label.py", "", config("gold", model_type="gpt2", architectures=["GPT2LMHeadModel"]), "gold: "),
    "config of an unknown architecture": ("label.py", "", config("gold", model_type="of-my-own"), "gold: the model could not be loaded"),
    "config of another size": ("label.py", "", config("gold", intermediate_size=128), "of the wrong shape"),
    "config that speaks of weights that are not there": ("label.py", "", config("gold", attention_bias=True), "weights are missing or of the wrong shape"),
    "config at odds with itself": ("label.py", "", config("gold", num_hidden_layers=3), "num_hidden_layers"),
    "the same for sampling, of weights that are not there": ("sample.py", "", config("sft", attention_bias=True), "weights are missing or of the wrong shape"),
    "an encoder without a classifier": ("train.py", "", config("sft", model_type="whisper"), "sft: "),
    # flags
    "an unknown flag with a near name": ("train.py", "--epoch 3", nothing, "train.py: unknown argument --epoch: did you mean --epochs?"),
    "lr 0": ("train.py", "--lr 0", nothing, "--lr 0.0: must be above 0"),
    "lr negative": ("train.py", "--lr=-1e-5", nothing, "--lr -1e-05: must be above 0"),
    "lr nan": ("train.py", "--lr nan", nothing, "--lr nan: must be above 0"),
    "epochs 0": ("train.py", "--epochs 0", nothing, "--epochs 0: must be at least 1"),
    "batch 0": ("train.py", "--batch-size 0", nothing, "--batch-size 0: must be at least 1"),
    "temperature nan": ("sample.py", "--temperature nan", nothing, "--temperature nan: must be at least 0"),
    "margins of gold without gold": ("train.py", "--margin-scale 1", pairs(lambda rows: [row.pop("chosen_reward") for row in rows]), "need gold's rewards"),
    # where it should go
    "an output folder that is a file": ("train.py", "--output-dir pairs.jsonl", nothing, "pairs.jsonl/metrics.jsonl: cannot be written"),
    "a target that is a folder": ("label.py", "--target-path sft", nothing, "sft: cannot be written"),
    "a target below a file": ("preprocess.py", "--target-path pairs.jsonl/new/pairs.jsonl", nothing, "cannot be written"),
    "a model that stands": ("train.py", "--output-dir gold", nothing, "gold: holds a model: pass --overwrite"),
    "an unfinished run": ("train.py", "", checkpoint(lambda folder: None), "out/rm: holds an unfinished run: pass --resume auto"),
    "other settings than the unfinished run's": ("train.py", "--resume auto --save-every 1 --lr 2e-3", checkpoint(lambda folder: None), "--lr 0.001 -> 0.002"),
    "a checkpoint cut short": ("train.py", "--resume auto --save-every 1", checkpoint(lambda folder: cut("shard-0-of-1.safetensors", 0.5)(folder)), "cannot be read"),
    "a checkpoint that lost a file": ("train.py", "--resume auto --save-every 1", checkpoint(lambda folder: (folder / "checkpoint.json").unlink()), "cannot be read"),
    "a folder used by another run": ("train.py", "--resume auto", at_work("out/rm", folder=True), "out/rm: another run is writing"),
    "a journal used by another run": ("label.py", "", at_work("out/rewards.json.journal-0"), "out/rewards.json.journal-0: another run is writing"),
    "a journal of other work": ("label.py", "", put("out/rewards.json.journal-0", '{"other": 1}\n[0, [1.0, 2.0]]\n'), "holds unfinished work with other settings"),
    "a journal that is damaged": ("label.py", "", put("out/rewards.json.journal-0", b"\x00\x01\n[0, \xff\n"), "out/rewards.json.journal-0"),
    "RMOOD_HOME that does not exist": ("train.py", "", lambda here: os.environ.__setitem__("RMOOD_HOME", "/nowhere"), "RMOOD_HOME=/nowhere: no such folder"),
}


def small(here: Path) -> None:
    make_model("qwen3", vocab_size=20).save_pretrained(here / "small")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(here / "sft" / file, here / "small")


def head_of(here: Path, folder: str) -> None:
    """The folder becomes the gold model."""
    save_file(load_file(here / folder / "model.safetensors") | {"score.weight": torch.ones(1, 32)}, here / "gold/model.safetensors")
    shutil.copy(here / folder / "config.json", here / "gold")


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_model_folder, toy_tokenizer) -> Path:
    """Good files of 8 prompts, two models, and outputs of an earlier day."""
    here = tmp_path_factory.mktemp("world")
    records.write_json(str(here / "prompts.json"), [{"messages": make_prompt(i)} for i in range(8)])
    records.write_json(str(here / "responses.json"), [{"response_1": f"cat {i}", "response_2": f"dog {i}"} for i in range(8)])
    records.write_json(str(here / "rewards.json"), [[1.0 + i, 0.0] for i in range(8)])
    records.write_jsonl(str(here / "pairs.jsonl"), make_pairs(8))
    shutil.copytree(toy_model_folder, here / "sft")
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(str(here / "gold"), model.state_dict(), model, toy_tokenizer, torch.float32, {})
    (here / "out").mkdir()
    for name in ("sft.json", "rewards.json", "pairs.jsonl"):
        (here / "out" / name).write_text("of an earlier day\n")
    return here


@pytest.fixture
def here(world, tmp_path, monkeypatch):
    """A copy of the world to break, as the working folder and as RMOOD_HOME."""
    shutil.copytree(world, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path / "here"))
    monkeypatch.setattr(sys, "argv", [])
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    yield tmp_path / "here"
    signal.signal(signal.SIGTERM, before[0]), signal.signal(signal.SIGINT, before[1])
    for held in [*HELD, *records._locks.values()]:
        os.close(held)
    HELD.clear(), records._locks.clear()


def contents(here: Path) -> dict[str, tuple]:
    """Every file and folder: its bytes, mode and time of writing."""
    return {str(path): (path.read_bytes() if path.is_file() else None, path.stat().st_mode, path.stat().st_mtime_ns if path.is_file() else 0) for path in here.rglob("*")}


def run(script: str, flags: str) -> int:
    """The script's exit status, its main called here."""
    sys.argv = [script, *FLAGS[script].split(), *flags.split()]
    with pytest.raises(SystemExit) as stop:
        run_script(importlib.import_module(script.removesuffix(".py")).main)
    return stop.value.code


def test_there_are_sixty_cases_and_more():
    assert len(BAD) >= 60 and {case[0] for case in BAD.values()} == set(FLAGS)


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_a_letter_and_nothing_is_written(case, here, capfd):
    script, flags, break_it, words = BAD[case]
    break_it(here)
    before = contents(here)
    capfd.readouterr()
    status = run(script, flags)
    out, err = capfd.readouterr()
    assert status == 2 and "Traceback" not in err and out == "", err
    letter = err.splitlines()[-1]
    assert words in letter and letter.count(": ") >= 1 and len(letter) < 600, err
    after = contents(here)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} == set()
    assert not list(here.rglob("unpickled"))


# ---- what is taken as it is -------------------------------------------------------------------------------------


def answers(first: str, second: str = "dog"):
    return put("responses.json", [{"response_1": first, "response_2": second}] * 8)


def answered(text: str):
    """The chosen answer of pair 3 is this."""
    return pairs(lambda rows: rows[3]["chosen"][-1].update(content=text))


TAKEN = {  # what looks wrong: (script, further flags, how it comes about, words that are said)
    "an empty response": ("label.py", "", answers(""), "8 x 2 rewards"),
    "a response of white space": ("label.py", "", answers(" \n\t"), "8 x 2 rewards"),
    "an empty response chosen": ("train.py", "", answered(""), "kept 8 of 8 pairs"),
    "identical responses that gold tells apart": ("preprocess.py", "", answers("same", "same"), "kept 8 of 8 pairs"),
    "identical responses, not wanted": ("preprocess.py", "--drop-identical", lambda here: (answers("same", "same")(here), row("responses.json", 0, {"response_1": "a", "response_2": "b"})(here)), "dropped 7: 7 identical responses"),
    "emoji and control characters": ("label.py", "", answers("\U0001f600\x00\x1b[31m\u2028\u202e\r\n", "\x7f"), "8 x 2 rewards"),
    "emoji and control characters chosen": ("train.py", "", answered("\U0001f600\x00\x1b[31m\u2028\u202e\r\n"), "kept 8 of 8 pairs"),
    "the template's own tokens in a response": ("train.py", "", answered("<|im_end|>\n<|im_start|>user\nhi"), "kept 8 of 8 pairs"),
    "duplicate prompts": ("preprocess.py", "", put("prompts.json", [{"messages": make_prompt(0)}] * 8), "kept 8 of 8 pairs"),
    "a response of 100,000 tokens": ("label.py", "--max-length 256", row("responses.json", 2, {"response_1": "Q" * 100_000, "response_2": "x"}), "1 of 16 conversations were cut to 256 tokens (their closing tokens kept)"),
    "an answer of 100,000 tokens": ("train.py", "", answered("Q" * 100_000), "kept 7 of 8 pairs; dropped 1: over 2048 tokens"),
    "pad equal to eos": ("train.py", "", lambda here: put("sft/tokenizer_config.json", json.loads((here / "sft/tokenizer_config.json").read_text()) | {"pad_token": "<|im_end|>"})(here), "out/rm: saved"),
    "fewer pairs than a step": ("train.py", "--batch-size 1000", nothing, "1 steps, 1 of them warmup"),
    "one pair": ("train.py", "", put("pairs.jsonl", json.dumps(make_pairs(1)[0])), "kept 1 of 1 pairs"),
    "a folder that does not exist yet": ("label.py", "--target-path out/new/folder/rewards.json", nothing, "8 x 2 rewards"),
    "a journal that finished nothing": ("label.py", "", put("out/rewards.json.journal-0", b'{"half a li'), "8 x 2 rewards"),
    "rewards in whole numbers": ("preprocess.py", "", put("rewards.json", [[1, 0]] * 8), "kept 8 of 8 pairs"),
}


@pytest.mark.parametrize("case", TAKEN)
def test_what_looks_wrong_but_is_taken_as_it_is(case, here, capfd):
    script, flags, break_it, words = TAKEN[case]
    break_it(here)
    status = run(script, flags)
    said = "".join(capfd.readouterr())
    assert status == 0 and words in said, said
    if script == "preprocess.py":
        made = [pair.chosen[-1]["content"] for pair in records.read_pairs("out/pairs.jsonl")]
        assert set(made) <= {text for texts in records.read_responses("responses.json") for text in texts}
    assert not [path for path in here.rglob("*") if "journal" in path.name or ".tmp" in path.name]


# ---- a full disk, and several processes -------------------------------------------------------------------------


@pytest.mark.parametrize("script, room", [("sample.py", 300), ("label.py", 400), ("preprocess.py", 1000), ("train.py", 20_000), ("train.py", 300_000)])
def test_a_full_disk_is_a_letter_and_what_stood_there_stands(script, room, here, capsys):
    """No file may grow beyond `room` bytes: writing fails as it does on a full disk, in the journal, a checkpoint or the model."""
    before, (soft, hard) = contents(here), resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        sys.argv = [script, *FLAGS[script].split(), *(["--save-every", "1"] if script == "train.py" else [])]
        with pytest.raises(SystemExit) as stop:
            run_script(importlib.import_module(script.removesuffix(".py")).main)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    err = capsys.readouterr().err
    assert stop.value.code == 2 and "cannot be written" in err.splitlines()[-1] and "Traceback" not in err, err
    after = contents(here)
    assert {path for path in before if before[path] != after.get(path)} == set()
    assert not [path for path in after if path not in before and Path(path).name in ("config.json", "model.safetensors")]
    if script != "train.py":
        assert run(script, "") == 0  # with room again the same command goes on


@pytest.mark.parametrize(
    "script, flags, words",
    [
        ("train.py", "--data-path none.jsonl", "none.jsonl: no such file"),  # before the processes meet
        ("train.py", "--tokens-per-pass 20", "a pass only 20"),  # after
    ],
)
def test_two_processes_write_one_letter_and_do_not_hang(script, flags, words, here):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(REPOSITORY / script), *FLAGS[script].split(), *flags.split()]
    before = contents(here)
    result = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=120)
    ours = result.stderr.partition("torch/distributed/elastic")[0]  # after it torchrun's own report of a failed process
    assert result.returncode != 0 and result.stderr.count(words) == 1 and "Traceback" not in ours, result.stderr
    assert contents(here) == before


def test_a_script_by_itself_writes_one_line_and_status_2(here):
    result = subprocess.run([sys.executable, str(REPOSITORY / "preprocess.py"), *FLAGS["preprocess.py"].split(), "--rewards-path", "none.json"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "none.json: no such file: check the path, or run the script that writes it\n"
