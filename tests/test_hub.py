"""Models by name on the hub: from a cache laid out by hand, and from a server here that refuses. Nothing is fetched."""

import http.server
import json
import os
import sys
import threading
from pathlib import Path

import pytest
import torch
from conftest import make_model, make_pairs, make_prompt

import label
import sample
import train
from rmood import BadInput, model_folder, records
from rmood.model import load_reward_model, save_reward_model
from rmood.tokenization import load_tokenizer

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache in which the hub's client looks, offline (conftest.py sets HF_HUB_OFFLINE=1)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model_folder.cache_clear()
    yield tmp_path / "hub"
    model_folder.cache_clear()


def lay_out(hub: Path, name: str, **refs: str) -> dict[str, Path]:
    """The folders of a model's commits; refs: branch or tag -> commit."""
    home = hub / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    for ref, commit in refs.items():
        (home / "refs" / ref).write_text(commit)
        (home / "snapshots" / commit).mkdir(parents=True)
    return {commit: home / "snapshots" / commit for commit in refs.values()}


def test_the_gold_model_of_a_revision_labels_and_the_run_file_names_its_commit(hub, toy_model_folder, toy_tokenizer, tmp_path, monkeypatch):
    model, expected = load_reward_model(toy_model_folder, seed=0), {}
    paths = {name: str(tmp_path / f"{name}.json") for name in ("prompts", "responses", "target")}
    records.write_json(paths["prompts"], [{"messages": make_prompt(i)} for i in range(4)])
    records.write_json(paths["responses"], [{"response_1": "cat", "response_2": f"dog {i}"} for i in range(4)])

    def rewards(name: str) -> tuple[list, str | None]:
        flags = [word for role, path in paths.items() for word in (f"--{role}-path", path)]
        monkeypatch.setattr(sys, "argv", ["label.py", "--model-name", name, "--dtype", "float32", "--device", "cpu", *flags])
        assert label.main() == 0
        return records.read_rewards(paths["target"]), records.read_run_file(paths["target"])["model_commit"]

    for commit, folder in lay_out(hub, "someone/gold", v1=OLD, main=NEW).items():
        torch.nn.init.normal_(model.score.weight)
        save_reward_model(str(folder), model.state_dict(), model, toy_tokenizer, torch.float32, {})
        expected[commit] = rewards(str(folder))[0]
    assert expected[OLD] != expected[NEW] and rewards(str(folder))[1] is None
    for name, commit in {"someone/gold": NEW, "someone/gold@v1": OLD, f"someone/gold@{OLD}": OLD}.items():
        assert rewards(name) == (expected[commit], commit)


def test_sampling_and_training_from_the_hub_write_down_the_commit(hub, toy_tokenizer, tmp_path, monkeypatch):
    (folder,) = lay_out(hub, "someone/sft", main=NEW).values()
    make_model("qwen3").save_pretrained(folder, max_shard_size="40KB")
    toy_tokenizer.save_pretrained(folder)
    records.write_json(str(tmp_path / "prompts.json"), [{"messages": make_prompt(i)} for i in range(2)])
    flags = ["--prompts-path", str(tmp_path / "prompts.json"), "--target-path", str(tmp_path / "sft.json"), "--max-tokens", "4", "--backend", "transformers"]
    monkeypatch.setattr(sys, "argv", ["sample.py", "--model-name", "someone/sft", *flags])
    assert sample.main() == 0
    assert records.read_run_file(str(tmp_path / "sft.json"))["weights_sha256"] == f"someone/sft at commit {NEW}"
    records.write_jsonl(str(tmp_path / "pairs.jsonl"), make_pairs(4))
    flags = ["--data-path", str(tmp_path / "pairs.jsonl"), "--output-dir", str(tmp_path / "rm"), "--epochs", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["train.py", "--model-name", f"someone/sft@{NEW}", *flags])
    assert train.main() == 0
    assert json.loads((tmp_path / "rm" / "run.json").read_text())["model_commit"] == NEW
    assert "base_model: someone/sft\n" in (tmp_path / "rm" / "README.md").read_text()


def test_a_model_never_brings_code_of_its_own(hub, toy_tokenizer, tmp_path):
    """Its config names a class in code.py; nobody is asked, nothing runs."""
    (folder,) = lay_out(hub, "someone/odd", main=NEW).values()
    toy_tokenizer.save_pretrained(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    (folder / "config.json").write_text(json.dumps({"model_type": "odd", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Config"}}))
    with pytest.raises(BadInput, match="someone/odd: the model could not be loaded .The repository .* contai"):
        load_reward_model("someone/odd", seed=0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "code, status, letter",
    [("GatedRepo", 403, "the hub asks for permission"), ("RepoNotFound", 404, "no such public model"), ("RevisionNotFound", 404, "not this revision"), ("", 0, "out of reach")],
)
def test_what_the_hub_refuses_is_a_letter(hub, monkeypatch, code, status, letter):
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    if status:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    else:
        server.server_close()  # nobody listens at this port
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    with pytest.raises(BadInput, match=f"^someone/model@v2: no model could be loaded: .*{letter}") as refused:
        load_tokenizer("someone/model@v2")
    assert "\n" not in str(refused.value)
    server.shutdown() if status else None


def test_offline_what_is_not_in_the_cache_is_a_letter(hub):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    for name, letter in {"someone/absent": "not in the hub's cache", "someone/absent@v1": "not in the hub's cache", "/no/folder": "no such folder", "a/b/c": "no such folder"}.items():
        with pytest.raises(BadInput, match=f"^{name}: no model could be loaded: {letter}"):
            load_tokenizer(name)
