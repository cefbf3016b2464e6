"""Rewards from a server over HTTP: vLLM, SGLang, OpenRLHF, or any server of the same form.

    api       path         a request                                     its answer
    classify  /classify    {"messages": [...]} or {"input": [text, ..]}  {"data": [{"probs": [r]}]}
    pooling   /pooling     the same                                      {"data": [{"data": [r]}]}
    score     /score       {"text_1": query, "text_2": [text, ..]}       {"data": [{"score": r}]}
    reward    /get_reward  {"query": [text, ..], "prompts": [text, ..]}  {"rewards": [r, ..]}
    sglang    /classify    {"text": [text, ..]}                          [{"embedding": [r]}]

The first three are vLLM's (0.32), `reward` is OpenRLHF's remote reward model, `sglang` SGLang's. A
text is the whole conversation, rendered here by the tokenizer's chat template; messages are
rendered by the server. `score` takes a query and a document, as rerankers do: the prompt's turns
and the response, both as plain text.

With the environment variable RMOOD_API_KEY a request has the header "Authorization: Bearer <key>".
"""

import email.utils
import http.client
import json
import math
import os
import queue
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from .errors import UserError, one_line
from .files.tables import Conversation
from .progress import progress_bar
from .tokenization import render

PROMPTS_PER_REQUEST = 8  # of texts: a server of its own batching wants more than one at a time
FIRST_DELAY = 0.5  # seconds before a request is tried again; doubled every time
LONGEST_DELAY = 30.0
LONGEST_RETRY_AFTER = 600.0  # what a server may ask for
TRIED_AGAIN = (408, 425, 429, 500, 502, 503, 504)  # HTTP statuses of a server that may recover
KEPT_EVERY = 2.0  # seconds between two calls of `keep`


# ---- what each kind of server is asked, and how it answers ----


@dataclass(frozen=True)
class Text:
    """A conversation in the forms that servers take. whole, prompt: rendered; "" for messages."""

    messages: Conversation
    whole: str = ""
    prompt: str = ""

    @property
    def response(self) -> str:
        return self.messages[-1]["content"]

    @property
    def query(self) -> str:
        """The turns before the response as plain text, empty ones left out."""
        contents = [message["content"] for message in self.messages[:-1]]
        return "\n\n".join(content for content in contents if content)


@dataclass(frozen=True)
class Api:
    """path: where it is asked. send: what it can be sent, its default first.

    request: (texts, send) -> the body of a request. items: an answer -> a value for each text.
    """

    path: str
    send: tuple[str, ...]
    request: Callable[[list[Text], str], dict]
    items: Callable[[object], list]


def _vllm_request(texts: list[Text], send: str) -> dict:
    # use_activation: raw scores, also of a model whose config asks for a sigmoid.
    if send == "messages":
        return {"messages": texts[0].messages, "use_activation": False}
    # The template has written every special token already, BOS too.
    whole = [text.whole for text in texts]
    return {"input": whole, "add_special_tokens": False, "use_activation": False}


def _score_request(texts: list[Text], send: str) -> dict:
    responses = [text.response for text in texts]
    return {"text_1": texts[0].query, "text_2": responses, "use_activation": False}


def _openrlhf_request(texts: list[Text], send: str) -> dict:
    whole = [text.whole for text in texts]
    return {"query": whole, "prompts": [text.prompt for text in texts]}


def _sglang_request(texts: list[Text], send: str) -> dict:
    return {"text": [text.whole for text in texts]}


def _vllm_items(key: str) -> Callable[[dict], list]:
    def items(answer: dict) -> list:
        in_order = sorted(answer["data"], key=lambda item: item["index"])
        return [item[key] for item in in_order]

    return items


def _openrlhf_items(answer: dict) -> list:
    return answer["rewards"] if "rewards" in answer else answer["scores"]


def _sglang_items(answer: list) -> list:
    return [item["embedding"] for item in answer]


