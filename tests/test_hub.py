"""Models by name on the hub: from a cache made by hand, and from a local server that refuses.

Nothing is fetched.
"""

import hashlib
import http.server
import json
import os
import sys
import threading
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import torch
from conftest import make_model, make_pairs, make_prompt
from test_rows import parquet

import label
import sample
import train
from rmood.errors import UserError
from rmood.export import save_reward_model
from rmood.files.provenance import read_run_file
from rmood.files.rows import write_json, write_jsonl
from rmood.files.tables import read_pairs, read_rewards
from rmood.hub import check_complete, dataset_folder, model_folder
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
        argv += ["--overwrite"]
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
    more = str(tmp_path / "more.jsonl")
    write_jsonl(more, make_pairs(8))
    argv += ["--mix", f"{more}:0.5", "--template-kwargs", '{"mood": "calm"}']
    monkeypatch.setattr(sys, "argv", argv)
    assert train.main() == 0
    run = json.loads((output / "run.json").read_text())
    assert run["model_commit"] == NEW and run["config"]["template_kwargs"] == '{"mood": "calm"}'
    assert run["pairs"] == 4 + 4 and run["inputs"]["pairs_2"]["path"] == more
    assert all(number < 4 for number in run["train_sample"])  # rows of --data-path
    assert 'set mood = "calm"' in (output / "chat_template.jinja").read_text()
    assert "base_model: someone/sft\n" in (output / "README.md").read_text()


def test_a_model_never_brings_code_of_its_own(hub, toy_tokenizer, tmp_path):
    """Its config names a class in code.py; nobody is asked, nothing runs."""
    (folder,) = make_cache(hub, "someone/odd", main=NEW).values()
    toy_tokenizer.save_pretrained(folder)
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    auto_map = {"AutoConfig": "code.Config", "AutoModel": "code.Config"}
    config = {"model_type": "odd", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    message = "someone/odd: the model could not be loaded .The repository "
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


# ---- datasets ---


def sha1(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


class Hub:
    """A stand-in for the hub on this machine, with one dataset: revision -> path -> bytes."""

    def __init__(self, revisions: dict[str, dict[str, bytes]]):
        self.files = {}  # commit -> path -> bytes
        self.commits = {}  # revision -> commit
        self.sent = []  # paths that were fetched
        for number, (revision, files) in enumerate(revisions.items(), 1):
            commit = str(number) * 40
            self.files[commit] = files
            self.commits |= {revision: commit, commit: commit}
        hub = self

        class Answers(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *words):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request) -> None:
        words = [unquote(word) for word in urlsplit(request.path).path.split("/")[1:]]
        if words[:4] == ["api", "datasets", "someone", "prefs"]:
            commit = self.commits.get(words[5] if len(words) > 5 else "main")
            files = self.files.get(commit, {})
            listing = [{"rfilename": path} for path in files]
            facts = {"id": "someone/prefs", "sha": commit, "siblings": listing, "private": False}
            facts |= {"tags": [], "downloads": 0}
            if words[4:5] == ["tree"]:
                facts = [
                    {"type": "file", "path": path, "size": len(data), "oid": sha1(data)}
                    for path, data in files.items()
                ]
            body, headers = json.dumps(facts).encode(), {}
        elif words[:4] == ["datasets", "someone", "prefs", "resolve"]:
            commit = self.commits.get(words[4])
            body = self.files.get(commit, {}).get("/".join(words[5:]))
            headers = {"X-Repo-Commit": commit, "ETag": f'"{sha1(body)}"'}
            if request.command == "GET":
                self.sent.append("/".join(words[5:]))
        else:
            commit, body, headers = None, b"", {"X-Error-Code": "RepoNotFound"}
        if commit is None and "X-Error-Code" not in headers:
            body, headers = b"", {"X-Error-Code": "RevisionNotFound"}
        request.send_response(200 if commit else 404)
        for name, value in headers.items():
            request.send_header(name, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


def questions(path: str) -> list[str]:
    return [pair.chosen[0]["content"] for pair in read_pairs(path)]


@pytest.fixture
def online(hub, monkeypatch):
    """online(revisions): the hub's client asks a stand-in on this machine."""
    servers = []

    def start(revisions: dict[str, dict[str, bytes]]) -> Hub:
        stand_in = Hub(revisions)
        servers.append(stand_in.server)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", stand_in.address)
        monkeypatch.setattr(
            "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
            stand_in.address + "/{repo_id}/resolve/{revision}/{filename}",
        )
        dataset_folder.cache_clear()
        return stand_in

    yield start
    for server in servers:
        server.shutdown()
    dataset_folder.cache_clear()


def rows_of(*numbers: int) -> bytes:
    rows = [{"prompt": f"q{i}", "chosen": "yes", "rejected": "no"} for i in numbers]
    return parquet(rows)


def test_a_dataset_on_the_hub_is_read_by_split_and_revision_and_then_offline(online, monkeypatch):
    stand_in = online(
        {
            "main": {
                "README.md": b"of no use",
                "data/train-00000-of-00002.parquet": rows_of(0, 1),
                "data/train-00001-of-00002.parquet": rows_of(2),
                "data/test-00000-of-00001.parquet": rows_of(3),
            },
            "v1": {"data/train-00000-of-00001.parquet": rows_of(9)},
        }
    )
    assert questions("someone/prefs:test") == ["q3"]
    assert stand_in.sent == ["data/test-00000-of-00001.parquet"]  # and nothing else was fetched
    assert questions("someone/prefs") == ["q0", "q1", "q2"]
    assert questions("someone/prefs@v1") == questions("someone/prefs@v1:train") == ["q9"]
    assert "README.md" not in stand_in.sent
    assert questions("someone/prefs@" + "2" * 40) == ["q9"]
    words = "^someone/prefs: has no split 'nowhere', but test, train: pass someone/prefs:test$"
    with pytest.raises(UserError, match=words):
        read_pairs("someone/prefs:nowhere")
    with pytest.raises(UserError, match="^someone/prefs@v1: has no split 'test', but train: pass"):
        read_pairs("someone/prefs@v1:test")
    with pytest.raises(UserError, match="someone/prefs@v9: .*but not this revision"):
        read_pairs("someone/prefs@v9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    dataset_folder.cache_clear()
    assert questions("someone/prefs") == ["q0", "q1", "q2"]


def test_a_dataset_in_another_format_is_read_as_the_hub_converted_it(online):
    online(
        {
            "main": {"prefs.jsonl": b"{}"},
            "refs/convert/parquet": {"default/train/0000.parquet": rows_of(4)},
        }
    )
    assert questions("someone/prefs") == ["q4"]
    with pytest.raises(UserError, match="^someone/prefs@main: the dataset has no parquet files:"):
        read_pairs("someone/prefs@main")  # a revision is taken at its word


def test_a_dataset_that_cannot_be_had_is_an_error_of_one_line(hub, online):
    with pytest.raises(UserError) as raised:
        read_pairs("someone/absent:train")
    assert str(raised.value).startswith(
        "someone/absent: no such file, and no dataset could be loaded: not in the hub's cache"
    )
    online({"main": {}})
    with pytest.raises(UserError, match="someone/absent: .*no such public dataset on the hub"):
        read_pairs("someone/absent")
