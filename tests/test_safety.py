"""Nothing let in and nothing let out: no pickle, no code from a model's folder, no path taken from data, no secret written,
no file made more open than it was, no template that reaches outside its sandbox.
"""

import ast
import json
import os
import pickle
import re
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import REPOSITORY, make_pairs, make_prompt
from safetensors.torch import load_file

import label
import preprocess
import sample
import train
from rmood import BadInput, records
from rmood.model import load_reward_model, save_reward_model
from rmood.tokenization import load_tokenizer, render

CODE = [*REPOSITORY.glob("*.py"), *(REPOSITORY / "rmood").glob("*.py"), *(REPOSITORY / "examples").glob("*.py")]
SECRET = "hf_DoNotWriteThisDown1234567890"
FORBIDDEN = {"eval", "exec", "compile", "__import__", "torch.load", "torch.hub.load", "np.load", "pickle.load", "pickle.loads", "os.system", "yaml.load", "torch.save"}


class Trap:
    """Whoever unpickles it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.fixture
def gold(tmp_path, toy_model_folder, toy_tokenizer) -> str:
    model = load_reward_model(toy_model_folder, seed=0)
    torch.nn.init.normal_(model.score.weight)
    save_reward_model(str(tmp_path / "gold"), model.state_dict(), model, toy_tokenizer, torch.float32, {})
    return str(tmp_path / "gold")


# ---- the code itself --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.name)
def test_no_line_runs_what_it_reads(path):
    """No pickle, no eval, no shell; and every loading of a model refuses its code and, for weights, any format but safetensors."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name, given = ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert name not in FORBIDDEN and given.get("shell") != "True", f"{path.name}:{node.lineno}: {name}"
        if path.parent.name == "examples":
            continue  # they load what they have just made
        if name.endswith("from_pretrained") and None not in given:
            assert given.get("trust_remote_code") == "False", f"{path.name}:{node.lineno}: {name}"
    if "from_pretrained(" in path.read_text() and re.search(r"AutoModel\w*\.from_pretrained", path.read_text()) and path.parent.name == "rmood":
        assert "use_safetensors=True, trust_remote_code=False" in path.read_text()


def test_every_requirement_is_pinned():
    for name in ("requirements.txt", "requirements-vllm.txt"):
        for line in (REPOSITORY / name).read_text().splitlines():
            assert re.fullmatch(r"(#.*|-r \S+|[\w.-]+==[\w.]+)?", line), f"{name}: {line}"


def test_advisories_say_when_they_cannot_be_checked(tmp_path):
    """Without a network there is no answer, and no answer is not the answer "none"."""
    audit = tmp_path / "audit" / "bin" / "pip-audit"
    audit.parent.mkdir(parents=True)
    for said, status, expected in [("No known vulnerabilities found", 0, 0), ("Found 2 known vulnerabilities in 1 package", 1, 1), ("Connection refused", 1, 2)]:
        audit.write_text(f"#!/bin/sh\necho '{said}'\nexit {status}\n")
        audit.chmod(0o755)
        result = subprocess.run(["bash", "scripts/advisories.sh"], cwd=REPOSITORY, capture_output=True, text=True, env=os.environ | {"RMOOD_VENV": sys.prefix, "RMOOD_AUDIT_VENV": str(tmp_path / "audit")})
        assert result.returncode == expected and said in result.stdout and ("cannot be checked" in result.stderr) == (expected == 2)


# ---- models and templates from elsewhere ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "adapter_model.bin", "model.safetensors"])
def test_no_pickle_is_opened_where_a_model_is_loaded(name, gold, tmp_path):
    (tmp_path / "gold" / name).write_bytes(pickle.dumps(Trap(tmp_path / "unpickled")))
    if name == "model.safetensors":
        with pytest.raises(BadInput, match="could not be loaded"):
            load_reward_model(gold)
    else:
        load_reward_model(gold)
    assert not (tmp_path / "unpickled").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "unpickled")))
    assert (tmp_path / "unpickled").exists()  # the trap would have shut


