"""Memory and time of a full fine-tuning run, computed from the model's shape.

Nothing here is measured on a GPU. Reads nothing; prints the tables of docs/memory.md (Markdown):

    python benchmarks/estimate.py

    N parameters, L layers, D hidden size, M width of the MLP
    Q, K width of all query heads, of all key heads
    T unique tokens of a pass
    r rank of LoRA's adapters; 0: all weights are trained
    W processes, each with one GPU

Time is a roofline: each matrix product at the rate of such products, everything else at the rate
of the GPU's memory. Counts of bytes come from budget.py, rates are named below.

What would measure it, on the machine in question (peak memory by nvidia-smi; pairs and tokens a
second in metrics.jsonl):

    torchrun --nproc-per-node 1 train.py --lr 5e-5 --epochs 1
    torchrun --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500 \\
        train.py --replicas 2
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rmood.optim import AdamWStochasticRounding
from rmood.sharding import PRECISIONS, PassMemory

GIB = 2**30


@dataclass(frozen=True)
class Shape:
    """A decoder like Qwen3's or Llama's. Its embedding is counted once: a reward model has no
    output matrix."""

    layers: int = 36
    hidden: int = 2560
    heads: int = 32
    kv_heads: int = 8
    head: int = 128
    mlp: int = 9728
    vocabulary: int = 151_936
    norm_heads: bool = True  # Qwen3 normalises queries and keys, Llama does not

    @property
    def query(self) -> int:
        return self.heads * self.head

    @property
    def key(self) -> int:
        return self.kv_heads * self.head

    @property
    def layer_parameters(self) -> int:
        attention = 2 * self.hidden * self.query + 2 * self.hidden * self.key
        mlp = 3 * self.hidden * self.mlp
        norms = 2 * self.hidden
        if self.norm_heads:
            norms += 2 * self.head
        return attention + mlp + norms

    @property
    def embedding_parameters(self) -> int:
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        last_norm_and_head = 2 * self.hidden
        return self.embedding_parameters + self.layers * self.layer_parameters + last_norm_and_head

    def adapter_parameters(self, rank: int) -> int:
        """Of one layer: rank x (in + out) of its seven matrices."""
        attention = 2 * (self.hidden + self.query) + 2 * (self.hidden + self.key)
        return rank * (attention + 3 * (self.hidden + self.mlp))

    def trained_parameters(self, rank: int) -> int:
        """All, or with adapters of a rank these and the head."""
        if not rank:
            return self.parameters
        return self.layers * self.adapter_parameters(rank) + self.hidden


QWEN3_4B = Shape()
QWEN3_8B = Shape(hidden=4096, mlp=12_288)
QWEN3_14B = Shape(layers=40, hidden=5120, heads=40, mlp=17_408)
QWEN3_32B = Shape(layers=64, hidden=5120, heads=64, mlp=25_600)
TOKENS = 16_384  # --tokens-per-pass
RANK = 16  # of adapters, in the tables
MOST_TOKENS = 65_536  # a larger pass than anyone needs

# Counted on 64 AlpacaFarm pairs (medians: prompt 50, response 62 tokens).
TOKENS_OF_64_PAIRS = 11_750  # unique tokens
SEEN_PER_TOKEN = 88  # tokens that a token sees in attention, the mean

# GiB that the driver of such a card reports, or a little less.
CARDS = {"80 GB": 79.0, "48 GB": 44.5, "24 GB": 22.5}
RESERVE = 2.0  # GiB left to the CUDA context, NCCL and fragmentation


# ---- memory --------------------------------------------------------------------------------------


def bytes_per_parameter(precision: str) -> dict[str, int]:
    """Bytes that a process keeps for each parameter it owns.

    Gradients are summed in float32, then kept in the dtype of the weights.
    """
    stored = PRECISIONS[precision][0].itemsize
    return {"weights": stored, "gradients": stored, "moments": 2 * stored}


def held_bytes(shape: Shape, precision: str, rank: int = 0) -> float:
    """Bytes of weights and moments, over all processes. With adapters the weights that are not
    trained have the dtype of the arithmetic."""
    stored = bytes_per_parameter(precision)
    frozen = 0 if not rank else shape.parameters - shape.hidden  # all but the head
    of_trained = stored["weights"] + stored["moments"]
    compute = PRECISIONS[precision][1].itemsize
    return frozen * compute + shape.trained_parameters(rank) * of_trained


def kept_per_layer(shape: Shape, compute: int, rank: int = 0) -> dict[str, float]:
    """Bytes a token that autograd keeps for the backward pass of one layer, not compiled.

    compute: bytes of an activation.

    RMSNorm of width w computes in float32: it keeps its input as float32 and the normed values as
    activations, and 1 / rms; its output is kept by the matrices that read it. A matrix keeps its
    input, SiLU its input, a product both factors. Attention keeps query, key, value and output,
    each once a token, and one float32 a head. With adapters a norm's gain is not trained, so that
    its normed values are not kept; A x is, of each of seven.
    """
    normed = 0 if rank else compute
    norms = 2 * (4 + normed + compute) * shape.hidden + 4 * 2
    head_norms = 0
    if shape.norm_heads:
        heads = shape.heads + shape.kv_heads
        head_norms = (4 + normed) * (shape.query + shape.key) + 4 * heads
    parts = {
        "norms": norms,
        "query and key norms": head_norms,
        "attention": compute * (2 * shape.query + 2 * shape.key) + 4 * shape.heads,
        "mlp": 4 * compute * shape.mlp,
    }
    return parts | {"adapters": 7 * rank * compute} if rank else parts


# Bytes a token of a compiled Qwen3-4B layer in bf16, as budget.py measures them. The compiler keeps
# only what is cheaper to keep than to compute again.
COMPILED_KEPT = 110_400
COMPILED_MOVED = (188_100, 272_200)  # forward, backward: read and written outside matrix products
LORA_MOVED = (318_200, 403_300)  # the same with adapters of rank 16


def kept_bytes(shape: Shape, precision: str, compiled: bool, rank: int = 0) -> float:
    """Bytes a token that one layer keeps for its backward pass."""
    compute = PRECISIONS[precision][1].itemsize
    if compiled and shape == QWEN3_4B and compute == 2 and not rank:
        return COMPILED_KEPT
    return sum(kept_per_layer(shape, compute, rank).values())


def pass_memory(
    shape: Shape,
    precision: str,
    gpus: int,
    tokens: int,
    one_pass: bool,
    compiled: bool,
    rank: int = 0,
) -> PassMemory:
    """What train.py measures, from the shape."""
    compute = PRECISIONS[precision][1].itemsize
    gradient = bytes_per_parameter(precision)["gradients"] / gpus
    of_layer = shape.adapter_parameters(rank) if rank else shape.layer_parameters
    return PassMemory(
        layers=shape.layers,
        kept=tokens * kept_bytes(shape, precision, compiled, rank),
        kept_input=tokens * compute * shape.hidden,
        gradients=gradient * of_layer,
        other_gradients=gradient * (shape.trained_parameters(rank) - shape.layers * of_layer),
        one_pass=one_pass,
    )


def memory(
    shape: Shape,
    precision: str,
    gpus: int,
    tokens: int,
    recomputed: int,
    offload: bool = False,
    one_pass: bool = False,
    compiled: bool = True,
    rank: int = 0,
) -> dict[str, float]:
    """Bytes on one GPU, by part, and their peak.

    The peak is the worst of two moments: the backward pass of the layers, and its end, at the
    embeddings. recomputed: layers. one_pass: whether a step is one pass; else the gradients of an
    earlier one are there.

    gathered: FSDP holds two layers unsharded (the next is fetched early): weights and gradients in
        the dtype of the arithmetic, gradients once more in float32 to be summed. Only what is
        trained has gradients.
    optimizer: the random bits of AdamWStochasticRounding, 8 bytes for each weight of a chunk.
    """
    compute = PRECISIONS[precision][1].itemsize
    stored = bytes_per_parameter(precision)
    held = held_bytes(shape, precision, rank) / gpus
    of_weight = compute  # bytes of one parameter as it is gathered, and of its gradient
    of_gradient = compute + 4
    needs = pass_memory(shape, precision, gpus, tokens, one_pass, compiled, rank)
    all_gradients = shape.trained_parameters(rank) / gpus * stored["gradients"]
    if offload:  # this process's own part passes through the GPU
        held = all_gradients = 0.0
        needs = needs._replace(gradients=0.0, other_gradients=0.0)
        of_weight += compute if rank else stored["weights"]
        of_gradient += stored["gradients"]
    adapters = shape.adapter_parameters(rank)  # 0 without
    trained = adapters if rank else shape.layer_parameters
    of_layer = of_weight * (shape.layer_parameters + adapters) + of_gradient * trained
    of_embeddings = of_weight if rank else of_weight + of_gradient
    optimizer = 0.0
    if precision == "bf16-sr" and not offload:
        optimizer = 8 * min(AdamWStochasticRounding.CHUNK, shape.embedding_parameters / gpus)

    parts = {
        "state": held + all_gradients,
        "pass": needs.peak(recomputed),  # with gradients
        "gathered": 2 * of_layer,
        "embeddings": shape.embedding_parameters * of_embeddings,
        "optimizer": optimizer,
    }
    layers = parts["pass"] + parts["gathered"]
    end = all_gradients + max(parts["embeddings"], parts["optimizer"])
    return parts | {"peak": held + max(layers, end)}


def fewest_recomputed(
    shape: Shape,
    precision: str,
    gpus: int,
    tokens: int,
    card: float,
    one_pass: bool = True,
    rank: int = 0,
) -> int | None:
    """Layers that train.py recomputes in a pass, on cards of so many GiB; None where even all are
    too few. one_pass: whether the pass is the first of its step.
    """
    more = dict(one_pass=one_pass, rank=rank)
    for recomputed in range(shape.layers + 1):
        peak = memory(shape, precision, gpus, tokens, recomputed, **more)["peak"]
        if peak <= (card - RESERVE) * GIB:
            return recomputed
    return None


def largest_pass(
    shape: Shape,
    precision: str,
    card: float,
    recomputed: int,
    offload: bool = False,
    rank: int = 0,
) -> int:
    """The largest --tokens-per-pass, in steps of 256, that fits on one card; 0 if none does.

    card: its memory in GiB.
    """
    available = (card - RESERVE) * GIB
    largest = 0
    for tokens in range(256, MOST_TOKENS + 1, 256):
        peak = memory(shape, precision, 1, tokens, recomputed, offload, rank=rank)["peak"]
        if peak <= available:
            largest = tokens
    return largest


# ---- time ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """Of an H100 SXM: what was measured on one, less a margin, and guesses, which say so."""

    large_matmul: float = 798e12  # FLOP/s of a bf16 product of 8,192 rows and columns: measured
    layer_matmul: float = 680e12  # of the layers' products
    flash_forward: float = 250e12  # of attention in rows of some 130 tokens: a guess
    flash_backward: float = 180e12  # a guess
    memory: float = 2.8e12  # bytes/s of everything else; a copy was measured at 3.0e12
    host_layer: float = 3e-3  # seconds in which the host launches one layer's passes: a guess


H100 = Rates()
PER_NODE = 8  # GPUs
NVLINK = 300e9  # bytes/s into and out of a GPU within a node: 2/3 of NVLink 4's 450e9 each way
NETWORKS = {  # bytes/s of a node
    "8 x 400 Gb/s InfiniBand": 0.8 * 400e9,
    "100 Gb/s Ethernet": 0.8 * 12.5e9,
}
HOP = 5e-6  # seconds: latency of one step of a ring


def flops(
    shape: Shape, tokens: float, seen_per_token: float = SEEN_PER_TOKEN, rank: int = 0
) -> float:
    """Useful ones of the forward and backward pass together, nothing recomputed.

    6 a token for each weight that multiplies (embeddings are looked up), 4 for one that is not
    trained; and for each token that a token sees in attention 2 products x 2 FLOPs x 3 (the
    backward pass counts twice).
    """
    of_layer = (4 if rank else 6) * shape.layer_parameters + 6 * shape.adapter_parameters(rank)
    attention = 12 * shape.query * seen_per_token
    return tokens * shape.layers * (of_layer + attention)


def layer_seconds(
    shape: Shape,
    tokens: float,
    seen_per_token: float = SEEN_PER_TOKEN,
    moved: tuple[float, float] | None = None,
    rates: Rates = H100,
    rank: int = 0,
) -> tuple[float, float]:
    """(forward, backward) of one layer. moved: bytes a token outside matrix products, of each.

    The backward pass multiplies twice as much, for the gradients of inputs and weights, and as much
    only where the weights are not trained; flash computes its forward products again.
    """
    moved = moved or (LORA_MOVED if rank else COMPILED_MOVED)
    products = 2 * tokens * shape.layer_parameters / rates.layer_matmul
    of_adapters = 2 * tokens * shape.adapter_parameters(rank) / rates.layer_matmul
    attention = 4 * tokens * shape.query * seen_per_token
    forward = products + of_adapters
    forward += attention / rates.flash_forward + tokens * moved[0] / rates.memory
    backward = (1 if rank else 2) * products + 2 * of_adapters
    backward += 2.5 * attention / rates.flash_backward + tokens * moved[1] / rates.memory
    return forward, backward


def copied_per_parameter(precision: str, gpus: int, rank: int = 0) -> float:
    """Bytes a parameter that FSDP moves within a GPU for a pass, beside the transfers.

    Weights are cast (by a single process: of all of them), then copied out of the gathered buffer,
    in the forward and again in the backward pass. Gradients are copied in as float32, then cast.
    With adapters (whose own copies are left out) nothing is cast, and weights have no gradients.
    """
    weight_dtype, compute_dtype = PRECISIONS[precision]
    stored, compute = weight_dtype.itemsize, compute_dtype.itemsize
    if rank:
        return 2 * 2 * compute
    cast = (stored + compute) / gpus if stored != compute else 0
    gather = cast + 2 * compute
    gradients = compute + 4 + (4 + stored) / gpus
    return 2 * gather + gradients


def update_seconds(
    shape: Shape, precision: str, gpus: int, rates: Rates = H100, rank: int = 0
) -> float:
    """Clipping (read; read and write) and AdamW (read four, write three) of one GPU's part."""
    stored = PRECISIONS[precision][0].itemsize
    moved = 3 * stored + 7 * stored
    if precision == "bf16-sr":
        moved += 2 * 8  # random bits, written and read
    return moved * shape.trained_parameters(rank) / gpus / rates.memory