APIS = {
    "classify": Api("/classify", ("messages", "text"), _vllm_request, _vllm_items("probs")),
    "pooling": Api("/pooling", ("messages", "text"), _vllm_request, _vllm_items("data")),
    "score": Api("/score", ("plain text",), _score_request, _vllm_items("score")),
    "reward": Api("/get_reward", ("text",), _openrlhf_request, _openrlhf_items),
    "sglang": Api("/classify", ("text",), _sglang_request, _sglang_items),
}


def _reward(item) -> float:
    """The number in r, [r], or [[r of a token], ..., [r of the last token]]. Raises ValueError."""
    if isinstance(item, list) and item and all(isinstance(token, list) for token in item):
        item = item[-1]
    if isinstance(item, list):
        if len(item) != 1:
            raise ValueError(f"{len(item)} numbers for a text, where a reward model has one")
        item = item[0]
    if type(item) not in (int, float) or not math.isfinite(item):
        raise ValueError(f"the reward {item!r}, not a finite number")
    return float(item)


# ---- HTTP ----


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: it would take the key to another server, and lose the request."""

    def redirect_request(self, *_):
        return None


_opener = urllib.request.build_opener(_NoRedirect)


class _TryAgain(Exception):
    """A request failed in a way that may pass. after: seconds that the server asks to wait."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


def _ask(url: str, body: dict | None, timeout: float):
    """The JSON value that a server answers. body: None asks by GET.

    Raises _TryAgain for what may pass, UserError for what will not.
    """
    headers = {"Content-Type": "application/json", "Accept": "application/json"}
    key = os.environ.get("RMOOD_API_KEY")
    if key:
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with _opener.open(urllib.request.Request(url, data, headers), timeout=timeout) as answer:
            content = answer.read()
    except urllib.error.HTTPError as error:
        with error:
            said = one_line(Exception(error.read(2000).decode(errors="replace")), limit=200)
        reason = f"HTTP {error.code}: {said}"
        if error.code in TRIED_AGAIN:
            raise _TryAgain(reason, _retry_after(error.headers.get("Retry-After")))
        raise UserError(f"{url}: {reason}: {_advice(error.code)}")
    except TimeoutError:
        raise _TryAgain(f"no answer within {timeout:g} s")
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        reason = getattr(error, "reason", error)
        if isinstance(reason, TimeoutError):
            raise _TryAgain(f"no answer within {timeout:g} s")
        raise _TryAgain(one_line(Exception(reason)))
    try:
        return json.loads(content)
    except ValueError:
        raise _TryAgain(f"its answer is not JSON: {content[:80]!r}")


def _advice(status: int) -> str:
    if status in (401, 403):
        return "set RMOOD_API_KEY"
    if status in (404, 405):
        return "check --url and --api"
    if 300 <= status < 400:
        return "it sends requests to another address: pass that one by --url"
    return "check --api, and what the server's log says"


def _retry_after(value: str | None) -> float:
    """The seconds that a Retry-After header asks for: a number, or a date."""
    if not value:
        return 0.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 0.0
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def _delay(attempt: int, after: float) -> float:
    """Seconds until the next attempt: doubled each time, drawn at random so that threads part."""
    longest = min(LONGEST_DELAY, FIRST_DELAY * 2**attempt)
    return max(longest * random.uniform(0.5, 1.0), after)


