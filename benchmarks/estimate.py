"""Memory and time of a full fine-tuning run, computed from the model's shape: nothing here was measured on a GPU.

    python benchmarks/estimate.py        prints the tables of docs/memory.md (Markdown)

    N parameters, L layers, D hidden size, Q and K width of all query and of all key heads, M width of the MLP
    T unique tokens of a pass, R tokens of attention's rows (prompt shared by two responses counted twice, padding too)
    W processes, each with one GPU

What would measure it, on the machine in question (peak memory by nvidia-smi; pairs and tokens a second in metrics.jsonl):
    torchrun --nproc-per-node 1 train.py --lr 5e-5 --epochs 1
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 train.py --replicas 2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rmood.optim import AdamWStochasticRounding
from rmood.sharding import PRECISIONS

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A decoder of Qwen3's or Llama's kind, embeddings tied or (reward models need no output matrix) without a head."""

    layers: int = 36
    hidden: int = 2560
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    mlp: int = 9728
    vocabulary: int = 151_936
    norm_heads: bool = True  # Qwen3 norms queries and keys, Llama does not

    @property
    def query(self) -> int:
        return self.heads * self.head

    @property
    def key(self) -> int:
        return self.kv_heads * self.head

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        return attention + 3 * self.hidden * self.mlp + 2 * self.hidden + (2 * self.head if self.norm_heads else 0)

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        return self.embedding_parameters + self.layers * self.layer_parameters + 2 * self.hidden  # last norm, reward head


QWEN3_4B = Shape()
TOKENS = 16_384  # --tokens-per-pass
ROWS_PER_TOKEN = 1.6  # R / T, counted on full passes of 64 AlpacaFarm pairs (prompt 50, response 62 tokens: medians)
ROW_LENGTH = 133  # tokens of a conversation there, mean
TOKENS_OF_64_PAIRS = 64 * 201  # unique tokens there
MOST_TOKENS = 65_536  # a larger pass than anyone needs
CARDS = {"80 GB": 79.0, "48 GB": 44.5, "24 GB": 22.5}  # GiB that the driver of such a card reports, or a little less
RESERVE = 2.0  # GiB left to the CUDA context, NCCL and fragmentation


# ---- memory ----------------------------------------------------------------------------------------------------


def bytes_per_parameter(precision: str) -> dict[str, int]:
    """What rests on a process for each parameter it owns. Gradients are summed in float32, then kept as the weights are."""
    stored = PRECISIONS[precision][0].itemsize
    return {"weights": stored, "gradients": stored, "moments": 2 * stored}


def saved_per_layer(shape: Shape, compute: int, rows_per_token: float = 1.0) -> dict[str, float]:
    """Bytes a token that autograd keeps for the backward pass of one layer, packed layout. compute: bytes of an activation.

    RMSNorm of width w computes in float32: it keeps its input as float32 and the normed values as activations, and
    1 / rms; its output is kept by the matrices that read it. A matrix keeps its input, SiLU its input, a product both
    factors. Attention (flash) keeps query, key, value, output and one float32 a head, for its rows.
    """
    b = compute
    heads = shape.heads + shape.kv_heads if shape.norm_heads else 0
    return {
        "norms": 2 * (4 + b + b) * shape.hidden + 4 * 2,
        "query and key norms": (4 + b) * (shape.query + shape.key) + 4 * heads if shape.norm_heads else 0,
        "attention's rows": rows_per_token * (b * (2 * shape.query + 2 * shape.key) + 4 * shape.heads),
        "attention's output": b * shape.query,
        "mlp": 4 * b * shape.mlp,
    }


def saved_per_token(shape: Shape, compute: int, rows_per_token: float, checkpointing: bool) -> float:
    """Bytes a token of all layers. Checkpointing keeps each layer's input, and one whole layer while it is computed again."""
    layer = sum(saved_per_layer(shape, compute, rows_per_token).values())
    return shape.layers * compute * shape.hidden + layer if checkpointing else shape.layers * layer