def one_gpu_step(
    shape: Shape, precision: str, tokens: float, recomputed: int, **more
) -> dict[str, float]:
    """Seconds of a step of one pass on one GPU, by part. more: as for layer_seconds."""
    rates = more.get("rates", H100)
    rank = more.get("rank", 0)
    forward, backward = layer_seconds(shape, tokens, **more)
    copies = copied_per_parameter(precision, 1, rank) * shape.parameters / rates.memory
    parts = {
        "layers": shape.layers * (forward + backward) + recomputed * forward,
        "copies": copies,
        "update": update_seconds(shape, precision, 1, rates, rank),
    }
    return parts | {"step": max(sum(parts.values()), shape.layers * rates.host_layer)}


def step_seconds(
    shape: Shape, gpus: int, tokens_per_gpu: float, network: float, replicas: int = 1
) -> dict[str, float]:
    """One pass and one update, in seconds: precision mixed, compiled, on 80 GB cards, with as few
    layers recomputed as they demand.

    Transfers run beside the arithmetic. Over W processes a ring moves (W - 1) / W of a tensor
    through each GPU: weights in bf16 in the forward and again in the backward pass, gradients in
    float32 in the backward pass. Where it crosses nodes the slower of NVLink and the network sets
    the pace. With replicas each ring spans W / replicas processes, and the gradients of the copies
    are averaged over the network.
    """
    parameters = shape.parameters
    units = shape.layers + 2  # FSDP gathers each by itself: layers, embedding, the rest
    ring = gpus // replicas
    bandwidth = NVLINK if ring <= PER_NODE else min(NVLINK, network)

    ring_latency = units * (ring - 1) * HOP
    gather = 2 * parameters * (ring - 1) / ring / bandwidth + ring_latency
    scatter = 4 * parameters * (ring - 1) / ring / bandwidth + ring_latency
    across_copies = 0.0
    if replicas > 1:
        moved = 2 * (replicas - 1) / replicas * 4 * parameters
        across_copies = moved / network + units * 2 * (replicas - 1) * HOP

    forward, backward = layer_seconds(shape, tokens_per_gpu)
    recomputed = fewest_recomputed(shape, "mixed", ring, int(tokens_per_gpu), CARDS["80 GB"])
    copies = copied_per_parameter("mixed", ring) * parameters / H100.memory
    forward_compute = shape.layers * forward + copies / 3
    again = (shape.layers if recomputed is None else recomputed) * forward
    backward_compute = shape.layers * backward + again + 2 * copies / 3
    forward_pass = max(forward_compute, gather, shape.layers * H100.host_layer / 3)
    backward_pass = max(
        backward_compute, gather + scatter, across_copies, 2 * shape.layers * H100.host_layer / 3
    )
    return {
        "compute": forward_compute + backward_compute,
        "transfer": gather + max(gather + scatter, across_copies),
        "step": forward_pass + backward_pass + update_seconds(shape, "mixed", ring),
    }


