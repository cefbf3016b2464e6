"""Who am I among the processes; print once; sums over ranks.

There is always a process group, also for one process, so no code asks whether it runs distributed. Every rank calls
every collective; inside `if process.is_main` there is only file writing and printing.
"""

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
        """Progress for people, once, on stderr: results alone go to stdout."""
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
        """Wait for all ranks."""
        self.sum(torch.zeros(1, device=self.device))

    def finish(self) -> None:
        """Leave together: gloo aborts a process that still writes to one that closed its sockets."""
        for word in ("finished", "left"):  # the second round is for rank 0: it may hold the store that the others still hear
            if self.store.add(word, 1) == self.world_size:
                self.store.set(f"all {word}", "yes")
            if word == "finished" or self.is_main:
                self.store.wait([f"all {word}"])
        dist.destroy_process_group()


def note_signals() -> list[int]:
    """From now on SIGINT and SIGTERM are noted in the list given back, for work to stop where it can be kept. A second
    SIGINT does not wait; a second SIGTERM does, for a scheduler may send one beside torchrun's."""
    noted: list[int] = []

    def note(number, frame):
        if number == signal.SIGINT in noted:
            raise KeyboardInterrupt(number)
        noted.append(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return noted


def start(device: str = "auto", timeout_minutes: int = 60) -> Process:
    """Join the process group: torchrun's, or one of a single process.

    device: "cuda", "cpu" or "auto" (CUDA where there is one). NCCL on CUDA, gloo on a CPU.
    """
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    here = torch.device(device, int(os.environ.get("LOCAL_RANK", 0))) if device == "cuda" else torch.device("cpu")
    if here.type == "cuda":
        torch.cuda.set_device(here)
    store = dist.HashStore() if world_size == 1 else next(rendezvous("env://"))[0]
    if not dist.is_initialized():
        backend = "cuda:nccl,cpu:gloo" if here.type == "cuda" else "gloo"
        dist.init_process_group(backend, rank=rank, world_size=world_size, timeout=timedelta(minutes=timeout_minutes), store=store)
    return Process(rank, world_size, here, store)
