"""Reward servers: what they are asked, how they fail, and what label.py makes of it.

The server is real (http.server, on a port of its own); its model is a checksum of the text.
"""

import json
import random
import sys
import threading
import time
import zlib
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import make_prompt

import label
from rmood import remote
from rmood.errors import UserError
from rmood.files.provenance import Journal, read_run_file
from rmood.files.rows import write_json
from rmood.files.tables import join_conversations, read_rewards
from rmood.remote import RemoteScorer, check_url, connect, with_tokenizer
from rmood.tokenization import render


def reward_of(text: str) -> float:
    """-5 to 5, the same for the same text."""
    return zlib.crc32(text.encode()) / 2**32 * 10 - 5


def answer(path: str, body: dict | None) -> tuple[int, object]:
    """What a healthy server answers: (status, JSON value). It knows every form."""
    if path == "/v1/models":
        return 200, {"data": [{"id": "checksum"}]}
    if path == "/version":
        return 200, {"version": "1.2.3"}
    if path == "/get_reward":
        return 200, {"rewards": [reward_of(text) for text in body["query"]]}
    if path == "/classify" and "text" in body:  # SGLang
        return 200, [{"embedding": [reward_of(text)]} for text in body["text"]]
    if path == "/score":
        texts = [body["text_1"] + "|" + text for text in body["text_2"]]
        items = [{"index": i, "score": reward_of(text)} for i, text in enumerate(texts)]
        return 200, {"data": items[::-1]}
    texts = body["input"] if "input" in body else [json.dumps(body["messages"])]
    key = {"/classify": "probs", "/pooling": "data"}[path]
    return 200, {"data": [{"index": i, key: [reward_of(t)]} for i, t in enumerate(texts)]}


class Server:
    """answer: as above; or it may return an int for a header to send: see Handler."""

    def __init__(self, answer=answer):
        self.answer = answer
        self.asked: list[tuple[str, dict | None]] = []
        self.headers: list[dict] = []
        self.most_at_once = 0
        self.at_once = 0
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.reply(None)

            def do_POST(self):
                self.reply(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def reply(self, body):
                with server.lock:
                    server.asked.append((self.path, body))
                    server.headers.append(dict(self.headers))
                    server.at_once += 1
                    server.most_at_once = max(server.most_at_once, server.at_once)
                try:
                    result = server.answer(self.path, body)
                finally:
                    with server.lock:
                        server.at_once -= 1
                if result is None:  # hang up
                    self.close_connection = True
                    return
                status, value, *headers = result
                content = value if isinstance(value, bytes) else json.dumps(value).encode()
                self.send_response(status)
                for name, text in headers:
                    self.send_header(name, text)
                if not any(name == "Content-Length" for name, _ in headers):
                    self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def posts(self) -> list[dict]:
        return [body for _, body in self.asked if body is not None]

    def stop(self) -> None:
        self.http.shutdown()
        self.http.server_close()


@pytest.fixture
def serve(monkeypatch):
    """serve(answer): a running Server; waits between attempts are short."""
    monkeypatch.setattr(remote, "FIRST_DELAY", 0.001)
    running = []

    def serve(*answers) -> Server:
        running.append(Server(*answers))
        return running[-1]

    yield serve
    for server in running:
        server.stop()


def conversations(prompts: int) -> list:
    return join_conversations(
        [make_prompt(i) for i in range(prompts)],
        [[f"cat {i}", f"dog {i}", f"\U0001f600 {i}"] for i in range(prompts)],
    )


# ---- forms ----


@pytest.mark.parametrize("api", ["classify", "pooling"])
def test_messages_are_sent_as_they_are_one_conversation_a_request(serve, api):
    server = serve()
    scorer = connect(server.url, api)
    given = conversations(3)
    found = scorer.score(given)
    assert found == [[reward_of(json.dumps(text)) for text in row] for row in given]
    assert len(server.posts()) == 9
    body = server.posts()[0]
    assert body["model"] == "checksum" and body["use_activation"] is False


@pytest.mark.parametrize("api", ["classify", "pooling", "reward", "sglang"])
def test_texts_are_rendered_here_several_prompts_a_request(serve, api, toy_tokenizer):
    server = serve()
    scorer = with_tokenizer(connect(server.url, api, "text"), toy_tokenizer)
    given = conversations(20)
    texts = [[render(messages, toy_tokenizer) for messages in row] for row in given]
    assert scorer.score(given) == [[reward_of(text) for text in row] for row in texts]
    assert len(server.posts()) == -(-20 // remote.PROMPTS_PER_REQUEST)
    body = server.posts()[0]
    if api in ("classify", "pooling"):
        assert body["add_special_tokens"] is False  # the template has written BOS
    if api == "reward":
        whole, prompt = body["query"][0], body["prompts"][0]
        assert whole.startswith(prompt) and prompt.endswith("<|im_start|>assistant\n")


def test_score_takes_a_query_and_documents(serve):
    server = serve()
    prompt = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "How so?"},
        {"role": "user", "content": "Say."},
    ]
    [row] = join_conversations([prompt], [["a", "b"]])
    query = "Why?\n\nHow so?\n\nSay."  # the empty system turn is left out
    found = connect(server.url, "score").score([row])
    assert found == [[reward_of(f"{query}|a"), reward_of(f"{query}|b")]]


