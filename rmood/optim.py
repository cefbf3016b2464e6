"""AdamW in each precision mode, gradient clipping, and the share of updates that rounding swallows.

Weights, gradients and moments are sharded: each process works on its own part, `local(tensor)`.
"""

import functools
import itertools
from collections.abc import Callable, Iterable

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .distributed import Process

BETAS = (0.9, 0.999)  # the field's usual ones
EPS = 1e-8
KINDS = ("embeddings", "attention", "mlp", "norms", "head", "other")


def kind_of(name: str) -> str:
    """The kind of a weight by its name, e.g. backbone.layers.0.self_attn.q_norm.weight -> norms."""
    words = dict(head="score", embeddings="embed", norms="norm", attention="attn", mlp="mlp")
    for kind, word in words.items():
        if word in name:
            return kind
    return "other"


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By name: all but those that LoRA leaves as they are."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def build_optimizer(
    model: nn.Module, precision: str, lr: float, weight_decay: float, seed: int = 0
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2); biases and norms are not decayed.

    Moments have the precision of the trained weights: float32 (mixed, float32) or bf16 (bf16,
    bf16-sr).
    seed: of the stochastic rounding, equal on processes that hold copies of the same shard
    (sharding.shards_of).
    """
    trained = trained_parameters(model).values()
    decayed = [p for p in trained if p.ndim >= 2]
    others = [p for p in trained if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]  # LoRA trains matrices alone
    if precision == "bf16-sr":
        return AdamWStochasticRounding(groups, lr, seed)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=True)


class AdamWStochasticRounding(torch.optim.Optimizer):
    """AdamW on bf16 weights and moments: computed in float32, stored by stochastic rounding.

    A bf16 weight of 0.02 has steps of 1.2e-4; rounded to the nearest, an update of 1e-5 is lost
    every time. Rounded up with probability 1e-5 / 1.2e-4 it is kept on average (Gupta et al. 2015;
    Zamirai et al. 2020). The second moment needs it most: its decay of 0.1% a step is below bf16's
    0.4%.
    """

    # Weights updated at once: only of a chunk, not of a whole embedding, are there float32 copies.
    CHUNK = 1 << 24

    def __init__(self, params, lr: float, seed: int = 0):
        super().__init__(params, dict(lr=lr, weight_decay=0.0))
        device = local(self.param_groups[0]["params"][0]).device
        self.generator = torch.Generator(device).manual_seed(seed)
        self.update = fused_update() if device.type == "cuda" else update_in_place

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            device = local(group["params"][0]).device
            # Tensors: numbers would be compiled in, and the rate is another one in each step.
            rate = torch.tensor(group["lr"], device=device)
            decay = rate * group["weight_decay"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["step"] = torch.zeros((), device=local(p).device)
                    state["exp_avg"] = torch.zeros_like(p)
                    state["exp_avg_sq"] = torch.zeros_like(p)
                state["step"] += 1
                t = state["step"]
                tensors = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
                chunks = [local(tensor).view(-1).split(self.CHUNK) for tensor in tensors]
                for weight, grad, exp_avg, exp_avg_sq in zip(*chunks):
                    if weight.numel():  # a shard may be empty
                        noise = self.noise_for(weight)
                        self.update(weight, grad, exp_avg, exp_avg_sq, noise, t, rate, decay)

    def noise_for(self, weight: torch.Tensor) -> torch.Tensor | None:
        """(n,) random 48 bits for each weight of a chunk: 16 for the weight, 16 for each moment.

        None for a float32 weight, which is not rounded.
        """
        if weight.dtype != torch.bfloat16:
            return None
        noise = torch.empty(weight.shape, dtype=torch.int64, device=weight.device)
        return noise.random_(generator=self.generator)


def update_chunk(
    weight: torch.Tensor,
    grad: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    noise: torch.Tensor | None,
    t: torch.Tensor,
    rate: torch.Tensor,
    decay: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """AdamW's step t: the new weight, exp_avg and exp_avg_sq, each (n,), in the old ones' dtype.

    noise: (n,) from `noise_for`; None: nothing is rounded. t, rate, decay: scalars.
    """
    grad = grad.float()
    m = exp_avg.float().lerp(grad, 1 - BETAS[0])
    v = exp_avg_sq.float().lerp(grad.square(), 1 - BETAS[1])
    new_weight = weight.float() * (1 - decay) - adam_step(m, v, t, rate)
    if noise is None:
        return new_weight, m, v
    return (
        round_stochastically(new_weight, noise),
        round_stochastically(m, noise >> 16),
        round_stochastically(v, noise >> 32),
    )


def round_stochastically(value: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """float32 -> bf16, up or down with the odds that keep the mean: 16 bits of noise decide.

    bf16 is the upper half of float32: adding a random lower half carries into the upper one as
    often as it should.
    """
    low = (noise & 0xFFFF).to(torch.int32)
    bits = (value.view(torch.int32) + low).bitwise_and(-(1 << 16))
    return bits.view(torch.float32).to(torch.bfloat16)  # exact: the lower half is 0


def update_in_place(
    weight: torch.Tensor, grad: torch.Tensor, exp_avg: torch.Tensor, exp_avg_sq: torch.Tensor, *more
) -> None:
    """`update_chunk`, stored."""
    new_values = update_chunk(weight, grad, exp_avg, exp_avg_sq, *more)
    for target, value in zip((weight, exp_avg, exp_avg_sq), new_values):
        target.copy_(value)


@functools.cache
def fused_update() -> Callable:
    """`update_in_place` compiled into one kernel, once for all sizes."""
    return torch.compile(update_in_place, dynamic=True, fullgraph=True)


def adam_step(
    m: torch.Tensor, v: torch.Tensor, t: torch.Tensor, lr: float | torch.Tensor
) -> torch.Tensor:
    """Kingma & Ba 2015, algorithm 1: lr * m_hat / (sqrt(v_hat) + eps).

    m_hat and v_hat are the moments after step t, corrected for their start at 0.
    """
    m_hat = m / (1 - BETAS[0] ** t)
    v_hat = v / (1 - BETAS[1] ** t)
    return lr * m_hat / (v_hat.sqrt() + EPS)


def fill_moments(model: nn.Module, optimizer: torch.optim.Optimizer, updates: float = 0.0) -> None:
    """Allocate both moments of every trained weight before the first step, filled with 0.

    So an out-of-memory error comes at once, and load_checkpoint finds the tensors that it fills.
    updates: how many optimizer steps were taken already, for the correction of the moments' start.
    """
    for p in trained_parameters(model).values():
        optimizer.state[p] = {
            "step": torch.tensor(updates, device=local(p).device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }


def clip_gradients(
    model: nn.Module, max_norm: float, process: Process, replicas: int = 1
) -> dict[str, torch.Tensor]:
    """Scale all gradients so that their common L2 norm is at most max_norm.

    Returns the norms before clipping, scalars, equal on every rank: grad_norm, grad_norm_backbone,
    and grad_norm_<kind>.
    """
    grads: dict[str, list[torch.Tensor]] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grads.setdefault(kind_of(name), []).append(local(p.grad))
    kinds = [kind for kind in KINDS if kind in grads]
    own_squares = torch.stack([sum_of_squares(grads[kind]) for kind in kinds]).to(process.device)
    # The sum over the parts of all processes; every replica adds the same parts once more.
    squares = dict(zip(kinds, process.sum(own_squares) / replicas))

    total = sum(squares.values()).sqrt()
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, total)
    of_backbone = [square for kind, square in squares.items() if kind != "head"]
    norms = {"grad_norm": total, "grad_norm_backbone": sum(of_backbone).sqrt()}
    for kind, square in squares.items():
        norms[f"grad_norm_{kind}"] = square.sqrt()
    return norms


def sum_of_squares(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Of all values, in float32: bf16 has only 3 digits."""
    norms = torch._foreach_norm(tensors, 2, dtype=torch.float32)  # a kernel for many tensors
    return torch.stack(norms).square().sum()