def memory(shape: Shape, precision: str, gpus: int, tokens: int, checkpointing: bool, offload: bool) -> dict[str, float]:
    """Bytes on one GPU. The peak is the worst of three moments: the backward pass of the layers with all gradients of an
    earlier pass still there; its end, at the embeddings; the optimizer.

    gathered: FSDP holds two layers unsharded (the next is fetched early): weights and gradients as computed, gradients
    once more in float32 to be summed. optimizer: AdamWStochasticRounding's float32 temporaries, seven of a chunk.
    """
    compute, stored = PRECISIONS[precision][1].itemsize, bytes_per_parameter(precision)
    state = 0.0 if offload else shape.parameters * sum(stored.values()) / gpus
    unit = 2 * compute + 4 + (stored["weights"] + stored["gradients"] if offload else 0)  # offload: its own part passes through the GPU
    parts = {
        "state": state,
        "activations": tokens * saved_per_token(shape, compute, ROWS_PER_TOKEN, checkpointing),
        "backward": tokens * 3 * compute * shape.mlp,  # gradients inside an MLP
        "gathered": 2 * shape.layer_parameters * unit,
        "embeddings": shape.embedding_parameters * unit,
        "optimizer": 7 * 4 * min(AdamWStochasticRounding.CHUNK, shape.embedding_parameters / gpus) if precision == "bf16-sr" and not offload else 0.0,
    }
    layers = parts["activations"] + parts["backward"] + parts["gathered"]
    return parts | {"peak": state + max(layers, parts["embeddings"], parts["optimizer"])}


def largest_pass(shape: Shape, precision: str, card: float, checkpointing: bool, offload: bool) -> int:
    """The largest --tokens-per-pass, in steps of 256, that one card of so many GiB holds; 0 where none does."""
    fits = [t for t in range(256, MOST_TOKENS + 1, 256) if memory(shape, precision, 1, t, checkpointing, offload)["peak"] <= (card - RESERVE) * GIB]
    return max(fits, default=0)


# ---- time ------------------------------------------------------------------------------------------------------

PEAK_FLOPS, MFU = 989e12, 0.40  # H100 SXM, dense bf16 (its data sheet); the share of it that layers reach, assumed
MEMORY_BANDWIDTH = 3.35e12 * 0.8  # bytes/s, of the same card, 80% of the data sheet
PER_NODE = 8
NVLINK = 300e9  # bytes/s into and out of a GPU within a node: two thirds of NVLink 4's 450e9 each way
NETWORKS = {"8 x 400 Gb/s InfiniBand": 0.8 * 400e9, "100 Gb/s Ethernet": 0.8 * 12.5e9}  # bytes/s of a node
HOP = 5e-6  # seconds: latency of one step of a ring


def flops(shape: Shape, tokens: float, row_length: float = ROW_LENGTH, rows_per_token: float = ROWS_PER_TOKEN) -> float:
    """Forward and backward: 6 a token for each weight that multiplies (embeddings are looked up), and causal attention."""
    matrices = shape.layers * shape.layer_parameters
    attention = 6 * shape.layers * shape.query * row_length * rows_per_token  # 2 products x 2 FLOPs x half the row x 3
    return tokens * (6 * matrices + attention)


def step_seconds(shape: Shape, gpus: int, tokens_per_gpu: float, network: float, replicas: int = 1) -> dict[str, float]:
    """One pass and one update, precision mixed with activation checkpointing; transfers run beside the arithmetic.

    Over W processes a ring moves (W - 1) / W of a tensor through each GPU: weights in bf16 in the forward and again in the
    backward pass, gradients in float32 in the backward pass. Where it crosses nodes the slower of NVLink and the network
    sets the pace. With replicas the rings stay within replicas-th parts, and each copy's gradients are averaged over the network.
    """
    n, units = shape.parameters, shape.layers + 2
    ring = gpus // replicas
    wire = NVLINK if ring <= PER_NODE else min(NVLINK, network)
    gather = 2 * n * (ring - 1) / ring / wire + units * (ring - 1) * HOP
    scatter = 4 * n * (ring - 1) / ring / wire + units * (ring - 1) * HOP
    across = 2 * (replicas - 1) / replicas * 4 * n / network + units * 2 * (replicas - 1) * HOP if replicas > 1 else 0.0
    forward = flops(shape, tokens_per_gpu) / 3 / (PEAK_FLOPS * MFU)
    update = 28 * n / ring / MEMORY_BANDWIDTH  # reads weight, gradient and two moments, writes all but the gradient: float32
    transfer = gather + max(gather + scatter, across)
    return {"compute": 4 * forward, "transfer": transfer, "step": max(forward, gather) + max(3 * forward, gather + scatter, across) + update}