def test_a_url_with_a_path_is_asked_there(serve):
    server = serve(lambda path, body: answer("/classify" if body else path, body))
    connect(f"{server.url}/v1").score(conversations(1))
    connect(f"{server.url}/rm/7/").score(conversations(1))
    paths = [path for path, body in server.asked if body]
    assert paths == ["/v1/classify"] * 3 + ["/rm/7"] * 3


def test_numbers_of_each_token_end_with_the_scored_one():
    assert remote._reward([[1.0], [2.0], [3.5]]) == 3.5
    assert remote._reward([2]) == 2.0 and remote._reward(-1.5) == -1.5
    for wrong in ([1.0, 2.0], [[1.0, 2.0]], [], None, True, "1.0", [float("nan")]):
        with pytest.raises(ValueError):
            remote._reward(wrong)


def test_many_requests_are_on_their_way_at_once(serve):
    def slow(path, body):
        if body:
            time.sleep(0.02)
        return answer(path, body)

    server = serve(slow)
    given = conversations(12)
    one_by_one = connect(server.url, threads=1).score(given)
    assert server.most_at_once == 1
    assert connect(server.url, threads=6).score(given) == one_by_one
    assert 3 <= server.most_at_once <= 6


# ---- failures ----


def test_a_server_that_fails_at_random_gives_the_same_rewards(serve):
    """Every third request fails in one of six ways."""
    draw = random.Random(0)

    def unreliable(path, body):
        status, value = answer(path, body)
        if body is None or draw.random() > 1 / 3:
            return status, value
        whole = json.dumps(value).encode()
        return draw.choice(
            [
                (503, {"error": "loading"}, ("Retry-After", "0")),
                (429, {"error": "slow down"}, ("Retry-After", formatdate(usegmt=True))),
                (500, b"<html>"),
                (200, whole[: len(whole) // 2]),
                (200, whole[: len(whole) // 2], ("Content-Length", str(len(whole)))),
                None,
            ]
        )

    given = conversations(10)
    expected = connect(serve().url).score(given)
    server = serve(unreliable)
    assert connect(server.url, retries=12, timeout=5).score(given) == expected
    assert len(server.posts()) > 35


def test_waits_double_up_to_a_limit_and_a_server_may_ask_for_more():
    waits = [remote._delay(attempt, 0.0) for attempt in range(12)]
    for attempt, wait in enumerate(waits):
        longest = min(remote.LONGEST_DELAY, remote.FIRST_DELAY * 2**attempt)
        assert longest / 2 <= wait <= longest
    assert remote._delay(0, 7.0) == 7.0
    assert remote._retry_after("12") == 12.0
    in_a_minute = formatdate(time.time() + 60, usegmt=True)
    assert 55 < remote._retry_after(in_a_minute) <= 60
    assert remote._retry_after("99999") == remote.LONGEST_RETRY_AFTER
    assert remote._retry_after("soon") == remote._retry_after(None) == 0.0


def test_a_retry_after_is_waited_for(serve):
    asked = []

    def busy_once(path, body):
        if body:
            asked.append(time.monotonic())
        if len(asked) == 1:
            return 429, {}, ("Retry-After", "0.3")
        return answer(path, body)

    connect(serve(busy_once).url, threads=1).score(conversations(1))
    assert 0.3 <= asked[1] - asked[0] < 1.0


def broken(status: int, value, *headers):
    return lambda path, body: (status, value, *headers) if body else answer(path, body)


WRONG = {  # what the server answers -> words of the message
    "a page instead of an API": (
        broken(404, {"detail": "Not Found"}),
        "HTTP 404: .*--url and --api",
    ),
    "no key": (broken(401, {"error": "Unauthorized"}), "HTTP 401: .*: set RMOOD_API_KEY"),
    "too long": (
        broken(400, {"error": {"message": "maximum context length is 256 tokens"}}),
        "prompt [01], response 1: .*HTTP 400: .*maximum context length is 256",
    ),
    "sent elsewhere": (broken(307, {}, ("Location", "http://127.0.0.1:9/")), "HTTP 307"),
    "another form": (broken(200, {"results": []}), "not an answer of --api classify.*KeyError"),
    "a list": (broken(200, [1.0]), "not an answer of --api classify.*TypeError"),
    "two labels": (
        broken(200, {"data": [{"index": 0, "probs": [0.1, 0.9]}]}),
        "response 1: 2 numbers for a text, where a reward model has one",
    ),
    "not a number": (
        broken(200, b'{"data": [{"index": 0, "probs": [NaN]}]}'),
        "the reward nan, not a finite number",
    ),
    "too many": (
        broken(200, {"data": [{"index": i, "probs": [0.1]} for i in range(2)]}),
        "2 rewards for 1 texts",
    ),
    "ever busy": (broken(503, {"error": "busy"}), "HTTP 503: .*, 3 times: finished work is kept"),
    "never JSON": (broken(200, b"<html>"), "not JSON: b'<html>', 3 times"),
    "hangs up": (lambda path, body: answer(path, body) if not body else None, ", 3 times"),
}


@pytest.mark.parametrize("wrong, words", WRONG.values(), ids=WRONG)
def test_a_wrong_answer_is_an_error_of_one_line(serve, wrong, words):
    scorer = connect(serve(wrong).url, retries=2, threads=2)
    with pytest.raises(UserError, match=words) as raised:
        scorer.score(conversations(2))
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 600


def test_a_server_that_refuses_the_first_request_leaves_no_file(serve, label_by, tmp_path):
    before = set(tmp_path.iterdir())
    with pytest.raises(UserError, match="HTTP 401"):
        label_by(serve(broken(401, {})).url)
    assert set(tmp_path.iterdir()) == before


def test_a_server_that_does_not_answer_in_time_is_given_up(serve):
    def asleep(path, body):
        if body:
            time.sleep(0.5)
        return answer(path, body)

    scorer = connect(serve(asleep).url, retries=1, timeout=0.1)
    with pytest.raises(UserError, match="no answer within 0.1 s, 2 times"):
        scorer.score(conversations(1))


def test_where_nothing_listens_the_address_is_named_at_once():
    server = Server()
    server.stop()
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"127.0.0.1:{server.port}: no answer .*: start the server"):
        connect(server.url)
    assert time.monotonic() - begun < 2


def test_one_of_several_models_is_chosen(serve):
    models = {"data": [{"id": "base"}, {"id": "adapter"}]}
    server = serve(lambda path, body: (200, models) if path == "/v1/models" else answer(path, body))
    with pytest.raises(UserError, match="serves base, adapter: choose one by --served-model"):
        connect(server.url)
    with pytest.raises(UserError, match="serves no other, but base, adapter"):
        connect(server.url, model="other")
    connect(server.url, model="adapter").score(conversations(1))
    assert server.posts()[0]["model"] == "adapter"


@pytest.mark.parametrize(
    "url, words",
    [
        ("localhost:8000", "not an address: say http://host:port"),
        ("file:///etc/passwd", "not an address"),
        ("http://", "not an address"),
        ("http://me:secret@host:1", "RMOOD_API_KEY"),
        ("http://host:1/classify?key=secret", "RMOOD_API_KEY"),
    ],
)
def test_an_address_is_http_and_holds_no_key(url, words):
    with pytest.raises(UserError, match=words) as raised:
        check_url(url)
    assert "secret" not in str(raised.value)


def test_the_key_is_sent_to_this_server_alone(serve, monkeypatch):
    monkeypatch.setenv("RMOOD_API_KEY", "secret")
    other = serve()
    moved = ("Location", f"{other.url}/classify")
    server = serve(lambda path, body: (302, {}, moved) if body else answer(path, body))
    scorer = connect(server.url)
    assert "secret" not in repr(scorer)
    with pytest.raises(UserError, match="HTTP 302.*pass that one by --url"):
        scorer.score(conversations(1))
    assert all(headers["Authorization"] == "Bearer secret" for headers in server.headers)
    assert not other.asked


def test_an_api_is_sent_what_it_takes():
    with pytest.raises(UserError, match="--send messages: --api reward takes text"):
        connect("http://127.0.0.1:9", "reward", "messages")


# ---- label.py ----


@pytest.fixture
def label_by(monkeypatch, tmp_path):
    """label_by(url, "--api", "pooling"): label.py on 20 prompts; the bytes of its target."""
    prompts = [make_prompt(i) for i in range(20)]
    write_json(str(tmp_path / "prompts.json"), [{"messages": prompt} for prompt in prompts])
    responses = [{"response_1": f"cat {i}", "response_2": f"dog {i}"} for i in range(20)]
    write_json(str(tmp_path / "responses.json"), responses)

    def label_by(url: str, *flags, target="rewards.json") -> bytes:
        argv = ["label.py", "--url", url]
        for name, file in (("prompts", "prompts.json"), ("responses", "responses.json")):
            argv += [f"--{name}-path", tmp_path / file]
        argv += ["--target-path", tmp_path / target, *flags]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        assert label.main() == 0
        return (tmp_path / target).read_bytes()

    return label_by


def test_label_writes_the_servers_rewards_and_what_the_server_is(serve, label_by, tmp_path, capsys):
    server = serve()
    label_by(server.url)
    prompts = [make_prompt(i) for i in range(20)]
    texts = join_conversations(prompts, [[f"cat {i}", f"dog {i}"] for i in range(20)])
    expected = [[reward_of(json.dumps(text)) for text in row] for row in texts]
    target = str(tmp_path / "rewards.json")
    assert read_rewards(target) == expected
    run = read_run_file(target)
    assert run["server"] == f"{server.url}/classify"
    known = {"api": "classify", "send": "messages", "served_model": "checksum", "version": "1.2.3"}
    assert run["work"] | known == run["work"]
    assert "checksum, version 1.2.3; sent as messages" in capsys.readouterr().err


def test_a_server_killed_in_the_middle_is_resumed_to_the_same_bytes(
    serve, label_by, tmp_path, monkeypatch
):
    monkeypatch.setattr(remote, "KEPT_EVERY", 0.0)
    whole = label_by(serve().url, target="whole.json")
    asked = []

    def dies(path, body):
        if body:
            asked.append(json.dumps(body["messages"]))
            if len(asked) > 16:
                return None
        return answer(path, body)

    first = serve(dies)
    with pytest.raises(UserError, match="finished work is kept"):
        label_by(first.url, "--retries", 1, "--concurrency", 3)
    assert not (tmp_path / "rewards.json").exists()
    kept = Journal(str(tmp_path / "rewards.json"), read_work(tmp_path)).done
    assert 3 < len(kept) < 10
    second = serve()  # at another address: that is not what the rewards depend on
    assert label_by(second.url) == whole
    assert len(second.posts()) == 2 * (20 - len(kept))  # finished prompts are not asked again
    assert not list(tmp_path.glob("*journal*"))


def read_work(folder: Path) -> dict:
    return json.loads((folder / "rewards.json.journal-0").read_text().splitlines()[0])


def test_label_interrupted_in_the_middle_is_resumed_to_the_same_bytes(
    serve, label_by, tmp_path, monkeypatch
):
    server = serve()
    whole = label_by(server.url, target="whole.json")
    monkeypatch.setattr(remote, "KEPT_EVERY", 0.0)
    add = Journal.add

    def add_some_then_die(journal, entries):
        add(journal, entries)
        if len(journal.done) > 6:
            journal.file.write(b"[19, [0.1")
            journal.file.close()
            raise KeyboardInterrupt

    monkeypatch.setattr(Journal, "add", add_some_then_die)
    with pytest.raises(KeyboardInterrupt):
        label_by(server.url)
    monkeypatch.setattr(Journal, "add", add)
    assert label_by(server.url) == whole


def test_shards_of_a_server_are_merged(serve, label_by):
    server = serve()
    whole = label_by(server.url, target="whole.json")
    for shard in ("1/3", "2/3", "3/3"):
        with pytest.raises(FileNotFoundError):  # the target is written by the merge alone
            label_by(server.url, "--shard", shard)
    assert label_by(server.url, "--shard", "merge") == whole


def test_texts_need_a_tokenizer_and_messages_none(serve, label_by, toy_model_folder, tmp_path):
    server = serve()
    flags = ["--model-name", toy_model_folder]
    label_by(server.url, "--api", "reward", *flags)
    assert read_run_file(str(tmp_path / "rewards.json"))["template_sha256"]
    with pytest.raises(UserError, match="--chat-template and --template-kwargs are for texts"):
        label_by(server.url, "--chat-template", "template.jinja")


def test_the_default_target_has_the_name_of_a_model_that_is_not_gold(tmp_path, monkeypatch):
    monkeypatch.setenv("RMOOD_HOME", str(tmp_path))
    home = f"{tmp_path}/datasets/toy/rm"

    def target(served: str, split: str = "test") -> str:
        config = label.Config(dataset="toy", split=split, model_name=f"{tmp_path}/models/toy-gold")
        return label.choose_target(config, RemoteScorer("http://h:1", "classify", "text", served))

    assert target("toy-gold") == target("") == f"{home}/test_reward_gold.json"
    assert target("owner/proxy") == f"{home}/test_reward_proxy.json"
    assert target("owner/proxy", "train") == f"{home}/rm_rewards_proxy.json"
