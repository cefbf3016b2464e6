"""Conversation to token ids by chat template; the scored token; both length rules.

The reward of a conversation is read at its *scored token*: the last token of the rendered template,
whatever the pad token is (`scored_position`, which batching.py asks). The template writes every
special token itself (also BOS), so its text is tokenized without adding any.

What a template writes must not depend on the day or on the stage: today's date is replaced by a
fixed one (`_with_fixed_date`), and the variables of --template-kwargs are set in the template
itself (`_with_variables`). So a saved model renders the same text in transformers and in vLLM.
"""

import contextlib
import datetime
import hashlib
import json
import os
import re
import sys
import tempfile
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .distributed import Process
from .errors import UserError, is_main_process, one_line
from .files.paths import cache_folder
from .files.provenance import read_run_file
from .files.tables import Conversation
from .hub import model_folder
from .progress import progress_bar

PIECE = 4096  # conversations tokenized at once, which takes a tokenizer 150 bytes per token
CACHED_FROM = 4096  # conversations; fewer are tokenized faster than a file is worth
DATE = datetime.date(2024, 7, 26)  # which Llama's templates write where they cannot ask for today's
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])([^"']*)\1\s*\)""")
# ⟦response⟧, to find where a template writes the response
RESPONSE_MARK = "\u27e6response\u27e7"


# ---- the tokenizer and its template --------------------------------------------------------------


def load_tokenizer(
    name: str, chat_template: str = "", template_kwargs: str = ""
) -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template: its own, or the one in the file `chat_template`.

    template_kwargs: JSON of variables that the template reads, such as {"enable_thinking": false}.
    """
    transformers_logging.set_verbosity_error()
    variables = read_template_kwargs(template_kwargs)
    folder = model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many exception types
        raise UserError(
            f"{name}: no tokenizer could be loaded ({one_line(error)}): "
            "check the name or path, and the access to it"
        )
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{chat_template}: the chat template cannot be read ({one_line(error)}): "
                "check the path"
            )
    if not tokenizer.chat_template:
        raise UserError(
            f"{name}: its tokenizer has no chat template: "
            "give one with --chat-template FILE (Jinja, as in transformers)"
        )
    _prepare_templates(tokenizer, name, variables)
    return tokenizer


def _prepare_templates(tokenizer: PreTrainedTokenizerBase, name: str, variables: dict) -> None:
    """Fix the date and the variables in the tokenizer's template, or in each of several by name.

    Of several transformers takes "tool_use" for a conversation with tools, or else "default".
    """
    templates = tokenizer.chat_template
    if not isinstance(templates, dict):
        tokenizer.chat_template = _prepared(templates, name, variables)
        return
    if "default" not in templates:
        raise UserError(
            f"{name}: its chat templates are named {', '.join(sorted(templates))}, none of them "
            "'default': save the one you want to a file, and pass it by --chat-template"
        )
    tokenizer.chat_template = {
        key: _prepared(template, name, variables if key == "default" else {})
        for key, template in templates.items()
    }


def _prepared(template: str, name: str, variables: dict) -> str:
    for variable in variables:
        if not re.search(rf"\b{variable}\b", template):
            _say(
                f"note: {name}: its chat template does not read {variable!r} of --template-kwargs: "
                "that changes nothing"
            )
    return _with_variables(_with_fixed_date(template, name), variables)


def _with_fixed_date(template: str, name: str) -> str:
    """The template with a fixed date wherever it writes today's, as Llama 3.2's does."""
    fixed = DATE_CALL.sub(lambda call: json.dumps(DATE.strftime(call[2])), template)
    if fixed != template:
        _say(
            f"note: {name}: its chat template writes today's date; here it writes "
            f"{DATE:%d %b %Y} on every day, so that texts can be compared"
        )
    if re.search(r"strftime_now\s*\(", fixed):
        _say(
            f"warning: {name}: its chat template writes the date of the day in a way that cannot "
            "be fixed: stages that run on other days read other texts"
        )
    return fixed


def _with_variables(template: str, variables: dict) -> str:
    """The template with these variables set, unless whoever renders it sets them otherwise."""
    if not variables:
        return template
    lines = []
    for name, value in variables.items():
        words = json.dumps(value, ensure_ascii=False)  # Jinja reads true, false and "text" alike
        lines.append(
            f"{{%- if {name} is not defined %}}{{%- set {name} = {words} %}}{{%- endif %}}"
        )
    # The last tag is one behind which Jinja keeps a line break.
    return "".join(lines) + '{{- "" }}' + template


def read_template_kwargs(words: str) -> dict:
    """The variables of --template-kwargs. Raises UserError unless they are names with values."""
    if not words:
        return {}
    try:
        variables = json.loads(words)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"--template-kwargs {words}: not JSON ({one_line(error)}): "
            """say it as '{"enable_thinking": false}'"""
        )
    if not isinstance(variables, dict):
        raise UserError(
            f"--template-kwargs {words}: not an object: "
            """say it as '{"enable_thinking": false}'"""
        )
    for name, value in variables.items():
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or not isinstance(value, str | int | float):
            raise UserError(
                f"--template-kwargs {words}: {name!r} must be a name with true, false, a number "
                "or a text as its value"
            )
    return variables


def say_other_template_kwargs(
    tokenizer: PreTrainedTokenizerBase, template_kwargs: str, path: str
) -> None:
    """Print where responses were sampled with other variables than they are scored with.

    path: the responses, of which sample.py wrote a run file, or pairs that were made from them.
    Only variables that this tokenizer's template reads are compared.
    """
    run = read_run_file(path) or {}
    made_from = run.get("inputs", {}).get("responses", {}).get("path")
    if "template_kwargs" not in run.get("config", {}) and made_from:
        return say_other_template_kwargs(tokenizer, template_kwargs, made_from)
    config = run.get("config", {})
    if "template_kwargs" not in config:
        return
    sampled = read_template_kwargs(config["template_kwargs"])
    scored = read_template_kwargs(template_kwargs)
    template = template_source(tokenizer)
    for name in sampled | scored:
        if sampled.get(name) != scored.get(name) and re.search(rf"\b{name}\b", template):
            _say(
                f"note: {path} was sampled with {_in_words(name, sampled)}, it is scored "
                f"with {_in_words(name, scored)}: pass the same --template-kwargs to both, "
                "unless you mean it"
            )


def _in_words(name: str, variables: dict) -> str:
    return f"{name} = {json.dumps(variables[name])}" if name in variables else f"no {name}"


def template_source(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template as one text, also where there are several by name."""
    template = tokenizer.chat_template
    return template if isinstance(template, str) else json.dumps(template, sort_keys=True)


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template, with its date and the variables of --template-kwargs."""
    return hashlib.sha256(template_source(tokenizer).encode()).hexdigest()


def template_facts(tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """What a run file says of the chat template.

    template_sha256: of its source, which run files of older versions have alone. rendered_sha256:
    of what it makes of a few conversations, to compare templates by: the same for two that differ
    only in what they do not write.
    """
    facts = {"template_sha256": template_sha256(tokenizer)}
    return facts | {"rendered_sha256": rendered_sha256(tokenizer)}


def rendered_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of some finished conversations as rendered: of the text, not of the template."""
    question = {"role": "user", "content": " What is\n2 + 2? "}
    answer = {"role": "assistant", "content": "\n4.  "}
    system = {"role": "system", "content": "Be brief."}
    total = hashlib.sha256()
    for start in ([], [system], [system | {"content": ""}], [question, answer]):
        try:
            text = render([*start, question, answer], tokenizer)
        except UserError:
            text = "refused"
        total.update(json.dumps(text).encode())
    return total.hexdigest()


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token that is not its EOS.

    Hugging Face and vLLM score the last token that is not a pad: with pad = eos that would be the
    token before EOS. Taken in this order: its own; a special token named for padding; <unk>; a
    reserved token; a new token <|pad|>.
    """
    eos = tokenizer.eos_token
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    candidates = [token for token in special if "pad" in token.lower()]
    if tokenizer.unk_token is not None:
        candidates.append(tokenizer.unk_token)
    candidates += [token for token in special if "reserved" in token.lower()]
    candidates.append("<|pad|>")
    pad = next(token for token in candidates if token != eos)
    tokenizer.add_special_tokens({"pad_token": pad})


# ---- one conversation ----------------------------------------------------------------------------


def render(
    messages: Conversation,
    tokenizer: PreTrainedTokenizerBase,
    add_generation_prompt: bool = False,
    name: str = "",
) -> str:
    """The conversation exactly as the model reads it.

    name: what an error message calls it, such as "prompts.json: row 3"; "" where that is not known.
    Raises UserError where the template refuses it.
    """
    prefix = f"{name}: " if name else ""
    turns = accepted_turns(messages, tokenizer)
    try:
        text = _apply(turns, tokenizer, add_generation_prompt)
    except Exception as error:  # a template may raise any exception type
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(
            f"{prefix}the chat template refuses the turns [{roles}] ({one_line(error)}): "
            "fix them, or pass another --chat-template"
        )
    if not text:
        raise UserError(
            f"{prefix}the chat template writes nothing: pass another by --chat-template"
        )
    return text


def _apply(turns: Conversation, tokenizer: PreTrainedTokenizerBase, generation: bool) -> str:
    """The template's text. The tools in the first message are an argument of the template."""
    tools = turns[0].get("tools")
    if tools:
        first = {key: value for key, value in turns[0].items() if key != "tools"}
        turns = [first, *turns[1:]]
    return tokenizer.apply_chat_template(
        turns, tools=tools, tokenize=False, add_generation_prompt=generation
    )


_refuses_system: dict[str, bool] = {}  # source of a template -> whether it refuses a system turn


def accepted_turns(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> Conversation:
    """The turns that the template is given: without an empty system turn that it would refuse.

    Gemma's template knows no system turns, and prompts of this pipeline begin with an empty one.
    """
    first = messages[0]
    if first["role"] != "system" or first["content"].strip() or len(messages) == 1:
        return messages
    source = template_source(tokenizer)
    if source not in _refuses_system:
        _refuses_system[source] = _refuses_system_turns(tokenizer)
        if _refuses_system[source]:
            _say("note: the chat template refuses system turns: empty ones are left out")
    if not _refuses_system[source]:
        return messages
    tools = {"tools": first["tools"]} if "tools" in first else {}
    return [messages[1] | tools, *messages[2:]]


def _refuses_system_turns(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Does the template refuse a system turn before a user's, and take the user's alone?"""
    system = {"role": "system", "content": ""}
    user = {"role": "user", "content": "Hi"}
    try:
        _apply([user], tokenizer, False)
    except Exception:  # it refuses more than system turns: render says why
        return False
    try:
        _apply([system, user], tokenizer, False)
    except Exception:
        return True
    return False


_said: set[str] = set()


def _say(note: str) -> None:
    """Print on stderr, once; not in the processes that sample.py starts for further copies."""
    if note not in _said and is_main_process() and "RMOOD_SAMPLE_COPY" not in os.environ:
        print(note, file=sys.stderr)
    _said.add(note)


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rendered texts, in parallel over the cores; nothing is added."""
    if not texts:
        return []
    return tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"]


def scored_position(ids: Sequence[int]) -> int:
    """Where in a conversation's token ids its reward is read: at the last one."""
    return len(ids) - 1


# ---- whole data sets: tokenized once, and kept in a cache ----------------------------------------


def encode_rendered(
    conversations: list[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str] | None = None,
    process: Process | None = None,
    add_generation_prompt: bool = False,
) -> list[array]:
    """Token ids of whole conversations as rendered, 4 bytes each where a list takes 36.

    names: what error messages call each conversation.
    process: given, every rank calls this; on each machine one of them tokenizes, and the others
        read what it kept.

    Those of a large set are kept in <RMOOD_HOME>/cache under the hash of all that they depend on:
    3,816 pairs in half a second instead of five.
    """
    if len(conversations) < CACHED_FROM:
        return _encode_all(conversations, tokenizer, names, add_generation_prompt)
    key = _content_sha256(conversations, tokenizer, add_generation_prompt)
    path = cache_folder() / f"tokens-{key}.safetensors"
    with process.local_main_first() if process else contextlib.nullcontext():
        rows = _read_cache(path)
        if rows is None:
            rows = _encode_all(conversations, tokenizer, names, add_generation_prompt)
            _write_cache(path, rows)
    return rows


def _encode_all(
    conversations: list[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    names: Sequence[str] | None,
    add_generation_prompt: bool,
) -> list[array]:
    rows = []
    bar = progress_bar(total=len(conversations), desc="tokenizing", mininterval=1)
    for start in range(0, len(conversations), PIECE):
        texts = []
        for i, messages in enumerate(conversations[start : start + PIECE], start):
            name = names[i] if names else ""
            texts.append(render(messages, tokenizer, add_generation_prompt, name))
            bar.update()
        rows += [array("i", ids) for ids in encode(texts, tokenizer)]
    bar.close()
    return rows


def _content_sha256(
    conversations: list[Conversation], tokenizer: PreTrainedTokenizerBase, generation: bool
) -> str:
    """The hash of all that the token ids depend on.

    That is the rendered text and the vocabulary. The text follows from the messages, the template
    and its special tokens; hashing those takes a tenth of the time of rendering everything. Where
    a template still writes the date of the day, its rendering of a few conversations has it, too.
    """
    total = hashlib.sha256()
    fixed = (template_source(tokenizer), rendered_sha256(tokenizer), generation)
    for part in (*fixed, tokenizer.special_tokens_map, _vocabulary(tokenizer), *conversations):
        total.update(hashlib.sha256(json.dumps(part, default=str).encode()).digest())
    return total.hexdigest()


def _vocabulary(tokenizer: PreTrainedTokenizerBase) -> str:
    """All that turns a text into token ids, as a text; for slow tokenizers the hash of their files.

    A slow tokenizer is one in Python, without the library tokenizers.
    """
    if hasattr(tokenizer, "backend_tokenizer"):
        return tokenizer.backend_tokenizer.to_str()
    total = hashlib.sha256(type(tokenizer).__qualname__.encode())
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        for file in sorted(Path(folder).rglob("*.*")):
            total.update(file.read_bytes())
    return total.hexdigest()


def _read_cache(path: Path) -> list[array] | None:
    """The token ids in a cache file; None where there is none, or none that can be read."""
    try:
        kept = load_file(path)
    except (OSError, SafetensorError):
        return None
    ends = kept["lengths"].cumsum(0).numpy()
    rows = np.split(kept["ids"].numpy(), ends[:-1])
    return [array("i", ids.tobytes()) for ids in rows]


def _write_cache(path: Path, rows: list[array]) -> None:
    """Keep the token ids, if the folder can be written: a cache must not stop a run."""
    tensors = {
        "ids": torch.from_numpy(np.concatenate(rows)),
        "lengths": torch.tensor([len(row) for row in rows]),
    }
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary)
        os.replace(temporary, path)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink()


# ---- the two length rules ------------------------------------------------------------------------


def leave_out_long(rows_of_pairs: list[list[Sequence[int]]], max_length: int) -> list[int]:
    """The length rule of training: the pairs to keep, by position.

    rows_of_pairs: token ids, [pair][chosen, rejected]. A pair with a conversation of more than
    max_length tokens is left out: gold preferred a whole text, not the beginning of it.
    """
    return [i for i, rows in enumerate(rows_of_pairs) if max(map(len, rows)) <= max_length]


def shorten(
    ids: array, messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> array:
    """The length rule of scoring, where each response must get a reward: cut the response's end.

    The template's closing tokens stay: the scored token is still the one that closes the response.
    Raises UserError where there is no room for any of the response.
    """
    if len(ids) <= max_length:
        return ids
    before, closing = _around_response(messages, tokenizer)
    text = render(messages, tokenizer)
    # A template may write more before the mark than before this response, such as an empty <think>.
    opening, closing = encode([os.path.commonprefix([before, text]), closing], tokenizer)
    if len(opening) + len(closing) >= max_length:
        raise UserError(
            f"its prompt alone has {len(opening)} tokens of --max-length {max_length}: "
            "raise it, or drop the row"
        )
    return ids[: max_length - len(closing)] + array("i", closing)


def _around_response(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """What the template writes before and after the last turn's text.

    Found by rendering a mark in its place: the response itself may be changed by the template
    (Qwen3's moves <think>, DeepSeek's drops it) or be in the prompt, too.
    Raises UserError where the template does not write the mark as it is.
    """
    marked = [*messages[:-1], messages[-1] | {"content": RESPONSE_MARK}]
    before, mark, after = render(marked, tokenizer).rpartition(RESPONSE_MARK)
    if not mark:
        raise UserError(
            "too long, and the chat template does not write its last turn as it is, so it cannot "
            "be cut: raise --max-length, or drop the row"
        )
    return before, after


def encode_conversations(
    conversations: list[Conversation],
    tokenizer,
    max_length: int,
    names: Sequence[str] | None = None,
    process: Process | None = None,
) -> tuple[list[array], list[int]]:
    """Token ids of each conversation, and the positions of those that had to be shortened.

    names: what error messages call each conversation. process: see encode_rendered(). Raises
    UserError where a prompt alone fills max_length.
    """
    rows = encode_rendered(conversations, tokenizer, names, process)
    long = [i for i, ids in enumerate(rows) if len(ids) > max_length]
    for i in long:
        try:
            rows[i] = shorten(rows[i], conversations[i], tokenizer, max_length)
        except UserError as error:
            name = f"conversation {i}" if names is None else names[i]
            raise UserError(f"{name}: {error}")
    return rows, long


# ---- prefixes, and what a reader may want to see -------------------------------------------------


def common_prefix(rows: list[Sequence[int]]) -> int:
    """Tokens that all rows begin with, but at most one less than the shortest row has.

    So each row keeps a last token of its own, the scored one.
    """
    smallest, largest = min(rows), max(rows)  # in lexicographic order: where these agree, all do
    limit = min(len(row) for row in rows) - 1
    for i in range(limit):
        if smallest[i] != largest[i]:
            return i
    return limit


def show_row(
    messages: Conversation, tokenizer: PreTrainedTokenizerBase, max_length: int = 0
) -> str:
    """The rendered text with the scored token in ⟦ ⟧, and what was scored in words.

    max_length: what it is cut to before it is scored, in tokens; 0: it is not cut.
    """
    text = render(messages, tokenizer)
    ids = encode([text], tokenizer)[0]
    position = scored_position(ids)
    token = tokenizer.decode(ids[position:])
    if text.endswith(token):
        before = text.removesuffix(token)
    else:
        before = tokenizer.decode(ids[:position])
    visible = token.replace("\n", "\\n")
    cut = f", cut to {max_length} before it is scored" if 0 < max_length < len(ids) else ""
    return (
        f"{before}⟦{visible}⟧\n"
        f"({len(ids)} tokens{cut}; the scored token is the last: id {ids[position]}, {token!r})"
    )
