"""AdamW and gradient clipping for sharded float32 weights."""

import torch
from torch import nn
from torch.distributed.tensor import DTensor


def build_optimizer(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019) with the field's usual betas; biases and norms are not decayed."""
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def clip_gradients(model: nn.Module, max_norm: float) -> dict[str, torch.Tensor]:
    """Scale all gradients so that their common L2 norm is at most max_norm. Returns the norms before clipping.

    {"grad_norm", "grad_norm_head", "grad_norm_backbone"}, scalars, the same on every rank.
    """

    def norm(module: nn.Module) -> torch.Tensor:
        grads = [p.grad for p in module.parameters() if p.grad is not None]
        total = nn.utils.get_total_norm(grads)
        return total.full_tensor() if isinstance(total, DTensor) else total

    head, backbone = norm(model.score), norm(model.backbone)
    total = torch.sqrt(head**2 + backbone**2)
    nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, total)
    return {"grad_norm": total, "grad_norm_head": head, "grad_norm_backbone": backbone}
