"""AdamW in each precision mode, gradient clipping, and the share of updates that rounding swallows.

Weights, gradients and moments are sharded: each process works on its own part, `local(tensor)`.
"""

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from .distributed import Process

BETAS, EPS = (0.9, 0.999), 1e-8  # the field's usual ones
KINDS = ("embeddings", "attention", "mlp", "norms", "head", "other")


def kind_of(name: str) -> str:
    """The kind of a weight by its name, e.g. backbone.layers.0.self_attn.q_norm.weight -> norms."""
    words = dict(head="score", embeddings="embed", norms="norm", attention="attn", mlp="mlp")
    return next((kind for kind, word in words.items() if word in name), "other")


def local(tensor: torch.Tensor) -> torch.Tensor:
    """This process's part of a sharded tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def build_optimizer(model: nn.Module, precision: str, lr: float, weight_decay: float, seed: int = 0) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019, algorithm 2); biases and norms are not decayed.

    Moments have the precision of the weights: float32 (mixed, float32) or bf16 (bf16, bf16-sr).
    """
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    if precision == "bf16-sr":
        return AdamWStochasticRounding(groups, lr, seed)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS, eps=EPS, fused=True)


class AdamWStochasticRounding(torch.optim.Optimizer):
    """AdamW on bf16 weights and moments: computed in float32, stored by stochastic rounding.

    A bf16 weight of 0.02 has steps of 1.2e-4; rounded to the nearest, an update of 1e-5 is lost every time. Rounded up
    with probability 1e-5 / 1.2e-4 it is kept on average (Gupta et al. 2015; Zamirai et al. 2020). The second moment
    needs it most: its decay of 0.1% a step is below bf16's 0.4%.
    """

    CHUNK = 1 << 24  # weights updated at once: some float32 copies of a chunk, not of a whole embedding, are in memory

    def __init__(self, params, lr: float, seed: int = 0):
        super().__init__(params, dict(lr=lr, weight_decay=0.0))
        device = local(self.param_groups[0]["params"][0]).device
        self.generator = torch.Generator(device).manual_seed(seed)

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    zeros = lambda: torch.zeros_like(p)  # noqa: E731
                    state.update(step=torch.zeros((), device=local(p).device), exp_avg=zeros(), exp_avg_sq=zeros())
                state["step"] += 1
                whole = (p, p.grad, state["exp_avg"], state["exp_avg_sq"])
                for weight, grad, exp_avg, exp_avg_sq in zip(*(local(tensor).view(-1).split(self.CHUNK) for tensor in whole)):
                    grad = grad.float()
                    m = exp_avg.float().lerp(grad, 1 - BETAS[0])
                    v = exp_avg_sq.float().lerp(grad.square(), 1 - BETAS[1])
                    decayed = weight.float() * (1 - group["lr"] * group["weight_decay"])
                    self.store(decayed - adam_step(m, v, state["step"], group["lr"]), weight)
                    self.store(m, exp_avg)
                    self.store(v, exp_avg_sq)

    def store(self, value: torch.Tensor, target: torch.Tensor) -> None:
        """target <- value; where target is bf16, up or down with the odds that keep the mean.

        bf16 is the upper half of float32: adding a random lower half carries into the upper one as often as it should.
        """
        if target.dtype == torch.bfloat16:
            bits = value.view(torch.int32)
            noise = torch.randint(0, 1 << 16, bits.shape, dtype=torch.int32, device=bits.device, generator=self.generator)
            value = (bits + noise).bitwise_and_(-(1 << 16)).view(torch.float32)
        target.copy_(value)


def adam_step(m: torch.Tensor, v: torch.Tensor, t: torch.Tensor, lr: float) -> torch.Tensor:
    """Kingma & Ba 2015, algorithm 1: lr * m_hat / (sqrt(v_hat) + eps), with both moments corrected for their start at 0."""
    return lr * (m / (1 - BETAS[0] ** t)) / ((v / (1 - BETAS[1] ** t)).sqrt() + EPS)


def clip_gradients(model: nn.Module, max_norm: float, process: Process, replicas: int = 1) -> dict[str, torch.Tensor]:
    """Scale all gradients so that their common L2 norm is at most max_norm.

    Returns the norms before clipping, scalars, equal on every rank: grad_norm, grad_norm_backbone, and grad_norm_<kind>.
    """
    grads: dict[str, list[torch.Tensor]] = {}
    for name, p in model.named_parameters():
        if p.grad is not None:
            grads.setdefault(kind_of(name), []).append(local(p.grad))
    kinds = [kind for kind in KINDS if kind in grads]
    squares = torch.stack([nn.utils.get_total_norm(grads[kind]).float().to(process.device) ** 2 for kind in kinds])
    squares = dict(zip(kinds, process.sum(squares) / replicas))  # the parts of all processes
    total = sum(squares.values()).sqrt()
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, total)
    backbone = sum(square for kind, square in squares.items() if kind != "head").sqrt()
    return {"grad_norm": total, "grad_norm_backbone": backbone} | {f"grad_norm_{kind}": square.sqrt() for kind, square in squares.items()}


class UpdateMeter:
    """What became of one optimizer step: how much of it the weights could hold. A sample of each tensor is enough.

        meter = UpdateMeter(model)
        optimizer.step()
        metrics = meter.read(model, optimizer, process)

    lost_updates          share of the weights with an update that did not change: it vanished in rounding
    lost_updates_<kind>   the same for embeddings, attention, mlp, norms, head
    update_kept           <actual, intended> / <intended, intended>: 1 where rounding loses nothing on average. Stochastic
                          rounding leaves most weights unchanged in a step too, yet keeps this near 1
    update_ratio          norm of the actual update over the norm of the weights
    """

    def __init__(self, model: nn.Module, per_tensor: int = 1024):
        self.stride = {name: max(1, local(p).numel() // per_tensor) | 1 for name, p in model.named_parameters()}  # odd: not one column alone
        self.before = {name: self.sample(name, p).clone() for name, p in model.named_parameters()}

    def sample(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        return local(tensor).detach().flatten()[:: self.stride[name]].float()

    @torch.no_grad()
    def read(self, model: nn.Module, optimizer: torch.optim.Optimizer, process: Process) -> dict[str, torch.Tensor]:
        settings = {p: group for group in optimizer.param_groups for p in group["params"]}
        sums = torch.zeros(len(KINDS), 5, device=process.device)  # weights with an update, lost ones, <a, i>, <i, i>, <a, a>
        weight_square = torch.zeros((), device=process.device)
        for name, p in model.named_parameters():
            state, group, before = optimizer.state[p], settings[p], self.before[name]
            m, v = (self.sample(name, state[moment]) for moment in ("exp_avg", "exp_avg_sq"))
            intended = -adam_step(m, v, state["step"].to(m.device), group["lr"]) - group["lr"] * group["weight_decay"] * before
            actual = self.sample(name, p) - before
            wanted = intended != 0
            values = [wanted.sum(), (wanted & (actual == 0)).sum(), actual @ intended, intended @ intended, actual @ actual]
            sums[KINDS.index(kind_of(name))] += self.stride[name] * torch.stack([value.float() for value in values]).to(process.device)
            weight_square += self.stride[name] * (before @ before).to(process.device)
        process.sum(sums), process.sum(weight_square)
        wanted, lost, kept, intended, actual = sums.sum(dim=0)
        metrics = {"lost_updates": lost / wanted, "update_kept": kept / intended, "update_ratio": (actual / weight_square).sqrt()}
        return metrics | {f"lost_updates_{kind}": sums[i, 1] / sums[i, 0] for i, kind in enumerate(KINDS[:-1])}