@pytest.mark.parametrize("model_type", ["qwen3", "of-my-own"])
def test_code_in_a_models_folder_is_not_run(model_type, gold, tmp_path):
    folder, ran = tmp_path / "gold", tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(ran)!r}, 'w').close()\nclass Config: pass\nclass Model: pass\nclass Tokenizer: pass\n")
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForSequenceClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": model_type, "auto_map": auto_map}))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"]}}))
    for load in (load_reward_model, load_tokenizer, sample.model_config):
        try:
            load(gold)
        except BadInput:
            assert model_type == "of-my-own" or load is load_tokenizer
    assert not ran.exists()


@pytest.mark.parametrize("template", ["{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ messages.append(1) }}", "{% include '/etc/passwd' %}", "{{ self.__init__.__globals__ }}"])
def test_a_template_stays_in_its_sandbox(template, toy_tokenizer):
    messages, before = make_prompt(0), toy_tokenizer.chat_template
    toy_tokenizer.chat_template = template
    try:
        with pytest.raises(BadInput, match="the chat template"):
            assert render(messages, toy_tokenizer) == ""
    finally:
        toy_tokenizer.chat_template = before
    assert messages == make_prompt(0)


# ---- data from elsewhere ----------------------------------------------------------------------------------------

OPENED: list[str] | None = None  # paths, while a test listens


def listen(event: str, arguments: tuple) -> None:
    if OPENED is not None and event in ("open", "os.listdir", "os.scandir", "subprocess.Popen", "socket.connect"):
        OPENED.append(f"{event} {arguments}")


sys.addaudithook(listen)


def run(monkeypatch, main, *words) -> None:
    monkeypatch.setattr(sys, "argv", [f"{main.__module__}.py", *map(str, words)])
    assert main() == 0


@pytest.fixture
def street(monkeypatch, tmp_path, gold, toy_model_folder):
    """street(prompts, responses): label.py, preprocess.py and train.py over them; all in tmp_path."""

    def street(prompts: list, responses: list) -> None:
        paths = [word for role in ("prompts", "responses") for word in (f"--{role}-path", tmp_path / f"{role}.json")]
        records.write_json(str(tmp_path / "prompts.json"), prompts)
        records.write_json(str(tmp_path / "responses.json"), responses)
        run(monkeypatch, label.main, *paths, "--target-path", tmp_path / "rewards.json", "--model-name", gold, "--dtype", "float32", "--device", "cpu")
        run(monkeypatch, preprocess.main, *paths, "--rewards-path", tmp_path / "rewards.json", "--target-path", tmp_path / "pairs.jsonl")
        run(monkeypatch, train.main, "--model-name", toy_model_folder, "--data-path", tmp_path / "pairs.jsonl", "--output-dir", tmp_path / "rm", "--epochs", 1, "--device", "cpu")

    return street


def test_a_path_in_the_data_opens_no_file_and_a_url_no_connection(street, tmp_path):
    global OPENED
    canary = tmp_path / "canary.txt"
    canary.write_text("never read")
    texts = [str(canary), f"file://{canary}", f"{{{{ include('{canary}') }}}}", f"<|image|>{canary}", f"![]({canary})", "http://127.0.0.1:9/canary.txt", f"@{canary}"]
    prompts = [{"messages": [{"role": "user", "content": text, "path": str(canary), "image": str(canary)}], "file": str(canary)} for text in texts]
    OPENED = []
    try:
        street(prompts, [{"response_1": text, "response_2": text[::-1]} for text in texts])
    finally:
        opened, OPENED = OPENED, None
    assert len(opened) > 20 and [what for what in opened if "canary" in what] == []
    assert canary.read_text() == "never read"


def test_no_secret_of_the_environment_is_written_or_said(street, tmp_path, monkeypatch, capfd):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    street([{"messages": make_prompt(i)} for i in range(4)], [{"response_1": f"cat {i}", "response_2": "dog"} for i in range(4)])
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 15 and [path for path in written if SECRET.encode() in path.read_bytes()] == []
    assert SECRET not in "".join(capfd.readouterr())


def test_modes_of_files_stay_as_they_were(street, tmp_path):
    """An input is never touched; an output that was private stays private when it is written again; nothing becomes executable."""
    old = os.umask(0o022)
    try:
        (tmp_path / "rewards.json").write_text("of an earlier day")
        (tmp_path / "rewards.json").chmod(0o600)
        street([{"messages": make_prompt(i)} for i in range(4)], [{"response_1": f"cat {i}", "response_2": "dog"} for i in range(4)])
    finally:
        os.umask(old)
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert modes["rewards.json"] == 0o600 and modes["pairs.jsonl"] == 0o644
    assert all(mode & 0o133 == 0 for mode in modes.values())


