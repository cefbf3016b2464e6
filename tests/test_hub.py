"""Models by name on the hub: from a cache made by hand, and from a local server that refuses.

Nothing is fetched.
"""

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
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.provenance import read_run_file
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_rewards
from rmood.hub import check_complete, model_folder
from rmood.loading import load_reward_model
from rmood.tokenization import load_tokenizer

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty cache for the hub's client, which is offline (conftest.py sets HF_HUB_OFFLINE=1)."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    model_folder.cache_clear()
    yield tmp_path / "hub"
    model_folder.cache_clear()


def make_cache(hub: Path, name: str, **refs: str) -> dict[str, Path]:
    """Commit -> its folder, of a model in the hub's cache. refs: branch or tag -> commit."""
    home = hub / f"models--{name.replace('/', '--')}"
    (home / "refs").mkdir(parents=True)
    folders = {}
    for ref, commit in refs.items():
        (home / "refs" / ref).write_text(commit)
        folders[commit] = home / "snapshots" / commit
        folders[commit].mkdir(parents=True)
    return folders


def test_the_gold_model_of_a_revision_labels_and_the_run_file_names_its_commit(
    hub, toy_model_folder, toy_tokenizer, tmp_path, monkeypatch
):
    prompts = str(tmp_path / "prompts.json")
    responses = str(tmp_path / "responses.json")
    target = str(tmp_path / "target.json")
    write_json(prompts, [{"messages": make_prompt(i)} for i in range(4)])
    write_json(responses, [{"response_1": "cat", "response_2": f"dog {i}"} for i in range(4)])

    def label_with(name: str) -> tuple[list, str | None]:
        """(rewards, the model's commit in the run file)"""
        argv = ["label.py", "--model-name", name, "--dtype", "float32", "--device", "cpu"]
        argv += ["--prompts-path", prompts, "--responses-path", responses, "--target-path", target]
        monkeypatch.setattr(sys, "argv", argv)
        assert label.main() == 0
        return read_rewards(target), read_run_file(target)["model_commit"]

    model = load_reward_model(toy_model_folder, seed=0)
    expected = {}
    for commit, folder in make_cache(hub, "someone/gold", v1=OLD, main=NEW).items():
        torch.nn.init.normal_(model.score.weight)
        save_reward_model(str(folder), model, toy_tokenizer, torch.float32, {})
        expected[commit], commit_of_folder = label_with(str(folder))
        assert commit_of_folder is None
    assert expected[OLD] != expected[NEW]
    assert label_with("someone/gold") == (expected[NEW], NEW)
    assert label_with("someone/gold@v1") == (expected[OLD], OLD)
    assert label_with(f"someone/gold@{OLD}") == (expected[OLD], OLD)


def test_sampling_and_training_from_the_hub_write_down_the_commit(
    hub, toy_tokenizer, tmp_path, monkeypatch
):
    (folder,) = make_cache(hub, "someone/sft", main=NEW).values()
    make_model("qwen3").save_pretrained(folder, max_shard_size="40KB")
    toy_tokenizer.save_pretrained(folder)
    prompts = str(tmp_path / "prompts.json")
    responses = str(tmp_path / "sft.json")
    write_json(prompts, [{"messages": make_prompt(i)} for i in range(2)])
    argv = ["sample.py", "--model-name", "someone/sft", "--backend", "transformers"]
    argv += ["--prompts-path", prompts, "--target-path", responses, "--max-tokens", "4"]
    monkeypatch.setattr(sys, "argv", argv)
    assert sample.main() == 0
    assert read_run_file(responses)["weights_sha256"] == f"someone/sft at commit {NEW}"

    pairs = str(tmp_path / "pairs.jsonl")
    output = tmp_path / "rm"
    write_jsonl(pairs, make_pairs(4))
    argv = ["train.py", "--model-name", f"someone/sft@{NEW}", "--data-path", pairs]
    argv += ["--output-dir", str(output), "--epochs", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", argv)
    assert train.main() == 0
    assert json.loads((output / "run.json").read_text())["model_commit"] == NEW
    assert "base_model: someone/sft\n" in (output / "README.md").read_text()


def test_a_model_never_brings_code_of_its_own(hub, toy_tokenizer, tmp_path):
    """Its config names a class in code.py; nobody is asked, nothing runs."""
    (folder,) = make_cache(hub, "someone/odd", main=NEW).values()
    toy_tokenizer.save_pretrained(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Config"}
    config = {"model_type": "odd", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    message = "someone/odd: the model could not be loaded .The repository .* contai"
    with pytest.raises(UserError, match=message):
        load_reward_model("someone/odd", seed=0)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "code, status, words",
    [
        ("GatedRepo", 403, "the hub asks for permission"),
        ("RepoNotFound", 404, "no such public model"),
        ("RevisionNotFound", 404, "not this revision"),
        ("", 0, "out of reach"),
    ],
)
def test_what_the_hub_refuses_is_an_error_of_one_line(hub, monkeypatch, code, status, words):
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
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    message = f"^someone/model@v2: no model could be loaded: .*{words}"
    with pytest.raises(UserError, match=message) as raised:
        load_tokenizer("someone/model@v2")
    assert "\n" not in str(raised.value)
    if status:
        server.shutdown()


@pytest.mark.parametrize(
    "name, words",
    [
        ("someone/absent", "not in the hub's cache"),
        ("someone/absent@v1", "not in the hub's cache"),
        ("/no/folder", "no such folder"),
        ("a/b/c", "no such folder"),
    ],
)
def test_offline_what_is_not_in_the_cache_is_an_error(hub, name, words):
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(UserError, match=f"^{name}: no model could be loaded: {words}"):
        load_tokenizer(name)


def test_a_folder_that_lacks_weights_is_refused():
    check_complete("rm", {"missing_keys": set(), "mismatched_keys": set()})
    missing = {"missing_keys": {"b.weight", "a.weight"}, "mismatched_keys": set()}
    with pytest.raises(UserError, match="rm: 2 weights are missing .*such as a.weight: the folder"):
        check_complete("rm", missing)
    mismatched = {"missing_keys": set(), "mismatched_keys": {("a.weight", (2, 3), (2, 4))}}
    with pytest.raises(UserError, match="rm: 1 weights are missing or of the wrong shape"):
        check_complete("rm", mismatched)
