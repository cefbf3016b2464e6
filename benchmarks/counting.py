"""What a step does to a GPU, counted on tensors that need not exist; not a command itself.

Each mode looks at every operator that PyTorch runs while it is on. A tensor on `meta` has a shape
and a dtype and no data, so a whole Qwen3-4B can be run on a laptop: `meta` stands for the GPU.
"""

import weakref
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NO_KERNEL = ("detach", "empty", "_unsafe_view", "_reshape_alias", "set_", "profiler", "c10d")


def tensors_of(*values) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def launches_kernel(operator) -> bool:
    """Views and allocations launch none; a collective is not counted here."""
    return not operator.is_view and not any(word in str(operator) for word in NO_KERNEL)


def touched_bytes(tensor: Tensor) -> int:
    """Bytes of a tensor that differ: an expanded dimension is read once."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride()):
        if stride or size == 1:
            count *= size
    return count * tensor.element_size()


@dataclass
class Cost:
    """Of all calls of one operator."""

    kernels: int = 0
    bytes: float = 0.0  # read and written
    flops: float = 0.0  # of matrix products


class CountOperations(TorchDispatchMode):
    """Kernels, bytes and FLOPs by operator, as eager PyTorch would launch them."""

    def __init__(self):
        super().__init__()
        self.costs: dict[str, Cost] = defaultdict(Cost)

    @property
    def total(self) -> int:
        return sum(cost.kernels for cost in self.costs.values())

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        output = operator(*args, **(kwargs or {}))
        if launches_kernel(operator):
            cost = self.costs[operator.name()]
            cost.kernels += 1
            cost.bytes += moved_bytes(operator, tensors_of(args, kwargs), tensors_of(output))
            cost.flops += matmul_flops(operator, args)
        return output


def moved_bytes(operator, inputs: list[Tensor], outputs: list[Tensor]) -> float:
    """A gather reads only what it writes, a fill reads nothing."""
    name = operator.name()
    written = sum(map(touched_bytes, outputs))
    if "index_select" in name or name in ("aten::index.Tensor", "aten::embedding"):
        return 2 * written + touched_bytes(inputs[-1])
    if "index_add" in name:
        return 3 * touched_bytes(inputs[2]) + 2 * written
    if any(word in name for word in ("zeros", "fill", "zero_", "ones")):
        return written
    return written + sum(map(touched_bytes, inputs))


def matmul_flops(operator, args) -> float:
    name = operator.name()
    if name in ("aten::mm", "aten::addmm"):
        a, b = args[-2:]
        return 2.0 * a.shape[0] * a.shape[1] * b.shape[1]
    return 0.0


class LiveMemory(TorchDispatchMode):
    """Bytes of the tensors made while it is on: alive now, and at the most."""

    def __init__(self):
        super().__init__()
        self.live = 0
        self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        given = {tensor.untyped_storage()._cdata for tensor in tensors_of(args, kwargs)}
        output = operator(*args, **(kwargs or {}))
        for tensor in tensors_of(output):
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key not in self._known and key not in given:  # else a view of what was there
                size = storage.nbytes()
                self._known.add(key)
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self._free, key, size)
        return output

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


class CountWaits(TorchDispatchMode):
    """Operators for which the host would wait, were `meta` a GPU: name -> how often.

    - A value or a size that the host reads: item(), bool(), tolist(), nonzero, a boolean mask.
    - A copy between host and device, other than one from pinned memory that is not waited for. An
      index on the host is such a copy, and so is a Python list, as an index or as a tensor's data.

    It answers 1 where the host reads a value: `meta` has none. While it is on, pin_memory marks a
    tensor as pinned, which needs a GPU.
    """

    READS = (
        "aten::_local_scalar_dense",
        "aten::is_nonzero",
        "aten::equal",
        "aten::nonzero",
        "aten::masked_select",
        "aten::unique",
        "aten::_unique2",
    )
    COPIES = ("aten::_to_copy", "aten::copy_")

    def __init__(self):
        super().__init__()
        self.waits: Counter = Counter()
        self._pinned: dict[int, Tensor] = {}  # id -> tensor
        self._pin_memory = Tensor.pin_memory
        self._lists = _CountLists(self.waits)

    def __enter__(self):
        def pin_memory(tensor, *_):
            pinned = tensor.clone()
            self._pinned[id(pinned)] = pinned
            return pinned

        Tensor.pin_memory = pin_memory
        self._lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        Tensor.pin_memory = self._pin_memory
        self._lists.__exit__(*error)
        return super().__exit__(*error)

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = operator.name()
        inputs = tensors_of(args, kwargs)
        on_device = [tensor for tensor in inputs if tensor.device.type == "meta"]
        on_host = [tensor for tensor in inputs if tensor.device.type == "cpu" and tensor.ndim]
        if on_device and name in self.READS:
            self.waits[name] += 1
            if name == "aten::_local_scalar_dense":
                return 1
        elif name in self.COPIES:
            target = kwargs.get("device") or inputs[0].device
            source = inputs[-1]
            devices = {target.type, source.device.type}
            is_async = kwargs.get("non_blocking", False) and id(source) in self._pinned
            if devices == {"meta", "cpu"} and not is_async:
                self.waits[name] += 1
        elif on_device and on_host:
            self.waits[name] += 1  # an index on the host
            moved = {id(tensor): tensor.to("meta") for tensor in on_host}
            args = torch.utils._pytree.tree_map(lambda leaf: moved.get(id(leaf), leaf), args)
        elif on_device and name in ("aten::index.Tensor", "aten::index_put_"):
            if any(tensor.dtype == torch.bool for tensor in on_device[1:]):
                self.waits[name] += 1
        return operator(*args, **kwargs)


class _CountLists(TorchFunctionMode):
    """Python lists that become tensors on `meta`: PyTorch copies them where no mode can see it."""

    INDEXING = (Tensor.__getitem__, Tensor.__setitem__)
    MAKERS = (torch.tensor, torch.as_tensor)

    def __init__(self, waits: Counter):
        super().__init__()
        self.waits = waits

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in self.INDEXING and args[0].device.type == "meta":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in index):
                self.waits["a list as index"] += 1
        on_meta = torch.device(kwargs.get("device") or "cpu").type == "meta"
        if function in self.MAKERS and on_meta and not isinstance(args[0], Tensor):
            self.waits["a list as data"] += 1
        return function(*args, **kwargs)