# ---- the same answer --------------------------------------------------------------------------------------------


def one_character_more(folder: str) -> None:
    path = os.path.join(folder, "chat_template.jinja")
    text = open(path).read()
    open(path, "w").write(text.replace("\n{{ message.content }}", "\n {{ message.content }}"))
    assert len(open(path).read()) == len(text) + 1


class Stopped(Exception):
    pass


def test_work_that_was_begun_with_another_template_is_refused(monkeypatch, tmp_path, gold, toy_model_folder):
    """One character of the template changes every reward a little: nothing half-done is completed with it."""
    shutil.copytree(toy_model_folder, tmp_path / "sft")
    records.write_json(str(tmp_path / "prompts.json"), [{"messages": make_prompt(i)} for i in range(6)])
    records.write_json(str(tmp_path / "responses.json"), [{"response_1": f"cat {i}", "response_2": "dog"} for i in range(6)])
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), make_pairs(8))
    prompts, responses = ("--prompts-path", tmp_path / "prompts.json"), ("--responses-path", tmp_path / "responses.json")
    stages = [
        (sample.main, "write_target", [*prompts, "--target-path", tmp_path / "sft.json", "--model-name", tmp_path / "sft", "--backend", "transformers", "--max-tokens", 4]),
        (label.main, "write_target", [*prompts, *responses, "--target-path", tmp_path / "rewards.json", "--model-name", gold, "--dtype", "float32"]),
        (train.main, "report_epoch", ["--data-path", tmp_path / "pairs.jsonl", "--output-dir", tmp_path / "rm", "--model-name", tmp_path / "sft", "--batch-size", 4, "--save-every", 1, "--resume", "auto"]),
    ]

    def stop(*_):
        raise Stopped

    for main, where, words in stages:
        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(sys.modules[main.__module__], where, stop)
            run(monkeypatch, main, *words, "--device", "cpu")
    for folder in (gold, tmp_path / "sft"):
        one_character_more(str(folder))
    for main, _, words in stages:
        with pytest.raises(BadInput, match="holds unfinished work with other settings|had other settings .other chat template"):
            run(monkeypatch, main, *words, "--device", "cpu")


def test_one_seed_gives_the_same_bytes_in_every_stage(monkeypatch, tmp_path, toy_model_folder):
    """sample.py, label.py, preprocess.py and train.py twice from the start, on a CPU."""
    records.write_json(str(tmp_path / "prompts.json"), [{"messages": make_prompt(i)} for i in range(12)])
    found = []
    for turn in ("a", "b"):
        here = tmp_path / turn
        paths = ["--prompts-path", tmp_path / "prompts.json", "--responses-path", here / "sft.json"]
        run(monkeypatch, sample.main, *paths[:2], "--target-path", here / "sft.json", "--model-name", toy_model_folder, "--backend", "transformers", "--max-tokens", 8, "--device", "cpu", "--seed", 5)
        rewards = [[float(len(text) % 5) for text in row] for row in records.read_responses(str(here / "sft.json"))]
        records.write_json(str(here / "rewards.json"), rewards)
        run(monkeypatch, preprocess.main, *paths, "--rewards-path", here / "rewards.json", "--target-path", here / "pairs.jsonl")
        run(monkeypatch, train.main, "--model-name", toy_model_folder, "--data-path", here / "pairs.jsonl", "--output-dir", here / "rm", "--lr", "1e-2", "--batch-size", 4, "--epochs", 2, "--device", "cpu", "--seed", 5)
        run(monkeypatch, label.main, *paths, "--target-path", here / "proxy.json", "--model-name", here / "rm", "--dtype", "float32", "--device", "cpu")
        found.append([(here / name).read_bytes() for name in ("sft.json", "pairs.jsonl", "rm/model.safetensors", "proxy.json")])
    assert found[0] == found[1]
    assert not torch.equal(load_file(tmp_path / "a/rm/model.safetensors")["score.weight"], load_reward_model(toy_model_folder, seed=5).score.weight)  # it did learn
