"""Bad input: which script meets it, and what its error message says.

One line that says where, what, and what next; exit status 2; no traceback; nothing written, and
no file that was there touched. And input that looks wrong but is accepted as it is.
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
import threading
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_model, make_pairs, make_prompt
from safetensors.torch import load_file, save_file

from rmood.checkpoint import checkpoints
from rmood.errors import run_script
from rmood.export import save_reward_model
from rmood.files import provenance
from rmood.files.provenance import sha256
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_pairs, read_responses
from rmood.loading import load_reward_model
from rmood.runlog import RunLog

FLAGS = {
    "sample.py": """
        --model-name sft --prompts-path prompts.json --target-path out/sft.json
        --backend transformers --max-tokens 4 --device cpu --overwrite
    """.split(),
    "label.py": """
        --model-name gold --prompts-path prompts.json --responses-path responses.json
        --target-path out/rewards.json --dtype float32 --device cpu --overwrite
    """.split(),
    "preprocess.py": """
        --prompts-path prompts.json --responses-path responses.json --rewards-path rewards.json
        --target-path out/pairs.jsonl --overwrite
    """.split(),
    "train.py": """
        --model-name sft --data-path pairs.jsonl --output-dir out/rm --lr 1e-3 --epochs 1
        --batch-size 4 --tokens-per-pass 1000 --device cpu
    """.split(),
}
USER = {"role": "user", "content": "hi"}


# ---- ways to break things: each returns a function of the folder ------------------------------


def nothing(here: Path) -> None:
    pass


def put(name: str, value):
    """The file holds this instead: bytes, text, or a JSON value. None: it is gone."""

    def break_it(here: Path) -> None:
        path = here / name
        path.unlink(missing_ok=True)
        if isinstance(value, bytes):
            path.write_bytes(value)
        elif isinstance(value, str):
            path.write_text(value)
        elif value is not None:
            path.write_text(json.dumps(value))

    return break_it


def change(name: str, function):
    """The JSON value of the file is function(what it was)."""

    def break_it(here: Path) -> None:
        value = json.loads((here / name).read_text())
        put(name, function(value))(here)

    return break_it


def row(name: str, i: int, value):
    """Row i of a JSON list is this instead."""
    return change(name, lambda rows: [*rows[:i], value, *rows[i + 1 :]])


def cut(name: str, share: float):
    """Only this share of the file's bytes is left."""

    def break_it(here: Path) -> None:
        content = (here / name).read_bytes()
        put(name, content[: int(len(content) * share)])(here)

    return break_it


def both(first, second):
    def break_it(here: Path) -> None:
        first(here)
        second(here)

    return break_it


def record(i: int, first: str, second: str) -> dict:
    """A row of a rewards file in record form."""
    row = {"messages": make_prompt(i)}
    return row | {"response_1": first, "reward_1": 1.0, "response_2": second, "reward_2": 2.0}


def answers(first: str, second: str = "dog"):
    """All prompts have these two responses."""
    return put("responses.json", [{"response_1": first, "response_2": second}] * 8)