def check_url(url: str) -> None:
    """Raise UserError for what is no address of a server, or for one with a secret in it."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--url {url}: not an address: say http://host:port")
    if parts.username or parts.password or parts.query:
        raise UserError(
            "--url: an address with a key in it would be written into run files: "
            "pass the key by RMOOD_API_KEY"
        )


# ---- a server that gives rewards ----


@dataclass(frozen=True)
class RemoteScorer:
    """A reward model behind an address, ready to score conversations.

    url, api, send: what is asked, where, and in which form ("messages", "text" or "plain text").
    model, version: what the server says of itself, "" where it says nothing.
    tokenizer: renders the texts; None for messages and plain text.
    """

    url: str
    api: str
    send: str
    model: str = ""
    version: str = ""
    tokenizer: PreTrainedTokenizerBase | None = field(default=None, repr=False)
    timeout: float = 120.0
    retries: int = 10
    threads: int = 16

    def score(
        self,
        conversations: list[list[Conversation]],
        desc: str = "scoring",
        done: dict[int, list[float]] | None = None,
        keep: Callable[[dict[int, list[float]]], None] = lambda finished: None,
        share: slice = slice(None),
    ) -> list[list[float] | None]:
        """For each prompt its K conversations -> K rewards; the options are those of score_groups.

        share: of the prompts; the result is None for those outside it.
        """
        scored = dict(done or {})
        rows = list(range(len(conversations)))[share]
        left = [row for row in rows if row not in scored]
        # A server renders one conversation a request, and knows one query.
        size = PROMPTS_PER_REQUEST if self.send == "text" else 1
        pieces = [left[i : i + size] for i in range(0, len(left), size)]
        not_kept = {}
        kept_at = time.monotonic()
        bar = progress_bar(total=len(left), desc=desc, unit="prompt")
        results = _in_threads(
            lambda rows: self._score_rows(rows, conversations), pieces, self.threads
        )
        try:
            for finished in results:
                not_kept |= finished
                bar.update(len(finished))
                scored |= finished
                if time.monotonic() - kept_at > KEPT_EVERY:
                    keep_now, not_kept = not_kept, {}
                    keep(keep_now)
                    kept_at = time.monotonic()
        finally:
            bar.close()
            if not_kept:
                keep(not_kept)
        in_share = set(rows)
        return [scored[row] if row in in_share else None for row in range(len(conversations))]

    def _score_rows(
        self, rows: list[int], conversations: list[list[Conversation]]
    ) -> dict[int, list[float]]:
        """Row -> the rewards of its conversations, by one request or by one for each of them."""
        flat = []
        names = []
        for row in rows:
            for number, messages in enumerate(conversations[row], start=1):
                names.append(f"prompt {row}, response {number}")
                flat.append(self._text(messages, names[-1]))
        if self.send == "messages":
            found = [self._ask_for([text], [name])[0] for text, name in zip(flat, names)]
        else:
            found = self._ask_for(flat, names)
        rest = iter(found)
        return {row: [next(rest) for _ in conversations[row]] for row in rows}

    def _text(self, messages: Conversation, name: str) -> Text:
        if self.tokenizer is None:
            if "tools" in messages[0]:
                raise UserError(f"{name}: has tools, which need a template: add --send text")
            return Text(messages)
        return Text(
            messages,
            render(messages, self.tokenizer, name=name),
            render(messages[:-1], self.tokenizer, add_generation_prompt=True, name=name),
        )

    def _ask_for(self, texts: list[Text], names: Sequence[str]) -> list[float]:
        """The rewards of texts by one request. names: what error messages call them."""
        api = APIS[self.api]
        body = api.request(texts, self.send)
        if self.model and self.api != "reward":
            body["model"] = self.model
        where = names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}"
        answer = self._ask_again_and_again(body, where)
        try:
            found = [_reward(item) for item in api.items(answer)]
        except (KeyError, TypeError, IndexError) as error:
            raise UserError(
                f"{self.url}: not an answer of --api {self.api} ({type(error).__name__}: {error}; "
                f"{one_line(Exception(json.dumps(answer)), limit=120)}): check --api"
            )
        except ValueError as error:
            raise UserError(f"{self.url}: {where}: {error}: check --api, and which model it serves")
        if len(found) != len(texts):
            raise UserError(
                f"{self.url}: {where}: {len(found)} rewards for {len(texts)} texts: check --api"
            )
        return found

    def _ask_again_and_again(self, body: dict, where: str):
        """The answer to a request that is tried again, after longer and longer waits."""
        for attempt in range(self.retries + 1):
            try:
                return _ask(self.url, body, self.timeout)
            except UserError as error:
                raise UserError(f"{where}: {error}")
            except _TryAgain as error:
                reason = error
            if attempt < self.retries:
                time.sleep(_delay(attempt, reason.after))
        raise UserError(
            f"{self.url}: {where}: {reason}, {self.retries + 1} times: finished work is kept; when "
            "the server is well, run the same command again (--retries, --timeout, --concurrency)"
        )


def _in_threads(work: Callable, pieces: list, threads: int) -> Iterator:
    """work(piece) of all pieces by some threads, as they finish. The first error is raised.

    The threads are daemons: an interrupted process does not wait for requests on their way.
    """
    todo = queue.SimpleQueue()
    for piece in pieces:
        todo.put(piece)
    finished = queue.SimpleQueue()
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                piece = todo.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((work(piece), None))
            except Exception as error:
                finished.put((None, error))

    for _ in range(min(threads, len(pieces))):
        threading.Thread(target=run, daemon=True).start()
    try:
        for _ in pieces:
            result, error = finished.get()
            if error:
                raise error
            yield result
    finally:
        stop.set()


# ---- finding out what a server is ----


def connect(
    url: str,
    api: str = "classify",
    send: str = "auto",
    model: str = "",
    timeout: float = 120.0,
    retries: int = 10,
    threads: int = 16,
) -> RemoteScorer:
    """The scorer behind an address, after a first question: which models does it serve?

    url: http://host:port, to which the path of `api` is added; or with a path of its own.
    api: one of APIS. send: "messages", "text", or "auto": messages where the api takes them.
    model: which of the server's models; "" for its only one.
    The tokenizer is given to it later. Raises UserError where nothing answers at the address.
    """
    check_url(url)
    if send == "auto":
        send = APIS[api].send[0]
    elif send not in APIS[api].send:
        raise UserError(f"--send {send}: --api {api} takes {' or '.join(APIS[api].send)}")
    parts = urllib.parse.urlsplit(url)
    base = f"{parts.scheme}://{parts.netloc}"
    path = parts.path.rstrip("/")
    if path in ("", "/v1"):
        path += APIS[api].path
    served = _names_of_models(base)
    if model and served and model not in served:
        raise UserError(f"{base}: serves no {model}, but {', '.join(served)}: pass one of these")
    if not model and len(served) > 1:
        raise UserError(f"{base}: serves {', '.join(served)}: choose one by --served-model")
    return RemoteScorer(
        url=base + path,
        api=api,
        send=send,
        model=model or (served[0] if served else ""),
        version=_version(base),
        timeout=timeout,
        retries=retries,
        threads=threads,
    )


def _names_of_models(base: str) -> list[str]:
    """What the server calls its models; none where it does not say."""
    answer = _first_answer(f"{base}/v1/models")
    try:
        return [str(entry["id"]) for entry in answer["data"]]
    except (KeyError, TypeError):
        return []


def _version(base: str) -> str:
    answer = _first_answer(f"{base}/version")
    return str(answer.get("version", "")) if isinstance(answer, dict) else ""


def _first_answer(url: str):
    """What a server says of itself; None where it does not know the question.

    Not tried again: at the start a user waits for it. Raises UserError where nothing answers.
    """
    try:
        return _ask(url, None, timeout=10)
    except UserError:
        return None
    except _TryAgain as error:
        if str(error).startswith(("HTTP", "its answer")):
            return None
        base = url.rpartition("/v1/")[0] or url.rpartition("/")[0]
        raise UserError(f"{base}: no answer ({error}): start the server, or check --url")


def with_tokenizer(scorer: RemoteScorer, tokenizer: PreTrainedTokenizerBase) -> RemoteScorer:
    return replace(scorer, tokenizer=tokenizer)
