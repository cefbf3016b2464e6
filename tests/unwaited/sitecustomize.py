"""Collectives with NCCL's meaning, on a CPU: they return to the host before other ranks have come.

Python imports this file by itself where its folder is on PYTHONPATH. In the processes of torchrun
it replaces the collectives of torch.distributed by ones that are only begun. What would come later
on the same CUDA stream, any operation on such a tensor, first waits for the collective, and so does
what would synchronise the host with the stream: .item(), .tolist(), .cpu(), .numpy(). Nothing else
waits. Rank 1 comes late to each collective.
"""

import os

if "RANK" in os.environ and os.environ.get("RMOOD_TEST_UNWAITED"):
    import time

    import torch
    import torch.distributed as dist
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    LATE_SECONDS = 0.02 if os.environ["RANK"] == "1" else 0.0
    PENDING = {}  # address of a storage -> the work that fills it

    def address(tensor) -> int | None:
        """Of the memory behind a tensor (a DTensor's local part); None where it has none."""
        local = getattr(tensor, "_local_tensor", tensor)
        try:
            return local.untyped_storage().data_ptr()
        except RuntimeError:
            return None  # a fake tensor

    def begin_only(collective):
        """The collective as NCCL has it: the host goes on at once."""

        def begun(*args, async_op: bool = False, **kwargs):
            time.sleep(LATE_SECONDS)
            work = collective(*args, async_op=True, **kwargs)
            if async_op:
                return work
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    PENDING[address(tensor)] = work
            return None

        return begun

    def wait_for(values) -> None:
        for value in tree_leaves(values) if PENDING else ():
            work = PENDING.pop(address(value), None) if isinstance(value, torch.Tensor) else None
            if work is not None:
                work.wait()

    class StreamOrder(TorchDispatchMode):
        """An operation on a tensor comes after the collective that was begun on it."""

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            kwargs = kwargs or {}
            if not func.name().startswith("c10d::"):
                wait_for((args, kwargs))
            return func(*args, **kwargs)

    def synchronising(method):
        def waits(tensor, *args, **kwargs):
            wait_for(tensor)
            return method(tensor, *args, **kwargs)

        return waits

    for name in ("all_reduce", "broadcast", "all_gather_into_tensor", "reduce_scatter_tensor"):
        setattr(dist, name, begin_only(getattr(dist, name)))
    for name in ("tolist", "cpu", "numpy", "item"):
        setattr(torch.Tensor, name, synchronising(getattr(torch.Tensor, name)))
    StreamOrder().__enter__()
