"""Conversation to token ids by chat template; the scored token; both length rules.

The reward of a conversation is read at its *scored token*: the last token of the rendered template,
whatever the pad token is (`scored_position`, which batching.py asks). The template writes every
special token itself (also BOS), so its text is tokenized without adding any.
"""

import contextlib
import hashlib
import json
import os
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from .errors import UserError, one_line
from .files.paths import cache_folder
from .files.tables import Conversation
from .hub import model_folder

PIECE = 4096  # conversations tokenized at once, which takes a tokenizer 150 bytes per token
CACHED_FROM = 4096  # conversations; fewer are tokenized faster than a file is worth


def load_tokenizer(name: str, chat_template: str = "") -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template: its own, or the one in the file `chat_template`."""
    transformers_logging.set_verbosity_error()
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
    return tokenizer


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of the chat template; two stages rendered alike only if it is equal."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


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
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=add_generation_prompt
        )
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
    conversations: list[Conversation], tokenizer, names: Sequence[str] | None = None
) -> list[array]:
    """Token ids of whole conversations as rendered, 4 bytes each where a list takes 36.

    names: what error messages call each conversation.

    Those of a large set are kept in <RMOOD_HOME>/cache under the hash of texts, template and
    vocabulary: 3,816 pairs in half a second instead of five.
    """
    if len(conversations) < CACHED_FROM:
        return _encode_all(conversations, tokenizer, names)
    path = cache_folder() / f"tokens-{_content_sha256(conversations, tokenizer)}.safetensors"
    rows = _read_cache(path)
    if rows is None:
        rows = _encode_all(conversations, tokenizer, names)
        _write_cache(path, rows)
    return rows


def _encode_all(
    conversations: list[Conversation], tokenizer, names: Sequence[str] | None
) -> list[array]:
    rows = []
    bar = tqdm(total=len(conversations), desc="tokenizing", mininterval=1, delay=2, leave=False)
    for start in range(0, len(conversations), PIECE):
        texts = []
        for i, messages in enumerate(conversations[start : start + PIECE], start):
            texts.append(render(messages, tokenizer, name=names[i] if names else ""))
            bar.update()
        rows += [array("i", ids) for ids in encode(texts, tokenizer)]
    bar.close()
    return rows


def _content_sha256(conversations: list[Conversation], tokenizer) -> str:
    """The hash of all that the token ids depend on."""
    vocabulary = tokenizer.backend_tokenizer.to_str()
    total = hashlib.sha256()
    for part in (tokenizer.chat_template, vocabulary, *conversations):
        total.update(hashlib.sha256(json.dumps(part).encode()).digest())
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
    text = render(messages, tokenizer)
    content = messages[-1]["content"]
    if content not in text:
        content = content.strip()  # some templates strip it
    start = text.rindex(content)
    opening, closing = encode([text[:start], text[start + len(content) :]], tokenizer)
    if len(opening) + len(closing) >= max_length:
        raise UserError(
            f"its prompt alone has {len(opening)} tokens of --max-length {max_length}: "
            "raise it, or drop the row"
        )
    return ids[: max_length - len(closing)] + array("i", closing)


def encode_conversations(
    conversations: list[Conversation],
    tokenizer,
    max_length: int,
    names: Sequence[str] | None = None,
) -> tuple[list[array], list[int]]:
    """Token ids of each conversation, and the positions of those that had to be shortened.

    names: what error messages call each conversation. Raises UserError where a prompt alone fills
    max_length.
    """
    rows = encode_rendered(conversations, tokenizer, names)
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


def show_row(messages: Conversation, tokenizer: PreTrainedTokenizerBase) -> str:
    """The rendered text with the scored token in ⟦ ⟧, and what was scored in words."""
    text = render(messages, tokenizer)
    ids = encode([text], tokenizer)[0]
    position = scored_position(ids)
    token = tokenizer.decode(ids[position:])
    if text.endswith(token):
        before = text.removesuffix(token)
    else:
        before = tokenizer.decode(ids[:position])
    visible = token.replace("\n", "\\n")
    return (
        f"{before}⟦{visible}⟧\n"
        f"({len(ids)} tokens; the scored token is the last: id {ids[position]}, {visible!r})"
    )