# ---- tables --------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list]) -> str:
    """Markdown."""
    lines = []
    for row in [head, ["---"] * len(head), *rows]:
        lines.append("| " + " | ".join(map(str, row)) + " |")
    return "\n".join(lines)


def gib(value: float) -> str:
    return f"{value / GIB:.1f}"


def parameter_table(shape: Shape) -> str:
    head = ["precision", "weights", "gradients", "moments", "bytes a parameter", "GiB for 4B"]
    head.append("gathered for arithmetic")
    rows = []
    for precision, (_, compute) in PRECISIONS.items():
        parts = bytes_per_parameter(precision).values()
        total = sum(parts)
        rows.append(
            [f"`{precision}`", *parts, total, gib(shape.parameters * total), compute.itemsize]
        )
    return table(head, rows)


def activation_table(shape: Shape) -> str:
    layers = shape.layers
    head = [
        "arithmetic",
        *kept_per_layer(shape, 2),
        "bytes a token and layer",
        f"{layers} layers, a token and {TOKENS:,}",
        "all recomputed (`--activation-checkpointing on`)",
    ]
    rows = []
    for name, compute in (("bf16", 2), ("float32", 4)):
        parts = kept_per_layer(shape, compute).values()
        rows.append([name, *(f"{value:,.0f}" for value in parts), f"{sum(parts):,.0f}"])
        rows[-1] += describe_kept(shape, sum(parts), compute)
    compiled = ["bf16, compiled", *[""] * len(kept_per_layer(shape, 2)), f"{COMPILED_KEPT:,}"]
    rows.append(compiled + describe_kept(shape, COMPILED_KEPT, 2))
    return table(head, rows)


