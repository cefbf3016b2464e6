"""What must never happen: a pickle opened, a model's own code run, a path in the data followed.

Nor a secret written, a file made more readable than it was, a template that leaves its sandbox.
"""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, make_pairs, make_prompt
from safetensors.torch import load_file

import label
import preprocess
import sample
import train
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_responses
from rmood.loading import load_reward_model
from rmood.tokenization import load_tokenizer, render

CODE = [
    *REPOSITORY.glob("*.py"),
    *(REPOSITORY / "rmood").rglob("*.py"),
    *(REPOSITORY / "examples").glob("*.py"),
]
SECRET = "hf_DoNotWriteThisDown1234567890"
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.hub.load",
    "np.load",
    "pickle.load",
    "pickle.loads",
    "os.system",
    "yaml.load",
    "torch.save",
}


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def gold(tmp_path, toy_model_folder, toy_tokenizer) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(str(tmp_path / "gold"), model, toy_tokenizer, torch.float32, {})
    return str(tmp_path / "gold")


# ---- the code itself ---


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(REPOSITORY)))
def test_no_line_runs_what_it_reads(path):
    """No pickle, no eval, no shell. A model is loaded without its code, and from safetensors alone.

    The examples load what they have just made.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        where = f"{path.name}:{node.lineno}: {name}"
        assert name not in FORBIDDEN and given.get("shell") != "True", where
        if name.endswith("from_pretrained") and path.parent.name != "examples":
            assert given.get("trust_remote_code") == "False", where
            if name.startswith("AutoModel"):
                assert given.get("use_safetensors") == "True", where


def test_the_calls_that_load_a_model_are_seen():
    calls = [path.name for path in CODE if "AutoModel" in path.read_text()]
    assert {"loading.py", "generation.py"} <= set(calls)


def test_every_requirement_is_pinned():
    files = sorted(REPOSITORY.glob("requirements*.txt"))
    names = [file.name for file in files]
    assert names == ["requirements-dev.txt", "requirements-vllm.txt", "requirements.txt"]
    for file in files:
        for line in file.read_text().splitlines():
            assert re.fullmatch(r"(#.*|-r \S+|[\w.-]+==[\w.]+)?", line), f"{file.name}: {line}"


@pytest.mark.parametrize(
    "said, status, expected",
    [
        ("No known vulnerabilities found", 0, 0),
        ("Found 2 known vulnerabilities in 1 package", 1, 1),
        ("Connection refused", 1, 2),
    ],
)
def test_advisories_say_when_they_cannot_be_checked(said, status, expected, tmp_path):
    """Without a network there is no answer, and no answer is not the answer "none"."""
    audit = tmp_path / "audit" / "bin" / "pip-audit"
    audit.parent.mkdir(parents=True)
    audit.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
    audit.chmod(0o755)
    folders = {"RMOOD_VENV": sys.prefix, "RMOOD_AUDIT_VENV": str(tmp_path / "audit")}
    result = subprocess.run(
        ["bash", "scripts/advisories.sh"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        env=os.environ | folders,
    )
    assert result.returncode == expected and said in result.stdout
    assert ("cannot be checked" in result.stderr) == (expected == 2)


# ---- models and templates from elsewhere ---


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "training_args.bin", "adapter_model.bin", "model.safetensors"]
)
def test_no_pickle_is_opened_where_a_model_is_loaded(name, gold, tmp_path):
    (tmp_path / "gold" / name).write_bytes(pickle.dumps(Trap(tmp_path / "unpickled")))
    if name == "model.safetensors":
        with pytest.raises(UserError, match="could not be loaded"):
            load_reward_model(gold)
    else:
        load_reward_model(gold)
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()  # the trap would have shut


@pytest.mark.parametrize("model_type", ["qwen3", "of-my-own"])
def test_code_in_a_models_folder_is_not_run(model_type, gold, tmp_path):
    folder, ran = tmp_path / "gold", tmp_path / "ran"
    (folder / "evil.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "class Config: pass\nclass Model: pass\nclass Tokenizer: pass\n"
    )
    classes = {
        "AutoConfig": "evil.Config",
        "AutoModel": "evil.Model",
        "AutoModelForSequenceClassification": "evil.Model",
    }
    tokenizers = {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}
    add_settings(folder / "config.json", model_type=model_type, auto_map=classes)
    add_settings(folder / "tokenizer_config.json", auto_map=tokenizers)
    for load in (load_reward_model, load_tokenizer, sample.model_config):
        try:
            load(gold)
        except UserError:
            assert model_type == "of-my-own" or load is load_tokenizer
    assert not ran.exists()


def add_settings(path: Path, **settings) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% include '/etc/passwd' %}",
        "{{ self.__init__.__globals__ }}",
    ],
)
def test_a_template_stays_in_its_sandbox(template, toy_tokenizer):
    messages = make_prompt(0)
    before = toy_tokenizer.chat_template
    toy_tokenizer.chat_template = template
    try:
        with pytest.raises(UserError, match="the chat template"):
            assert render(messages, toy_tokenizer) == ""
    finally:
        toy_tokenizer.chat_template = before
    assert messages == make_prompt(0)


# ---- data from elsewhere ---

LISTENED = {"open", "os.listdir", "os.scandir", "subprocess.Popen", "socket.connect"}
OPENED: list[str] | None = None  # what was opened, while a test listens


def listen(event: str, arguments: tuple) -> None:
    if OPENED is not None and event in LISTENED:
        OPENED.append(f"{event} {arguments}")


sys.addaudithook(listen)


@pytest.fixture
def run(monkeypatch):
    """run(main, output_path="a", epochs=1): the script with --output-path a --epochs 1."""

    def run(main, *flags: str, **settings) -> None:
        words = list(flags)
        for name, value in settings.items():
            words += [f"--{name.replace('_', '-')}", str(value)]
        monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *words])
        assert main() == 0

    return run


@pytest.fixture
def pipeline(run, tmp_path, gold, toy_model_folder):
    """pipeline(prompts, responses): label.py, preprocess.py and train.py, all in tmp_path."""

    def pipeline(prompts: list, responses: list) -> None:
        texts = {
            "prompts_path": tmp_path / "prompts.json",
            "responses_path": tmp_path / "responses.json",
        }
        rewards = tmp_path / "rewards.json"
        pairs = tmp_path / "pairs.jsonl"
        write_json(str(texts["prompts_path"]), prompts)
        write_json(str(texts["responses_path"]), responses)
        run(
            label.main,
            "--overwrite",
            **texts,
            target_path=rewards,
            model_name=gold,
            dtype="float32",
            device="cpu",
        )
        run(preprocess.main, **texts, rewards_path=rewards, target_path=pairs)
        run(
            train.main,
            model_name=toy_model_folder,
            data_path=pairs,
            output_dir=tmp_path / "rm",
            epochs=1,
            device="cpu",
        )

    return pipeline


def test_a_path_in_the_data_opens_no_file_and_a_url_no_connection(pipeline, tmp_path):
    global OPENED
    canary = tmp_path / "canary.txt"
    canary.write_text("never read")
    texts = [
        str(canary),
        f"file://{canary}",
        f"{{{{ include('{canary}') }}}}",
        f"<|image|>{canary}",
        f"![]({canary})",
        "http://127.0.0.1:9/canary.txt",
        f"@{canary}",
    ]
    prompts = []
    for text in texts:
        message = {"role": "user", "content": text, "path": str(canary), "image": str(canary)}
        prompts.append({"messages": [message], "file": str(canary)})
    OPENED = []
    try:
        pipeline(prompts, [{"response_1": text, "response_2": text[::-1]} for text in texts])
    finally:
        opened = OPENED
        OPENED = None
    assert len(opened) > 20 and not [what for what in opened if "canary" in what]
    assert canary.read_text() == "never read"


def prompts_of(count: int) -> list[dict]:
    return [{"messages": make_prompt(i)} for i in range(count)]


def responses_of(count: int) -> list[dict]:
    return [{"response_1": f"cat {i}", "response_2": "dog"} for i in range(count)]


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_no_secret_of_the_environment_is_written_or_printed(pipeline, tmp_path, monkeypatch, capfd):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    pipeline(prompts_of(4), responses_of(4))
    written = files_below(tmp_path)
    assert len(written) > 15
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert SECRET not in "".join(capfd.readouterr())


def test_modes_of_files_stay_as_they_were(pipeline, tmp_path):
    """An output that was private stays private when it is written again; none is executable."""
    old = os.umask(0o022)
    try:
        (tmp_path / "rewards.json").write_text("of an earlier day")
        (tmp_path / "rewards.json").chmod(0o600)
        pipeline(prompts_of(4), responses_of(4))
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o777 for path in files_below(tmp_path)}
    assert modes["rewards.json"] == 0o600 and modes["pairs.jsonl"] == 0o644
    assert all(mode & 0o133 == 0 for mode in modes.values())


# ---- the same input, the same answer ---


def add_a_space_to_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    text = path.read_text()
    changed = text.replace("\n{{ message.content }}", "\n {{ message.content }}")
    assert len(changed) == len(text) + 1
    path.write_text(changed)


class Stopped(Exception):
    pass


def stop(*_):
    raise Stopped


def test_work_that_was_begun_with_another_template_is_refused(
    run, monkeypatch, tmp_path, gold, toy_model_folder
):
    """One character of the template changes every reward: unfinished work is not completed."""
    shutil.copytree(toy_model_folder, tmp_path / "sft")
    prompts = tmp_path / "prompts.json"
    responses = tmp_path / "responses.json"
    pairs = tmp_path / "pairs.jsonl"
    write_json(str(prompts), prompts_of(6))
    write_json(str(responses), responses_of(6))
    write_jsonl(str(pairs), make_pairs(8))
    stages = [  # (main, the function at which it stops, settings)
        (
            sample.main,
            "write_target",
            {
                "prompts_path": prompts,
                "target_path": tmp_path / "sft.json",
                "model_name": tmp_path / "sft",
                "backend": "transformers",
                "max_tokens": 4,
                "device": "cpu",
            },
        ),
        (
            label.main,
            "write_target",
            {
                "prompts_path": prompts,
                "responses_path": responses,
                "target_path": tmp_path / "rewards.json",
                "model_name": gold,
                "dtype": "float32",
                "device": "cpu",
            },
        ),
        (
            train.main,
            "report",
            {
                "data_path": pairs,
                "output_dir": tmp_path / "rm",
                "model_name": tmp_path / "sft",
                "batch_size": 4,
                "save_every": 1,
                "resume": "auto",
                "device": "cpu",
            },
        ),
    ]
    for main, where, settings in stages:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(sys.modules[main.__module__], where, stop)
            run(main, **settings)
    add_a_space_to_template(Path(gold))
    add_a_space_to_template(tmp_path / "sft")
    message = "holds unfinished work with other settings|had other settings .other chat template"
    for main, _, settings in stages:
        with pytest.raises(UserError, match=message):
            run(main, **settings)


def test_one_seed_gives_the_same_bytes_in_every_stage(run, tmp_path, toy_model_folder):
    """sample.py, preprocess.py, train.py and label.py twice from the start, on a CPU."""
    prompts = tmp_path / "prompts.json"
    write_json(str(prompts), prompts_of(12))

    def outputs(folder: Path) -> list[bytes]:
        texts = {"prompts_path": prompts, "responses_path": folder / "sft.json"}
        run(
            sample.main,
            prompts_path=prompts,
            target_path=folder / "sft.json",
            model_name=toy_model_folder,
            backend="transformers",
            max_tokens=8,
            device="cpu",
            seed=5,
        )
        responses = read_responses(str(folder / "sft.json"))
        rewards = [[float(len(text) % 5) for text in row] for row in responses]
        write_json(str(folder / "rewards.json"), rewards)
        run(
            preprocess.main,
            **texts,
            rewards_path=folder / "rewards.json",
            target_path=folder / "pairs.jsonl",
        )
        run(
            train.main,
            model_name=toy_model_folder,
            data_path=folder / "pairs.jsonl",
            output_dir=folder / "rm",
            lr="1e-2",
            batch_size=4,
            epochs=2,
            device="cpu",
            seed=5,
        )
        run(
            label.main,
            **texts,
            target_path=folder / "proxy.json",
            model_name=folder / "rm",
            dtype="float32",
            device="cpu",
        )
        names = ("sft.json", "pairs.jsonl", "rm/model.safetensors", "proxy.json")
        return [(folder / name).read_bytes() for name in names]

    assert outputs(tmp_path / "a") == outputs(tmp_path / "b")
    learned = load_file(tmp_path / "a/rm/model.safetensors")["score.weight"]
    at_the_start = load_reward_model(toy_model_folder, seed=5).score.weight
    assert not torch.equal(learned, at_the_start)
