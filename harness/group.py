"""The processes that train one point together: who leads, what they agree on, what they add up.

`Alone` is the group of one: nothing is sent and nothing costs. In a `Group` every rank runs the same loop in lockstep;
what depends on a clock or on somebody's wish is decided by rank 0 and told to the others.
"""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path

import torch
from torch import Tensor

# A rank that dies is seen by its supervisor at once. This is for one that hangs, and longer than any checkpoint takes.
PATIENCE = timedelta(minutes=30)


class Alone:
    """One process."""

    rank, world, leads = 0, 1, True

    def agree(self, *values: int) -> tuple[int, ...]:
        """The values of rank 0, at every rank."""
        return values


class Group(Alone):
    """Process `rank` of `world`, all on this machine, which meet over a file in `meeting` (a folder for this user only).

    Tensors on a GPU go through NCCL, those on the CPU through Gloo, so that agreeing never waits for a GPU. Both talk over
    the loopback interface, unless the environment names another.
    """

    def __init__(self, rank: int, world: int, meeting: str, device: str):
        import torch.distributed as dist

        self.rank, self.world, self.leads, self.device = rank, world, rank == 0, device
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        for backend in ("GLOO", "NCCL"):
            if loopback:
                os.environ.setdefault(f"{backend}_SOCKET_IFNAME", loopback)
        store = dist.FileStore(str(Path(meeting) / "store"), world)
        backends = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
        dist.init_process_group(backends, store=store, rank=rank, world_size=world, timeout=PATIENCE)
        self._dist = dist

    def agree(self, *values: int) -> tuple[int, ...]:
        told = torch.tensor(values, dtype=torch.int64)
        self._dist.broadcast(told, 0)
        return tuple(told.tolist())

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the ranks, on the values' device."""
        return self.sum(values) / self.world

    def sum(self, values: Tensor) -> Tensor:
        """The sum over the ranks."""
        total = values.contiguous().clone()
        self._dist.all_reduce(total)
        return total