def describe_kept(shape: Shape, kept: float, compute: int) -> list[str]:
    """Of all layers, nothing recomputed; and all of them: their inputs, and one layer."""
    texts = []
    for of_token in (shape.layers * kept, shape.layers * compute * shape.hidden + kept):
        texts.append(f"{of_token / 1e6:.2f} MB, {gib(of_token * TOKENS)} GiB")
    return texts


def memory_table(shape: Shape) -> str:
    head = ["choice", "1 GPU", "2", "4", "8", *(f"largest pass on one {card}" for card in CARDS)]
    rows = []
    for precision in ("mixed", "bf16-sr"):
        for recomputed, offload in ((0, False), (shape.layers, False), (shape.layers, True)):
            option = "on" if recomputed else "off"
            choice = f"`{precision}` `--activation-checkpointing {option}`"
            if offload:
                choice += " `--cpu-offload`"
            row = [choice]
            for gpus in (1, 2, 4, 8):
                row.append(gib(memory(shape, precision, gpus, TOKENS, recomputed, offload)["peak"]))
            for card in CARDS.values():
                row.append(describe_pass(largest_pass(shape, precision, card, recomputed, offload)))
            rows.append(row)
    return table(head, rows)


def describe_pass(tokens: int) -> str:
    if not tokens:
        return "no"
    return f"{tokens:,} or more" if tokens == MOST_TOKENS else f"{tokens:,}"


