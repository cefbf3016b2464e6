"""Conversation to token ids by chat template; the length rule; the scored token.

The reward of a conversation is read at its *scored token*: the last token of the rendered template, whatever the pad
token is. The template writes every special token itself (also BOS), so its text is tokenized without adding any.
"""

import hashlib
import itertools
import json
import os
from array import array
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from . import BadInput, model_folder, one_line
from .config import layout

CACHED_FROM = 4096  # conversations; fewer are tokenized faster than a file is worth


def load_tokenizer(name: str, chat_template: str = "") -> PreTrainedTokenizerBase:
    """A tokenizer with a chat template: its own, or the one in the file `chat_template`."""
    transformers_logging.set_verbosity_error()
    folder = model_folder(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds
        raise BadInput(f"{name}: no tokenizer could be loaded ({one_line(error)}): check the name or path, and the access to it")
    if chat_template:
        try:
            tokenizer.chat_template = Path(chat_template).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadInput(f"{chat_template}: the chat template cannot be read ({one_line(error)}): check the path")
    if not tokenizer.chat_template:
        raise BadInput(f"{name}: its tokenizer has no chat template: give one with --chat-template FILE (Jinja, as in transformers)")
    return tokenizer


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Two stages saw the same text only if this is equal."""
    return hashlib.sha256(tokenizer.chat_template.encode()).hexdigest()


def choose_pad_token(tokenizer: PreTrainedTokenizerBase) -> None:
    """Give the tokenizer a pad token that is not its EOS.

    Hugging Face and vLLM score the last token that is not a pad: with pad = eos that would be the token before EOS.
    Taken in this order: its own; a special token named for padding; <unk>; a reserved token; a new token <|pad|>.
    """
    if tokenizer.pad_token is not None and tokenizer.pad_token_id != tokenizer.eos_token_id:
        return
    special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
    named = [token for word in ("pad", "reserved") for token in special if word in token.lower() and token != tokenizer.eos_token]
    unknown = [tokenizer.unk_token] if tokenizer.unk_token not in (None, tokenizer.eos_token) else []
    first_choice = [token for token in named if "pad" in token.lower()] + unknown + named + ["<|pad|>"]
    tokenizer.add_special_tokens({"pad_token": first_choice[0]})


def render(messages: list[dict], tokenizer: PreTrainedTokenizerBase, add_generation_prompt: bool = False) -> str:
    """The conversation exactly as the model reads it."""
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    except Exception as error:  # a template may raise any kind
        roles = ", ".join(message["role"] for message in messages)
        raise BadInput(f"the chat template refuses the turns [{roles}] ({one_line(error)}): mend them, or pass another --chat-template")
    if not text:
        raise BadInput("the chat template writes nothing: pass another by --chat-template")
    return text


def encode(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of rendered texts, in parallel over the cores; nothing is added."""
    return tokenizer(texts, add_special_tokens=False, padding=False, truncation=False)["input_ids"] if texts else []


def encode_rendered(conversations: list[list[dict]], tokenizer) -> list[array]:
    """Token ids of whole conversations as rendered, 4 bytes each where a list takes 36. Those of a large set are kept in
    <RMOOD_HOME>/cache under the hash of texts, template and vocabulary: 3,816 pairs in half a second instead of five."""
    texts = (render(messages, tokenizer) for messages in tqdm(conversations, desc="rendering", mininterval=1, delay=2, leave=False))
    pieces = iter(lambda: list(itertools.islice(texts, CACHED_FROM)), [])  # a tokenizer holds 150 bytes a token while it works
    rows = (array("i", ids) for piece in pieces for ids in encode(piece, tokenizer))
    if len(conversations) < CACHED_FROM:
        return list(rows)
    key = hashlib.sha256()
    for part in (tokenizer.chat_template, tokenizer.backend_tokenizer.to_str(), *conversations):
        key.update(hashlib.sha256(json.dumps(part).encode()).digest())
    path = Path(layout("")["home"], "cache", f"tokens-{key.hexdigest()}.safetensors")
    if path.exists():
        kept = load_file(path)
        return [array("i", ids.tobytes()) for ids in np.split(kept["ids"].numpy(), kept["lengths"].cumsum(0)[:-1].numpy())]
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".tmp-{os.getpid()}")
    save_file({"ids": torch.from_numpy(np.concatenate(rows)), "lengths": torch.tensor([len(row) for row in rows])}, temporary)
    os.replace(temporary, path)
    return rows


def encode_conversations(conversations: list[list[dict]], tokenizer, max_length: int) -> tuple[list[array], list[int]]:
    """Token ids of each conversation, and the rows that were cut to max_length tokens.

    A long conversation loses tokens from the end of its last message, never the template's closing tokens: the
    scored token stays the one that closes the response. Raises BadInput where the prompt alone fills max_length.
    """
    rows = encode_rendered(conversations, tokenizer)
    cut = [i for i, ids in enumerate(rows) if len(ids) > max_length]
    for i in cut:
        text, content = render(conversations[i], tokenizer), conversations[i][-1]["content"]
        content = content if content in text else content.strip()  # some templates strip it
        closing_text = text[text.rindex(content) + len(content) :]
        opening_text = text[: text.rindex(content)]
        opening, closing = encode([opening_text, closing_text], tokenizer)
        if len(opening) + len(closing) >= max_length:
            raise BadInput(f"conversation {i}: its prompt alone has {len(opening)} tokens of --max-length {max_length}: raise it, or drop the row")
        rows[i] = rows[i][: max_length - len(closing)] + array("i", closing)
    return rows, cut


def common_prefix(rows: list[list[int]]) -> int:
    """Tokens that all rows begin with, at most one less than the shortest: every row keeps a last token of its own."""
    first, last = min(rows), max(rows)  # where the smallest and the largest agree, all do
    shortest = min(len(row) for row in rows) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), shortest)


def show_row(messages: list[dict], tokenizer: PreTrainedTokenizerBase) -> str:
    """The rendered text with the scored token in ⟦ ⟧, and what was scored in words."""
    text = render(messages, tokenizer)
    ids = encode([text], tokenizer)[0]
    tail = tokenizer.decode(ids[-1:])
    visible = tail.replace("\n", "\\n")
    body = text[: len(text) - len(tail)] if text.endswith(tail) else tokenizer.decode(ids[:-1])
    return f"{body}⟦{visible}⟧\n({len(ids)} tokens; the scored token is the last: id {ids[-1]}, {visible!r})"