# ---- tables ----------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list]) -> str:
    cells = [[str(cell) for cell in row] for row in [head, ["---"] * len(head), *rows]]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def gib(value: float) -> str:
    return f"{value / GIB:.1f}"


def parameter_table(shape: Shape) -> str:
    rows = []
    for precision, (_, compute) in PRECISIONS.items():
        b = bytes_per_parameter(precision)
        rows.append([f"`{precision}`", *b.values(), sum(b.values()), gib(shape.parameters * sum(b.values())), compute.itemsize])
    return table(["precision", "weights", "gradients", "moments", "bytes a parameter", "GiB for 4B", "gathered for arithmetic"], rows)


def activation_table(shape: Shape) -> str:
    rows = []
    for name, compute in (("bf16", 2), ("float32", 4)):
        parts = saved_per_layer(shape, compute, ROWS_PER_TOKEN)
        per_token = [saved_per_token(shape, compute, ROWS_PER_TOKEN, checkpointing) for checkpointing in (False, True)]
        rows.append([name, *(f"{value:,.0f}" for value in parts.values()), f"{sum(parts.values()):,.0f}", *(f"{value / 1e6:.2f} MB, {gib(value * TOKENS)} GiB" for value in per_token)])
    head = ["arithmetic", *saved_per_layer(shape, 2), "bytes a token and layer", f"{shape.layers} layers, a token and {TOKENS:,}", "recomputed (`--activation-checkpointing on`)"]
    return table(head, rows)


def memory_table(shape: Shape) -> str:
    rows = []
    choices = [("mixed", False, False), ("mixed", True, False), ("mixed", True, True), ("bf16-sr", False, False), ("bf16-sr", True, False), ("bf16-sr", True, True)]
    for precision, checkpointing, offload in choices:
        options = f"`{precision}`" + " `--activation-checkpointing off`" * (not checkpointing) + " `--cpu-offload`" * offload
        peaks = [gib(memory(shape, precision, gpus, TOKENS, checkpointing, offload)["peak"]) for gpus in (1, 2, 4, 8)]
        passes = [largest_pass(shape, precision, card, checkpointing, offload) for card in CARDS.values()]
        rows.append([options, *peaks, *("no" if not tokens else f"{tokens:,}" + " or more" * (tokens == MOST_TOKENS) for tokens in passes)])
    return table(["choice", "1 GPU", "2", "4", "8", *(f"largest pass on one {card}" for card in CARDS)], rows)


def time_table(shape: Shape, tokens_of_step: float | None) -> str:
    """tokens_of_step: shared by all GPUs; None: a full pass on each."""
    rows = []
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        nodes, tokens = max(1, gpus // PER_NODE), tokens_of_step / gpus if tokens_of_step else TOKENS
        row = [gpus, nodes]
        for network in NETWORKS.values():
            plain, copies = (step_seconds(shape, gpus, tokens, network, replicas) for replicas in (1, nodes))
            row += [f"{plain['step']:.2f}", f"{copies['step']:.2f}" if nodes > 1 else "the same"]
        rows.append([*row[:2], f"{plain['compute']:.2f}", *row[2:]])
    return table(["GPUs", "nodes", "arithmetic, s", *(f"{network}: {how}" for network in NETWORKS for how in ("sharded over all, s", "`--replicas` nodes, s"))], rows)


def tables(shape: Shape = QWEN3_4B) -> dict[str, str]:
    """Title -> Markdown, in the order of docs/memory.md."""
    return {
        "What rests on the GPUs, over all of them: bytes a parameter": parameter_table(shape),
        "What a pass keeps for its backward pass: bytes a token": activation_table(shape),
        f"Peak memory of one GPU in GiB, passes of {TOKENS:,} tokens; and the largest pass one card holds": memory_table(shape),
        f"Seconds a step, a full pass of {TOKENS:,} tokens on each GPU": time_table(shape, None),
        f"Seconds a step of 64 short pairs ({TOKENS_OF_64_PAIRS:,} tokens in all), the default batch": time_table(shape, TOKENS_OF_64_PAIRS),
    }


if __name__ == "__main__":
    print(f"Computed, not measured on a GPU. Qwen3-4B's shape: {QWEN3_4B.parameters:,} parameters, {QWEN3_4B.layers} layers.")
    for title, text in tables().items():
        print(f"\n### {title}\n\n{text}")
