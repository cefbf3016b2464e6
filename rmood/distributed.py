"""Rank, world size and device of this process; printing once; sums over ranks.

There is always a process group, also for one process, so no code asks whether it runs distributed.
Every rank calls every collective; inside `if process.is_main` there is only writing and printing.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous


@dataclass(frozen=True)
class Process:
    """rank of world_size processes; `device` is this process's own."""

    rank: int
    world_size: int
    device: torch.device
    store: dist.Store

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def print(self, *words) -> None:
        """Progress for people, once, on stderr: only results go to stdout."""
        if self.is_main:
            print(*words, file=sys.stderr, flush=True)

    def result(self, *words) -> None:
        """What came out, once, on stdout."""
        if self.is_main:
            print(*words, flush=True)

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over ranks, in place, on every rank."""
        dist.all_reduce(tensor)
        return tensor

    def barrier(self) -> None:
        """The host waits until all ranks have come.

        A collective alone is no barrier: NCCL returns to the host before other ranks have come.
        Reading the result is what waits.
        """
        self.sum(torch.zeros(1, device=self.device)).item()

    @contextlib.contextmanager
    def local_main_first(self):
        """On each machine local rank 0 runs the block first, then the others.

        So one process fetches or computes what all of them then find on disk. Every rank runs it.
        Where local rank 0 fails, the others try too, and fail likewise.
        """
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        if not is_first:
            self.barrier()
        try:
            yield
        finally:
            if is_first:
                self.barrier()

    def from_main(self, number: int) -> int:
        """Rank 0's number, on every rank."""
        own = number if self.is_main else 0
        return int(self.sum(torch.tensor([own], device=self.device)).item())

    def least(self, number: int) -> int:
        """The smallest of all ranks' numbers, on every rank."""
        own = torch.tensor([int(number)], device=self.device)
        dist.all_reduce(own, op=dist.ReduceOp.MIN)
        return int(own.item())

    def finish(self) -> None:
        """Leave the process group together: gloo aborts a process that still writes to one that
        closed its sockets."""
        self._arrive("finished")
        self.store.wait(["all finished"])
        # Rank 0 may host the store: it waits until the others have read the answer above.
        self._arrive("left")
        if self.is_main:
            self.store.wait(["all left"])
        dist.destroy_process_group()

    def _arrive(self, event: str) -> None:
        """Count this process in; the last one to come sets the key that the others wait for."""
        if self.store.add(event, 1) == self.world_size:
            self.store.set(f"all {event}", "yes")


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A host tensor on the device. Pinned first: else the host would wait for the copy."""
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def catch_signals() -> list[int]:
    """From now on SIGINT and SIGTERM only append their number to the returned list.

    So the caller can stop where its work can be saved. A second SIGINT raises KeyboardInterrupt at
    once; a second SIGTERM does not, for a scheduler may send one beside torchrun's.
    """
    caught: list[int] = []

    def catch(number, frame):
        if number == signal.SIGINT and signal.SIGINT in caught:
            raise KeyboardInterrupt(number)
        caught.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, catch)
    return caught


def start(device: str = "auto", timeout_minutes: int = 60) -> Process:
    """Join the process group: torchrun's, or one of a single process.

    device: "cuda", "cpu" or "auto" (CUDA where there is one). NCCL on CUDA, gloo on a CPU.
    """
    rank = int(os.environ.get("RANK", 0))
    world_size = int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda":
        own_device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(own_device)
        backend = "nccl"  # alone: gloo beside it would connect all hosts by their names
    else:
        own_device = torch.device("cpu")
        backend = "gloo"
    if world_size == 1:
        store = dist.HashStore()
    else:
        store, _, _ = next(rendezvous("env://"))
    if not dist.is_initialized():
        dist.init_process_group(
            backend,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(minutes=timeout_minutes),
            store=store,
            device_id=own_device if device == "cuda" else None,
        )
    return Process(rank, world_size, own_device, store)