class UpdateMeter:
    """What became of one optimizer step: how much of it the weights could hold.

        meter = UpdateMeter(model)  # remembers the weights: a sample of each tensor is enough
        optimizer.step()
        metrics = meter.read(model, optimizer, process)

    lost_updates          share of the weights with an update that did not change: it vanished in
                          rounding
    lost_updates_<kind>   the same for embeddings, attention, mlp, norms, head, as far as trained
    update_kept           <actual, intended> / <intended, intended>: 1 where rounding loses nothing
                          on average. Stochastic rounding leaves most weights unchanged in a step
                          too, yet keeps this near 1
    update_ratio          norm of the actual update over the norm of the weights

    All samples are gathered into one vector: some fifty kernels for a model of 400 tensors.

    n sampled tensors, S samples of all of them
    """

    def __init__(self, model: nn.Module, per_tensor: int = 1024):
        """per_tensor: how many weights of each tensor to sample, about."""
        named = [(name, p) for name, p in model.named_parameters() if p.grad is not None]
        # One dtype after the other: torch.cat of equal dtypes is one kernel for dozens of tensors.
        named.sort(key=lambda pair: str(pair[1].dtype))
        self.kinds = [KINDS.index(kind_of(name)) for name, _ in named]
        self.params = [p for _, p in named]
        # odd: or a matrix might be sampled in one column only
        self.strides = [max(1, local(p).numel() // per_tensor) | 1 for p in self.params]
        self.before = self.sample(self.params)

    def sample(self, tensors: Iterable[torch.Tensor]) -> torch.Tensor:
        """(S,) float32: every stride-th value of each of the n tensors."""
        samples = []
        for tensor, stride in zip(tensors, self.strides, strict=True):
            samples.append(local(tensor).detach().flatten()[::stride])
        vectors = []
        for _, of_one_dtype in itertools.groupby(samples, key=lambda sample: sample.dtype):
            vectors.append(torch.cat(list(of_one_dtype)).float())
        return vectors[0] if len(vectors) == 1 else torch.cat(vectors)

    @torch.no_grad()
    def read(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, process: Process
    ) -> dict[str, torch.Tensor]:
        """The metrics above, scalars, equal on every rank, for the step taken since __init__."""
        before = self.before
        actual = self.sample(self.params) - before
        states = [optimizer.state[p] for p in self.params]
        m = self.sample(state["exp_avg"] for state in states)
        v = self.sample(state["exp_avg_sq"] for state in states)
        steps = torch.stack([state["step"] for state in states]).to(before.device)  # (n,)
        facts, owner = self._facts(optimizer, before.device)
        rate, decay, *by_kind = facts[owner].T  # (S,) each

        # the update in float32 that the moments after the step ask for
        intended = -adam_step(m, v, steps[owner], rate) - decay * before
        has_update = intended != 0
        columns = [
            has_update.float(),
            (has_update & (actual == 0)).float(),  # lost
            actual * intended,
            intended.square(),
            actual.square(),
            before.square(),
        ]
        # float64: a sum over all weights, each sample standing for many
        sums = torch.stack(by_kind).double() @ torch.stack(columns).double().T  # (kinds, 6)
        sums = process.sum(sums.to(process.device))

        updates, lost, kept, intended, actual, weights = sums.sum(dim=0)
        metrics = {
            "lost_updates": lost / updates,
            "update_kept": kept / intended,
            "update_ratio": (actual / weights).sqrt(),
        }
        lost_of_kinds = sums[:, 1] / sums[:, 0]
        for number, kind in enumerate(KINDS[:-1]):
            if number in self.kinds:
                metrics[f"lost_updates_{kind}"] = lost_of_kinds[number]
        return metrics

    def _facts(self, optimizer, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, 2 + kinds) facts of each tensor, and (S,) which tensor each sample is of.

        The facts: rate, decay of a step, and for its own kind how many weights a sample stands for.
        """
        settings = {p: group for group in optimizer.param_groups for p in group["params"]}
        facts = []
        counts = []
        for p, kind, stride in zip(self.params, self.kinds, self.strides):
            rate = settings[p]["lr"]
            decay = rate * settings[p]["weight_decay"]
            facts.append([rate, decay, *(stride * (k == kind) for k in range(len(KINDS)))])
            counts.append(-(-local(p).numel() // stride))
        owner = torch.repeat_interleave(torch.tensor(counts))
        return torch.tensor(facts, dtype=torch.float32, device=device), owner.to(device)
