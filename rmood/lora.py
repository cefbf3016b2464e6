"""LoRA: two small matrices are trained beside each weight matrix, which stays as it is.

    y = W x + (alpha / r) B A x                       Hu et al. 2021, section 4.1

W (out, in) is not trained; A (r, in) and B (out, r) are, in float32. B begins at 0, so the first
rewards are those of the start model. Adapters lie beside every nn.Linear of the backbone's layers:
in Qwen3 and Llama q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj. The head is
trained whole. Embeddings, norms, and matrices that are not an nn.Linear (a mixture's experts, which
transformers stacks into one tensor) stay as they are.

The saved model holds W + (alpha / r) B A (export.py): it is an ordinary one.

r rank of the adapters
"""

from collections.abc import Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import nn

from .errors import UserError


class LoraLinear(nn.Linear):
    """(..., in) -> (..., out). Its weight and bias keep their names, and are not trained."""

    def __init__(self, linear: nn.Linear, rank: int, alpha: float):
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.scale = alpha / rank
        device = linear.weight.device
        self.lora_a = nn.Parameter(torch.empty(rank, linear.in_features, device=device))
        self.lora_b = nn.Parameter(torch.empty(linear.out_features, rank, device=device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        update = F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.linear(x, self.weight, self.bias) + self.scale * update


def add_adapters(
    backbone: nn.Module, layers: Iterable[nn.Module], rank: int, alpha: float
) -> set[str]:
    """From now on only adapters beside the layers' nn.Linear modules are trained, in place.

    Returns the names of these modules within a layer. To be called before the model is sharded;
    loading.fill gives the adapters their first values. Raises UserError where there is no
    nn.Linear.
    """
    backbone.requires_grad_(False)
    names = set()
    for layer in layers:
        for name, module in list(layer.named_modules()):
            if type(module) is nn.Linear:
                layer.set_submodule(name, LoraLinear(module, rank, alpha))
                names.add(name)
    if not names:
        raise UserError(
            f"{type(backbone).__name__}: its layers have no nn.Linear to put adapters beside: "
            "train without --lora-rank"
        )
    return names


def adapted_modules(model: nn.Module) -> dict[str, LoraLinear]:
    """By name."""
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def is_adapter(name: str) -> bool:
    """Whether a parameter's name is that of an A or a B."""
    return name.endswith((".lora_a", ".lora_b"))


def first_values(model: nn.Module, seed: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, whole tensor) of every adapter: A uniform within 1 / sqrt(in), B zero, as in the
    authors' loralib. seed: None only where there are no adapters."""
    modules = adapted_modules(model)
    if not modules:
        return
    generator = torch.Generator().manual_seed(seed)
    for name, module in modules.items():
        bound = module.in_features**-0.5
        a = torch.empty(module.lora_a.shape).uniform_(-bound, bound, generator=generator)
        yield f"{name}.lora_a", a
        yield f"{name}.lora_b", torch.zeros(module.lora_b.shape)


def merge(weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor, scale: float) -> torch.Tensor:
    """(out, in) W + scale B A, float32."""
    return weight.float() + scale * (b.float() @ a.float())