def pairs(change_rows):
    """change_rows(the rows of the pairs file) changes them in place."""

    def break_it(here: Path) -> None:
        rows = make_pairs(8)
        change_rows(rows)
        put("pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows))(here)

    return break_it


def answered(text: str):
    """The chosen answer of pair 3 is this."""
    return pairs(lambda rows: rows[3]["chosen"][-1].update(content=text))


def sixth_is_a_list(rows: list) -> None:
    rows[5] = []


def without_gold(rows: list) -> None:
    for row in rows:
        del row["chosen_reward"]


def config(folder: str, **changes):
    return change(f"{folder}/config.json", lambda config: config | changes)


def template(folder: str, text: str | None):
    return put(f"{folder}/chat_template.jinja", text)


def made_by(name: str, **inputs: str):
    """A run file says that `name` was made from these inputs, as they are now."""

    def break_it(here: Path) -> None:
        files = {}
        for role, path in inputs.items():
            files[role] = {"path": path, "sha256": sha256(str(here / path))}
        output = {"path": name, "sha256": sha256(str(here / name))}
        put(f"{name}.run.json", {"inputs": files, "output": output})(here)

    return break_it


def head(labels: int):
    """Gold's head has this many labels."""

    def break_it(here: Path) -> None:
        path = here / "gold/model.safetensors"
        save_file(load_file(path) | {"score.weight": torch.zeros(labels, 32)}, path)

    return break_it


def only_a_pickle(here: Path) -> None:
    torch.save(load_file(here / "gold/model.safetensors"), here / "gold/pytorch_model.bin")
    (here / "gold/model.safetensors").unlink()


class Trap:
    """Unpickling it makes a folder; test_safety.py proves that this would be seen."""

    def __reduce__(self):
        return os.mkdir, ("unpickled",)


def small_model(here: Path) -> None:
    """The folder small: a model of 20 embeddings, with the tokenizer of a larger one."""
    make_model("qwen3", vocab_size=20).save_pretrained(here / "small")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(here / "sft" / file, here / "small")


def small_model_is_gold(here: Path) -> None:
    weights = load_file(here / "small/model.safetensors")
    save_file(weights | {"score.weight": torch.ones(1, 32)}, here / "gold/model.safetensors")
    shutil.copy(here / "small/config.json", here / "gold")


HELD: list[int] = []  # descriptors of files locked by locked()


def locked(name: str, folder: bool = False):
    """Another run is writing there: its lock is held until the test ends."""

    def break_it(here: Path) -> None:
        if folder:
            (here / name).mkdir(parents=True)
        else:
            (here / name).write_text("{}\n")
        descriptor = os.open(here / name, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        HELD.append(descriptor)

    return break_it


class Stopped(Exception):
    pass


def checkpoint(break_checkpoint):
    """A run of train.py stopped at step 2, then break_checkpoint(its newest checkpoint)."""

    def break_it(here: Path) -> None:
        import train

        write = RunLog.write

        def write_or_stop(log, metrics, *rest, **more):
            if metrics["step"] == 2:
                raise Stopped
            write(log, metrics, *rest, **more)

        sys.argv = ["train.py", *FLAGS["train.py"], "--save-every", "1"]
        RunLog.write = write_or_stop
        try:
            train.main()
        except Stopped:
            pass
        finally:
            RunLog.write = write
        for thread in threading.enumerate():
            if thread.name == "checkpoint writer":
                thread.join()
        break_checkpoint(checkpoints("out/rm")[-1])

    return break_it


def home_is_nowhere(here: Path) -> None:
    os.environ["RMOOD_HOME"] = "/nowhere"


# ---- refused: what is wrong -> (how it is broken, words of the message, further flags) ---------

BAD_SAMPLE = {
    # files
    "prompts missing": (put("prompts.json", None), "prompts.json: no such file"),
    "prompts a folder": (nothing, "sft: cannot be read", "--prompts-path sft"),
    "prompts empty": (put("prompts.json", ""), "prompts.json: the file is empty"),
    "prompts of white space only": (
        put("prompts.json", " \n\n"),
        "prompts.json: the file is empty",
    ),
    "prompts without a row": (put("prompts.json", []), "at least one row"),
    "prompts not UTF-8": (
        put("prompts.json", b'[{"messages": [{"role": "user", "content": "\xe9"}]}]'),
        "prompts.json: not UTF-8 text",
    ),
    "half a character in a prompt": (
        put("prompts.json", '[{"messages": [{"role": "user", "content": "\\udc00"}]}]'),
        "prompts.json: row 0",
    ),
    # rows
    "prompts an object": (put("prompts.json", {"prompts": []}), "prompts.json"),
    "wrong key": (
        row("prompts.json", 3, {"message": [USER]}),
        "prompts.json: row 3 has no 'messages'",
    ),
    "unknown role": (
        row("prompts.json", 2, {"messages": [{"role": "narrator", "content": ""}]}),
        "row 2: unknown role 'narrator'",
    ),
    "a role that is not text": (
        row("prompts.json", 2, {"messages": [{"role": ["user"], "content": ""}]}),
        "row 2: unknown role",
    ),
    "no user turn": (
        row("prompts.json", 1, {"messages": [{"role": "system", "content": "x"}]}),
        "row 1: no user turn",
    ),
    "no turn": (row("prompts.json", 1, {"messages": []}), "row 1: 'messages' must be a list"),
    "content of parts": (
        row("prompts.json", 1, {"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
        "row 1: a message needs",
    ),
    "a prompt with its answer": (
        row("prompts.json", 1, {"messages": [USER, {"role": "assistant", "content": "x"}]}),
        "row 1 ends with an assistant turn",
    ),
    # lengths
    "a prompt longer than the context": (
        row("prompts.json", 1, {"messages": [{"role": "user", "content": "Q" * 600}]}),
        "prompts.json: row 1 has",
    ),
    # models
    "vocabulary larger than the embedding, for sampling": (
        small_model,
        "lies outside the model's 20 embeddings",
        "--model-name small",
    ),
    "safetensors cut short, for sampling": (
        cut("sft/model.safetensors", 0.5),
        "sft: the model could not be loaded",
    ),
    "config of more weights than there are, for sampling": (
        config("sft", attention_bias=True),
        "weights are missing or of the wrong shape",
    ),
    # flags
    "temperature nan": (nothing, "--temperature nan: must be at least 0", "--temperature nan"),
}
BAD_LABEL = {
    # files
    "responses truncated": (cut("responses.json", 0.7), "responses.json: not valid JSON at line"),
    "half a character": (
        put("responses.json", '[{"response_1": "\\ud83d", "response_2": "x"}]'),
        "responses.json: row 0",
    ),
    # rows
    "a response that is null": (
        row("responses.json", 4, {"response_1": "x", "response_2": None}),
        "row 4: 'response' of the wrong type",
    ),
    "responses misnumbered": (
        row("responses.json", 4, {"response_1": "x", "response_3": "y"}),
        "row 4: the 'response_N' keys",
    ),
    # files that do not belong together
    "a prompt too few": (
        change("prompts.json", lambda rows: rows[1:]),
        "8 rows for 7 prompts",
    ),
    "more responses asked than there are": (
        nothing,
        "2 responses per prompt, but --num-responses 3",
        "--num-responses 3",
    ),
    "from another run": (
        both(
            made_by("responses.json", prompts="prompts.json"),
            row("prompts.json", 0, {"messages": [USER]}),
        ),
        "was made from other prompts",
    ),
    # lengths
    "a prompt longer than the limit": (
        row("prompts.json", 1, {"messages": [{"role": "user", "content": "cat " * 100}]}),
        "raise it, or drop the row",
        "--max-length 64",
    ),
    "a budget smaller than a prompt's responses": (
        nothing,
        "more than --tokens-per-pass 20: raise",
        "--tokens-per-pass 20",
    ),
    # templates and tokenizers
    "a tokenizer without a chat template": (
        template("gold", None),
        "gold: its tokenizer has no chat template: give one with --chat-template",
    ),
    "a template that raises": (
        template("gold", "{{ raise_exception('no system turns') }}"),
        "the chat template refuses the turns [system, user, assistant] (no system turns)",
    ),
    "a tokenizer cut short": (
        cut("gold/tokenizer.json", 0.5),
        "gold: no tokenizer could be loaded",
    ),
    # models
    "vocabulary larger than the embedding": (
        both(small_model, small_model_is_gold),
        "lies outside the model's 20 embeddings",
    ),
    "a head of two labels": (head(2), "its head has shape (2, 32)"),
    "no head": (nothing, "sft: has no reward head", "--model-name sft"),
    "a folder half written": (put("gold/config.json", None), "gold: "),
    "a config cut short": (cut("gold/config.json", 0.5), "gold: "),
    "safetensors cut short": (
        cut("gold/model.safetensors", 0.5),
        "gold: the model could not be loaded",
    ),
    "a pickle in place of safetensors": (only_a_pickle, "gold: the model could not be loaded"),
    "a pickle by the name of safetensors": (
        put("gold/model.safetensors", pickle.dumps(Trap())),
        "gold: the model could not be loaded",
    ),
    "config of another architecture": (
        config("gold", model_type="gpt2", architectures=["GPT2LMHeadModel"]),
        "gold: ",
    ),
    "config of an unknown architecture": (
        config("gold", model_type="of-my-own"),
        "gold: the model could not be loaded",
    ),
    "config of another size": (config("gold", intermediate_size=128), "of the wrong shape"),
    "config of more weights than there are": (
        config("gold", attention_bias=True),
        "weights are missing or of the wrong shape",
    ),
    "config that contradicts itself": (config("gold", num_hidden_layers=3), "num_hidden_layers"),
    # output
    "a target that is a folder": (nothing, "sft: cannot be written", "--target-path sft"),
    "a target of somebody else": (
        nothing,
        "out/rewards.json: already there, and no run file says how it was made",
        "--no-overwrite",
    ),
    "a server that is not there": (
        nothing,
        "http://127.0.0.1:9: no answer",
        "--url http://127.0.0.1:9",
    ),
    "a journal used by another run": (
        locked("out/rewards.json.journal-0"),
        "out/rewards.json.journal-0: another run is writing",
    ),
    "a journal of other work": (
        put("out/rewards.json.journal-0", '{"other": 1}\n[0, [1.0, 2.0]]\n'),
        "holds unfinished work with other settings",
    ),
    "a journal that is damaged": (
        put("out/rewards.json.journal-0", b"\x00\x01\n[0, \xff\n"),
        "out/rewards.json.journal-0",
    ),
}
BAD_PREPROCESS = {
    # files
    "rewards truncated": (cut("rewards.json", 0.5), "rewards.json: not valid JSON"),
    "a number of 5,000 digits": (
        put("rewards.json", "[[" + "1" * 5000 + ", 1]]"),
        "rewards.json: ",
    ),
    "a reward of 400 digits": (
        put("rewards.json", "[[" + "1" * 400 + ", 1]]"),
        "rewards.json: row 0",
    ),
    "brackets without end": (put("rewards.json", "[" * 100_000), "rewards.json: "),
    # rows
    "reward NaN": (row("rewards.json", 2, [float("nan"), 1.0]), "row 2 has the reward nan"),
    "reward infinite": (row("rewards.json", 2, [1.0, float("inf")]), "row 2 has the reward inf"),
    "reward a text": (row("rewards.json", 2, ["1.0", 1.0]), "row 2 has the reward '1.0'"),
    "reward null": (row("rewards.json", 2, [None, 1.0]), "row 2 has the reward None"),
    "reward true": (row("rewards.json", 2, [True, 1.0]), "row 2 has the reward True"),
    "rewards flat": (put("rewards.json", [1.0] * 8), "rewards.json: row 0 is neither a list"),
    # files that do not belong together
    "a row of rewards too few": (
        change("rewards.json", lambda rows: rows[1:]),
        "7 rows for 8 responses",
    ),
    "a reward too many": (
        put("rewards.json", [[1.0, 2.0, 3.0]] * 8),
        "row 0 has 3 rewards for 2 responses",
    ),
    "one response only": (
        both(put("responses.json", [{"response_1": "x"}] * 8), put("rewards.json", [[1.0]] * 8)),
        "one response per prompt makes no pair",
    ),
    "responses shuffled after labelling": (
        both(
            made_by("rewards.json", responses="responses.json"),
            change("responses.json", lambda rows: rows[::-1]),
        ),
        "rewards.json: was made from other responses",
    ),
    "a run file cut short": (
        both(made_by("rewards.json"), cut("rewards.json.run.json", 0.5)),
        "rewards.json.run.json: not valid JSON",
    ),
    "a run file of something else": (put("rewards.json.run.json", [1]), "rewards.json.run.json"),
    "a run file with lists in it": (
        put("rewards.json.run.json", {"inputs": [1], "output": 3}),
        "rewards.json.run.json: not a run file",
    ),
    "labelled other texts": (
        put("rewards.json", [record(i, "other", "text") for i in range(8)]),
        "row 0 holds another text than responses.json",
    ),
    "only ties": (
        put("rewards.json", [[1.0, 1.0]] * 8),
        "no pair is left of 8 (8 equal gold reward)",
    ),
    # output
    "a target below a file": (
        nothing,
        "cannot be written",
        "--target-path pairs.jsonl/new/pairs.jsonl",
    ),
    "a target that no run file is beside": (
        nothing,
        "out/pairs.jsonl: already there, and no run file says how it was made",
        "--no-overwrite",
    ),
}
BAD_TRAIN = {
    # files
    "pairs truncated": (cut("pairs.jsonl", 0.9), "pairs.jsonl: line 8: not valid JSON"),
    # rows
    "a pair without rejected": (
        pairs(lambda rows: rows[5].pop("rejected")),
        "pairs.jsonl: line 6: a pair needs",
    ),
    "a pair that is a list": (pairs(sixth_is_a_list), "pairs.jsonl: line 6"),
    "a pair without an answer": (
        pairs(lambda rows: rows[5]["chosen"].pop()),
        "line 6, chosen: the last turn must be the assistant's",
    ),
    "a pair's reward a text": (
        pairs(lambda rows: rows[5].update(chosen_reward="high")),
        "line 6: chosen_reward is 'high'",
    ),
    "a pair's reward a list": (
        pairs(lambda rows: rows[5].update(chosen_reward=[1])),
        "line 6: chosen_reward is [1]",
    ),
    "no pairs": (put("pairs.jsonl", "\n"), "pairs.jsonl: the file is empty"),
    # lengths
    "every pair too long": (nothing, "all 8 pairs are longer than 8 tokens", "--max-length 8"),
    "a budget smaller than the longest pair": (
        nothing,
        "more than --tokens-per-pass 20: raise",
        "--tokens-per-pass 20",
    ),
    # templates and tokenizers
    "a template with a mistake": (
        template("sft", "{% for m in messages %}"),
        "the chat template refuses",
    ),
    "a template that divides by zero": (
        template("sft", "{{ 1 / 0 }}"),
        "the chat template refuses",
    ),
    "a template that writes nothing": (
        template("sft", "{# nothing #}"),
        "the chat template writes nothing",
    ),
    "a template file that is missing": (
        nothing,
        "none.jinja: the chat template cannot be read",
        "--chat-template none.jinja",
    ),
    # models
    "a model that is nowhere": (
        nothing,
        "nowhere/at-all: no model could be loaded",
        "--model-name nowhere/at-all",
    ),
    "a model that is a file": (nothing, "pairs.jsonl: no ", "--model-name pairs.jsonl"),
    "safetensors cut short, for training": (
        cut("sft/model.safetensors", 0.5),
        "sft: the model could not be loaded",
    ),
    "an encoder without a classifier": (config("sft", model_type="whisper"), "sft: "),
    # flags
    "an unknown flag with a near name": (
        nothing,
        "train.py: unknown argument --epoch: did you mean --epochs?",
        "--epoch 3",
    ),
    "lr 0": (nothing, "--lr 0.0: must be above 0", "--lr 0"),
    "lr negative": (nothing, "--lr -1e-05: must be above 0", "--lr=-1e-5"),
    "lr nan": (nothing, "--lr nan: must be above 0", "--lr nan"),
    "epochs 0": (nothing, "--epochs 0: must be at least 1", "--epochs 0"),
    "batch 0": (nothing, "--batch-size 0: must be at least 1", "--batch-size 0"),
    "margins of gold without gold": (
        pairs(without_gold),
        "need gold's rewards",
        "--margin-scale 1",
    ),
    # output
    "an output folder that is a file": (
        nothing,
        "pairs.jsonl/metrics.jsonl: cannot be written",
        "--output-dir pairs.jsonl",
    ),
    "a folder that holds a model": (
        nothing,
        "gold: holds a model: pass --overwrite",
        "--output-dir gold",
    ),
    "an unfinished run": (
        checkpoint(nothing),
        "out/rm: holds an unfinished run: pass --resume auto",
    ),
    "other settings than the unfinished run's": (
        checkpoint(nothing),
        "--lr 0.001 -> 0.002",
        "--resume auto --save-every 1 --lr 2e-3",
    ),
    "a checkpoint cut short": (
        checkpoint(cut("shard-0-of-1.safetensors", 0.5)),
        "cannot be read",
        "--resume auto --save-every 1",
    ),
    "a checkpoint that lost a file": (
        checkpoint(put("checkpoint.json", None)),
        "cannot be read",
        "--resume auto --save-every 1",
    ),
    "a folder used by another run": (
        locked("out/rm", folder=True),
        "out/rm: another run is writing",
        "--resume auto",
    ),
    "RMOOD_HOME that does not exist": (
        home_is_nowhere,
        "RMOOD_HOME=/nowhere: no such folder",
    ),
}

BAD = {
    "sample.py": BAD_SAMPLE,
    "label.py": BAD_LABEL,
    "preprocess.py": BAD_PREPROCESS,
    "train.py": BAD_TRAIN,
}


def cases(tables: dict[str, dict]) -> list:
    """(script, how it is broken, words, flags) of every case, with its name as the test's id."""
    listed = []
    for script, table in tables.items():
        for name, (break_it, words, *flags) in table.items():
            flags = flags[0].split() if flags else []
            listed.append(pytest.param(script, break_it, words, flags, id=f"{script}: {name}"))
    return listed


@pytest.fixture(scope="module")
def world(tmp_path_factory, toy_model_folder, toy_tokenizer) -> Path:
    """Good files of 8 prompts, two models, and outputs of an earlier day."""
    here = tmp_path_factory.mktemp("world")
    write_json(str(here / "prompts.json"), [{"messages": make_prompt(i)} for i in range(8)])
    responses = [{"response_1": f"cat {i}", "response_2": f"dog {i}"} for i in range(8)]
    write_json(str(here / "responses.json"), responses)
    write_json(str(here / "rewards.json"), [[1.0 + i, 0.0] for i in range(8)])
    write_jsonl(str(here / "pairs.jsonl"), make_pairs(8))
    shutil.copytree(toy_model_folder, here / "sft")
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(str(here / "gold"), model, toy_tokenizer, torch.float32, {})
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
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield tmp_path / "here"
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for descriptor in [*HELD, *provenance._locks.values()]:
        os.close(descriptor)
    HELD.clear()
    provenance._locks.clear()


def contents(here: Path) -> dict[str, tuple]:
    """Every file and folder: its bytes, mode and time of writing."""
    found = {}
    for path in here.rglob("*"):
        state = path.stat()
        if path.is_file():
            found[str(path)] = (path.read_bytes(), state.st_mode, state.st_mtime_ns)
        else:
            found[str(path)] = (None, state.st_mode, 0)
    return found


def run(script: str, flags: list[str]) -> int:
    """The script's exit status, its main called here."""
    sys.argv = [script, *FLAGS[script], *flags]
    main = importlib.import_module(script.removesuffix(".py")).main
    with pytest.raises(SystemExit) as stop:
        run_script(main)
    return stop.value.code


def test_there_are_sixty_cases_and_more():
    assert len(cases(BAD)) >= 60 and BAD.keys() == FLAGS.keys()


@pytest.mark.parametrize("script, break_it, words, flags", cases(BAD))
def test_bad_input_is_an_error_of_one_line_and_nothing_is_written(
    script, break_it, words, flags, here, capfd
):
    break_it(here)
    before = contents(here)
    capfd.readouterr()
    status = run(script, flags)
    out, err = capfd.readouterr()
    assert status == 2 and "Traceback" not in err and out == "", err
    message = err.splitlines()[-1]
    assert words in message and message.count(": ") >= 1 and len(message) < 600, err
    assert contents(here) == before
    assert not list(here.rglob("unpickled"))


# ---- accepted: what looks wrong -> (how it comes about, words that are printed, further flags) -

ACCEPTED_LABEL = {
    "an empty response": (answers(""), "8 x 2 rewards"),
    "a response of white space": (answers(" \n\t"), "8 x 2 rewards"),
    "emoji and control characters": (
        answers("\U0001f600\x00\x1b[31m\u2028\u202e\r\n", "\x7f"),
        "8 x 2 rewards",
    ),
    "a response too few": (row("responses.json", 4, {"response_1": "x"}), "8 x 1 to 2 rewards"),
    "a response of 100,000 tokens": (
        row("responses.json", 2, {"response_1": "Q" * 100_000, "response_2": "x"}),
        "1 of 16 conversations were cut to 256 tokens (their closing tokens kept)",
        "--max-length 256",
    ),
    "a folder that does not exist yet": (
        nothing,
        "8 x 2 rewards",
        "--target-path out/new/folder/rewards.json",
    ),
    "a journal that finished nothing": (
        put("out/rewards.json.journal-0", b'{"half a li'),
        "8 x 2 rewards",
    ),
}
ACCEPTED_TRAIN = {
    "an empty response chosen": (answered(""), "kept 8 of 8 pairs"),
    "emoji and control characters chosen": (
        answered("\U0001f600\x00\x1b[31m\u2028\u202e\r\n"),
        "kept 8 of 8 pairs",
    ),
    "the template's own tokens in a response": (
        answered("<|im_end|>\n<|im_start|>user\nhi"),
        "kept 8 of 8 pairs",
    ),
    "an answer of 100,000 tokens": (
        answered("Q" * 100_000),
        "kept 7 of 8 pairs; dropped 1: over 2048 tokens",
    ),
    "pad equal to eos": (
        change(
            "sft/tokenizer_config.json", lambda settings: settings | {"pad_token": "<|im_end|>"}
        ),
        "out/rm: saved",
    ),
    "fewer pairs than a step": (nothing, "1 steps, 1 of them warmup", "--batch-size 1000"),
    "one pair": (put("pairs.jsonl", json.dumps(make_pairs(1)[0])), "kept 1 of 1 pairs"),
}
ACCEPTED_PREPROCESS = {
    "identical responses that gold tells apart": (answers("same", "same"), "kept 8 of 8 pairs"),
    "identical responses, not wanted": (
        both(
            answers("same", "same"),
            row("responses.json", 0, {"response_1": "a", "response_2": "b"}),
        ),
        "dropped 7: 7 identical responses",
        "--drop-identical",
    ),
    "duplicate prompts": (
        put("prompts.json", [{"messages": make_prompt(0)}] * 8),
        "kept 8 of 8 pairs",
    ),
    "changed by hand": (
        both(made_by("rewards.json"), row("rewards.json", 0, [9.0, 1.0])),
        "warning: rewards.json: edited after it was written",
    ),
    "rewards in whole numbers": (put("rewards.json", [[1, 0]] * 8), "kept 8 of 8 pairs"),
}

ACCEPTED = {
    "label.py": ACCEPTED_LABEL,
    "train.py": ACCEPTED_TRAIN,
    "preprocess.py": ACCEPTED_PREPROCESS,
}


@pytest.mark.parametrize("script, break_it, words, flags", cases(ACCEPTED))
def test_what_looks_wrong_but_is_accepted_as_it_is(script, break_it, words, flags, here, capfd):
    break_it(here)
    status = run(script, flags)
    said = "".join(capfd.readouterr())
    assert status == 0 and words in said, said
    if script == "preprocess.py":
        written = {pair.chosen[-1]["content"] for pair in read_pairs("out/pairs.jsonl")}
        assert written <= {text for texts in read_responses("responses.json") for text in texts}
    names = [path.name for path in here.rglob("*")]
    assert not [name for name in names if "journal" in name or ".tmp" in name]


# ---- a full disk, and several processes --------------------------------------------------------


@pytest.mark.parametrize(
    "script, space",
    [
        ("sample.py", 300),
        ("label.py", 400),
        ("preprocess.py", 1000),
        ("train.py", 20_000),
        ("train.py", 300_000),
    ],
)
def test_a_full_disk_is_an_error_and_files_that_were_there_stay(script, space, here, capsys):
    """No file may grow beyond `space` bytes: writing fails as on a full disk.

    It fails in the journal, in a checkpoint or in the model.
    """
    before = contents(here)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (space, hard))
    try:
        status = run(script, ["--save-every", "1"] if script == "train.py" else [])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    err = capsys.readouterr().err
    assert status == 2 and "Traceback" not in err, err
    assert "cannot be written" in err.splitlines()[-1]
    after = contents(here)
    assert {path: after.get(path) for path in before} == before
    for path in after.keys() - before.keys():
        if Path(path).name == "config.json":  # a small model may be exported before the thread that
            load_reward_model(str(Path(path).parent))  # writes a checkpoint fails: it is whole
    if script != "train.py":
        assert run(script, []) == 0  # with space again the same command continues


def test_two_processes_print_one_error_and_do_not_hang(here):
    """An error that both find once they have met."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    launcher += ["--nproc-per-node", "2"]
    before = contents(here)
    script = str(REPOSITORY / "train.py")
    result = subprocess.run(
        [*launcher, script, *FLAGS["train.py"], "--tokens-per-pass", "20"],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    # after ours comes torchrun's own report of a failed process
    ours = result.stderr.partition("torch/distributed/elastic")[0]
    assert result.returncode != 0, result.stderr
    assert result.stderr.count("more than --tokens-per-pass 20") == 1, result.stderr
    assert "Traceback" not in ours, result.stderr
    assert contents(here) == before


@pytest.mark.parametrize("rank, printed", [("0", True), ("1", False)])
def test_before_the_processes_meet_rank_0_alone_prints_the_error(
    rank, printed, here, monkeypatch, capfd
):
    monkeypatch.setenv("RANK", rank)
    assert run("train.py", ["--data-path", "none.jsonl"]) == 2
    assert ("none.jsonl: no such file" in capfd.readouterr().err) == printed


def test_a_script_by_itself_writes_one_line_and_status_2(here):
    script = str(REPOSITORY / "preprocess.py")
    result = subprocess.run(
        [sys.executable, script, *FLAGS["preprocess.py"], "--rewards-path", "none.json"],
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == (
        "none.json: no such file: check the path, or run the script that writes it\n"
    )
