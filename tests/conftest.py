"""Small things made on the spot: a ChatML tokenizer, models with random weights, pairs.

Nothing comes from a hub.
"""

import os
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from rmood import distributed
from rmood.batching import Group
from rmood.files.tables import Conversation
from rmood.tokenization import encode, render

pytest_plugins = ["training"]  # its fixtures: pairs_path, train_to, torchrun_to

REPOSITORY = Path(__file__).resolve().parent.parent
DATA = REPOSITORY.parent / "shared" / "data"
needs_data = pytest.mark.skipif(
    not DATA.is_dir(),
    reason="needs the real data in ../shared/data, which is not in the repository",
)
CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = (
    "list count say name what comes after before the a is of and to numbers animals fruits "
    "red green cat dog one two three four five six"
).split()


@pytest.fixture(scope="session")
def toy_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE, 320 tokens, with ChatML's special ones: pad <|endoftext|>, eos <|im_end|>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def make_model(kind: str, tied: bool = True, **changes):
    """A causal LM of some 40,000 random weights, of std 0.2, so that rewards differ visibly."""
    config_class, model_class = {
        "qwen3": (Qwen3Config, Qwen3ForCausalLM),
        "llama": (LlamaConfig, LlamaForCausalLM),
    }[kind]
    settings = dict(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=64,
        vocab_size=384,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    return model_class(config_class(**(settings | changes)))


@pytest.fixture(scope="session", params=["qwen3", "llama"])
def any_model_folder(request, tmp_path_factory, toy_tokenizer) -> str:
    """A causal LM's folder, once as Qwen3 (tied embeddings) and once as Llama (untied)."""
    folder = str(tmp_path_factory.mktemp(request.param))
    make_model(request.param, tied=request.param == "qwen3").save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def toy_model_folder(tmp_path_factory, toy_tokenizer) -> str:
    """A tiny Qwen3 causal LM with its tokenizer."""
    folder = str(tmp_path_factory.mktemp("toy-sft"))
    make_model("qwen3").save_pretrained(folder)
    toy_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def process():
    return distributed.start("cpu")  # again in each module: a script that ran left its group


@pytest.fixture(autouse=True)
def process_group(request):
    """A test that ran a whole script has left its process group: join one again."""
    if "process" in request.fixturenames:
        distributed.start("cpu")


def make_prompt(i: int) -> Conversation:
    return [
        {"role": "system", "content": ""},
        {"role": "user", "content": f"say {WORDS[i % len(WORDS)]} {i}"},
    ]


def make_pairs(count: int) -> list[dict]:
    """Rows of a pairs file with a preference that can be learned.

    The chosen answer says 'cat', the rejected one 'dog'.
    """
    rows = []
    for i in range(count):
        last_word = WORDS[(7 * i) % len(WORDS)]
        chosen, rejected = (
            {"role": "assistant", "content": f"{animal} " * (1 + i % 3) + last_word}
            for animal in ("cat", "dog")
        )
        rows.append(
            {
                "chosen": make_prompt(i) + [chosen],
                "rejected": make_prompt(i) + [rejected],
                "index": i,
                "chosen_reward": 1.0 + i % 4,
                "rejected_reward": -1.0,
            }
        )
    return rows


def groups_of_pairs(tokenizer, count: int = 12) -> list[Group]:
    """The pairs of make_pairs as token groups."""
    groups = []
    for row in make_pairs(count):
        texts = [render(row[side], tokenizer) for side in ("chosen", "rejected")]
        groups.append(Group(encode(texts, tokenizer)))
    return groups
