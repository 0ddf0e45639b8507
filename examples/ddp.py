"""DistributedDataParallel: two processes train one model, each on its own half of every batch.

    python examples/ddp.py                            # starts both itself
    torchrun --nproc-per-node 2 examples/ddp.py       # as on a cluster

Nothing in it is special to an LSTM. On the CPU give each process its share of the cores, and use
the backend gloo.
"""

import gc
import os
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fused_lstm import LSTM

PROCESSES = 2


class Model(nn.Module):
    """Sequences [B, T, 8] -> one number [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTM(8, 32, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def train(rank: int) -> None:
    """What each process does once it knows the others."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    torch.manual_seed(rank)  # from here on every process draws data of its own
    for step in range(1, 41):
        x = torch.randn(32, 12, 8)
        loss = nn.functional.mse_loss(model(x), x.mean(dim=(1, 2)).unsqueeze(1) * 5)
        optimizer.zero_grad()
        loss.backward()  # averages the gradients of all processes
        optimizer.step()
        if rank == 0 and step % 20 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    mine = torch.cat([p.detach().flatten() for p in model.parameters()])
    every = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
    dist.all_gather(every, mine)
    if rank == 0:
        difference = max((other - mine).abs().max().item() for other in every)
        print(f"largest difference between the processes {difference:.1e}")


def leave() -> None:
    """Ends the group once the model is gone, and the threads that serve it."""
    dist.destroy_process_group()
    # DistributedDataParallel is a cycle that keeps the group and its threads. One that lets go of a
    # tensor when the interpreter is already ending aborts the process, with any module.
    gc.collect()


def started_here(rank: int, meeting: str) -> None:
    """A process that `main` started: a file tells it where the others are."""
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=PROCESSES)
    train(rank)
    leave()


def main() -> None:
    if "RANK" in os.environ:  # torchrun started this process
        dist.init_process_group("gloo")
        train(dist.get_rank())
        leave()
        return
    with tempfile.TemporaryDirectory() as folder:
        meeting = (Path(folder) / "meeting").as_uri()
        mp.spawn(started_here, args=(meeting,), nprocs=PROCESSES)


if __name__ == "__main__":
    main()
