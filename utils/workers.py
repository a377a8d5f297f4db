"""The processes of a run and what stops them."""

import ctypes
import importlib
import signal
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

# Those that work on shares of their own may end hours apart.
PATIENCE = timedelta(days=365)
# glibc's mallopt: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, of which the last can be no larger.
KEPT = {-1: 2**31 - 1, -2: 2**26, -3: 2**25}


def keep_memory():
    """Have this process keep the memory that it frees: to ask the system for it again takes 5 % of a step.

    Where the C library is glibc; others do as they do.
    """
    with suppress(AttributeError, OSError, TypeError):
        for parameter, value in KEPT.items():
            ctypes.CDLL(None).mallopt(parameter, value)


class Workers:
    """The processes of a run: one, or those that torchrun started. Rank 0 writes and shows."""

    def __init__(self):
        self.distributed = dist.is_available() and dist.is_torchelastic_launched()
        self.rank, self.count = 0, 1

    @contextmanager
    def joined(self, device, patience=None):
        """Within: the process group exists. Several GPUs: each process takes the one of its local rank.

        patience: how long they wait for each other; None: as torch does.
        """
        if not self.distributed:
            yield
            return
        if device.type == "cuda":
            torch.cuda.set_device(device)
        # optimisers import it; its functions keep the group that there is then as a default, and its threads,
        # which may abort Python's end
        importlib.import_module("torch.distributed.nn")
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience)
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def leader_first(self):
        """Within: rank 0 comes first, so that it alone downloads."""
        if self.rank:
            dist.barrier()
        yield
        if self.distributed and not self.rank:
            dist.barrier()

    def sum(self, *values, device="cpu"):
        """The sums of numbers or scalar tensors over all processes, as a float64 tensor."""
        total = torch.stack([torch.as_tensor(v, dtype=torch.float64, device=device) for v in values])
        if self.distributed:
            dist.all_reduce(total)
        return total

    def add_up(self, tensors):
        """Put in place of each of some tensors its sum over all processes.

        In one message, as models are small; DistributedDataParallel keeps the group beyond its end.
        """
        if not self.distributed or not tensors:
            return
        sums = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(sums)
        for t, part in zip(tensors, sums.split([t.numel() for t in tensors])):
            t.copy_(part.view_as(t))


@dataclass
class Stop:
    """Whether a stop was requested."""

    requested: bool = False


@contextmanager
def stop_signal():
    """Within: Ctrl-C or SIGTERM requests a stop, of the Stop that it yields; a second one interrupts."""
    stop = Stop()

    def request(number, frame):
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True

    previous = {number: signal.signal(number, request) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
