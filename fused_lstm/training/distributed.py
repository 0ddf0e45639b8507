"""Several processes that train one model: each takes its share of every batch.

Started by `torchrun --nproc-per-node N -m fused_lstm.training`. All processes hold the whole data
set and draw the same order, so that only gradients and a few sums travel (over gloo). The batch
size counts all processes: N of them compute what one would, up to rounding.
"""

import contextlib
import gc
import os
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from fused_lstm.training import TrainingError

__all__ = ["World", "joined_world"]

Value = TypeVar("Value")


class World:
    """The processes of this run; one alone where torchrun was not used."""

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, batch: Tensor) -> Tensor:
        """The part of a batch [B] of indices that is for this process; may be empty."""
        return batch[self.rank :: self.size]

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model whose backward averages gradients over the processes."""
        if self.size == 1:
            return model
        return nn.parallel.DistributedDataParallel(model)

    def sum(self, values: Tensor) -> Tensor:
        """The sum of a small tensor over the processes, the same on each."""
        if self.size > 1:
            values = values.clone()
            dist.all_reduce(values)
        return values

    def first_then_rest(self, act: Callable[[], Value]) -> Value:
        """Runs `act` on the first process, then on the others; no one goes on if that one failed.

        Raises what `act` raised; where it failed on the first, the others end without a word.
        """
        if self.size == 1:
            return act()
        failed = torch.ones(1)
        if not self.first:
            dist.broadcast(failed, src=0)
            if failed:
                raise SystemExit(1)
            return act()
        try:
            value = act()
            failed.zero_()
        finally:
            dist.broadcast(failed, src=0)
        return value


@contextlib.contextmanager
def joined_world() -> Iterator[World]:
    """Joins the processes that torchrun started, as its environment variables describe them."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World()
        return
    try:
        dist.init_process_group("gloo")
    except (RuntimeError, ValueError, OSError) as error:
        raise TrainingError(f"the processes cannot reach each other: {error}") from error
    try:
        yield World(dist.get_rank(), size, int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        dist.destroy_process_group()
        # The wrapped model is a cycle that keeps the group and its threads. One that lets go of a
        # tensor when the interpreter is already ending aborts the process: every fourth run did.
        gc.collect()