def recomputation_table(shape: Shape) -> str:
    """Of one pass a step, compiled: 64 pairs shared by all GPUs, and a full pass on each."""
    head = ["precision", "pass", *(f"{n} x {card}" for card in ("80 GB", "48 GB") for n in (1, 8))]
    rows = []
    for precision in ("mixed", "bf16-sr"):
        for name, tokens_of in (
            ("64 short pairs in all", lambda gpus: TOKENS_OF_64_PAIRS // gpus),
            (f"{TOKENS:,} tokens on each", lambda gpus: TOKENS),
        ):
            row = [f"`{precision}`", name]
            for card in ("80 GB", "48 GB"):
                for gpus in (1, 8):
                    count = fewest_recomputed(shape, precision, gpus, tokens_of(gpus), CARDS[card])
                    row.append("no" if count is None else count)
            rows.append(row)
    return table(head, rows)


def one_gpu_table(shape: Shape) -> str:
    head = ["precision", "layers recomputed", "layers, s", "copies, s", "clip and update, s"]
    head += ["step, s", "pairs/s", "MFU of 989", f"of {H100.large_matmul / 1e12:.0f} measured"]
    rows = []
    for name, precision, rank in (
        ("`mixed`", "mixed", 0),
        ("`bf16-sr`", "bf16-sr", 0),
        (f"`mixed` `--lora-rank {RANK}`", "mixed", RANK),
    ):
        auto = fewest_recomputed(shape, precision, 1, TOKENS_OF_64_PAIRS, CARDS["80 GB"], rank=rank)
        for recomputed in sorted({auto, shape.layers}):
            parts = one_gpu_step(shape, precision, TOKENS_OF_64_PAIRS, recomputed, rank=rank)
            layers = f"{recomputed} (auto)" if recomputed == auto else recomputed
            seconds = [f"{parts[part]:.3f}" for part in ("layers", "copies", "update", "step")]
            rate = flops(shape, TOKENS_OF_64_PAIRS, rank=rank) / parts["step"]
            shares = [f"{rate / 989e12:.1%}", f"{rate / H100.large_matmul:.1%}"]
            rows.append([name, layers, *seconds, f"{64 / parts['step']:.0f}", *shares])
    return table(head, rows)


def lora_table() -> str:
    """Precision mixed, all layers recomputed, not compiled."""
    head = ["model", "parameters", "trained", "state, GiB", f"peak at {TOKENS:,} tokens"]
    head += [f"largest pass on one {card}" for card in CARDS]
    rows = []
    shapes = {"4B": QWEN3_4B, "8B": QWEN3_8B, "14B": QWEN3_14B, "32B": QWEN3_32B}
    for name, shape in shapes.items():
        trained = shape.trained_parameters(RANK)
        whole = shape.parameters + trained - shape.hidden
        settings = dict(recomputed=shape.layers, rank=RANK)
        parts = memory(shape, "mixed", 1, TOKENS, compiled=False, **settings)
        row = [f"Qwen3-{name}", f"{whole:,}", f"{trained:,}"]
        row += [gib(parts["state"]), gib(parts["peak"])]
        for card in CARDS.values():
            row.append(describe_pass(largest_pass(shape, "mixed", card, **settings)))
        rows.append(row)
    return table(head, rows)


def time_table(shape: Shape, tokens_of_step: float | None) -> str:
    """tokens_of_step: shared by all GPUs; None: a full pass on each."""
    head = ["GPUs", "nodes", "of a GPU, s"]
    for network in NETWORKS:
        head += [f"{network}: sharded over all, s", f"{network}: `--replicas` nodes, s"]
    rows = []
    for gpus in (1, 2, 4, 8, 16, 32, 64):
        nodes = max(1, gpus // PER_NODE)
        tokens = tokens_of_step / gpus if tokens_of_step else TOKENS
        times = []
        for network in NETWORKS.values():
            sharded = step_seconds(shape, gpus, tokens, network)
            copies = step_seconds(shape, gpus, tokens, network, replicas=nodes)
            times.append(f"{sharded['step']:.2f}")
            times.append(f"{copies['step']:.2f}" if nodes > 1 else "the same")
        rows.append([gpus, nodes, f"{sharded['compute']:.2f}", *times])
    return table(head, rows)


def tables(shape: Shape = QWEN3_4B) -> dict[str, str]:
    """Title -> Markdown, in the order of docs/memory.md."""
    parameters = "What rests on the GPUs, over all of them: bytes a parameter"
    activations = "What a pass keeps for its backward pass: bytes a token"
    peak = (
        f"Peak memory of one GPU in GiB, compiled, several passes of {TOKENS:,} tokens a step; "
        "and the largest pass one card holds"
    )
    recomputed = "Layers of 36 that `--activation-checkpointing auto` recomputes, one pass a step"
    one_gpu = f"A step of 64 short pairs ({TOKENS_OF_64_PAIRS:,} tokens) on one H100, compiled"
    lora = f"LoRA of rank {RANK}, `mixed`, one GPU, all layers recomputed, not compiled"
    full_pass = f"Seconds a step, a full pass of {TOKENS:,} tokens on each GPU"
    default_batch = (
        f"Seconds a step of 64 short pairs ({TOKENS_OF_64_PAIRS:,} tokens in all), "
        "the default batch"
    )
    return {
        parameters: parameter_table(shape),
        activations: activation_table(shape),
        peak: memory_table(shape),
        recomputed: recomputation_table(shape),
        lora: lora_table(),
        one_gpu: one_gpu_table(shape),
        full_pass: time_table(shape, None),
        default_batch: time_table(shape, TOKENS_OF_64_PAIRS),
    }


def main() -> None:
    print(
        "Computed, not measured on a GPU. "
        f"Qwen3-4B's shape: {QWEN3_4B.parameters:,} parameters, {QWEN3_4B.layers} layers."
    )
    for title, text in tables().items():
        print(f"\n### {title}\n\n{text}")


if __name__ == "__main__":
    main()
