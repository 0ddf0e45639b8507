"""One of two processes, for test_distributed.py: python distributed_worker.py RANK FOLDER.

Keeps one promise after the other: what two processes compute is what one process computes with the
whole model, made of torch.nn.LSTM. Writes FOLDER/RANK.json: promise -> "kept" or what went wrong.
The processes meet through a file in the folder and speak gloo. After a broken promise a process
ends, and with it the calls of the other.
"""

import gc
import json
import sys
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, ScheduleGPipe
from torch.distributed.pipelining.microbatch import TensorChunkSpec
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import fused_lstm
from fused_lstm import dispatch

WORLD = 2
BATCH, T, FEATURES, HIDDEN, CLASSES = 8, 5, 4, 7, 3
STEPS = 3
# Three steps in float64; averaging over processes sums in another order.
TOLERANCE = 1e-12


class Net(nn.Module):
    """Classifies sequences [B, T, FEATURES]: two recurrent layers and a linear one."""

    def __init__(self, kind: type[nn.Module], recompute: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lstm = kind(FEATURES, HIDDEN, 2, batch_first=True, dtype=torch.float64)
        self.idle = kind(FEATURES, HIDDEN, dtype=torch.float64)  # never called
        self.head = nn.Linear(HIDDEN, CLASSES, dtype=torch.float64)
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        y, _ = checkpoint(self.lstm, x, use_reentrant=False) if self.recompute else self.lstm(x)
        return self.head(y[:, -1])


def batches() -> list[tuple[Tensor, Tensor]]:
    """The same on every process."""
    torch.manual_seed(1)
    return [
        (torch.randn(BATCH, T, FEATURES, dtype=torch.float64), torch.randint(CLASSES, (BATCH,)))
        for _ in range(STEPS)
    ]


def train(model: nn.Module, rank: int | None) -> nn.Module:
    """STEPS of AdamW on a process's half of every batch, or on all of it."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for x, target in batches():
        if rank is not None:
            x, target = x.chunk(WORLD)[rank], target.chunk(WORLD)[rank]
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    return model


def whole(idle: bool) -> Net:
    """Trained in one process on whole batches."""
    net = Net(nn.LSTM)
    net.idle.requires_grad_(idle)
    return train(net, None)  # type: ignore[return-value]


def assert_equal(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    start = Net(nn.LSTM).state_dict()
    for name, t in expected.items():
        assert (actual[name] - t).abs().max() <= TOLERANCE, name
        moved = (t - start[name]).abs().max() > 1e-3  # a model that stood still proves nothing
        assert moved or name.startswith("idle"), name


def ddp(rank: int, recompute: bool = False, unused: bool = False, **options: Any) -> None:
    net = Net(fused_lstm.LSTM, recompute)
    net.idle.requires_grad_(unused)
    train(DistributedDataParallel(net, find_unused_parameters=unused, **options), rank)
    assert_equal(net.state_dict(), whole(unused).state_dict())


def sharded(rank: int, recompute: bool = False, reshard: bool = True) -> Net:
    """Trained with every process holding a half of each parameter."""
    mesh = init_device_mesh("cpu", (WORLD,))
    net = Net(fused_lstm.LSTM, recompute)
    net.idle.requires_grad_(False)
    for part in (net.lstm, net.head, net):
        fully_shard(part, mesh=mesh, reshard_after_forward=reshard)
    assert type(net.lstm.weight_hh_l0.data).__name__ == "DTensor"
    assert net.lstm.weight_hh_l0.to_local().shape[0] == 4 * HIDDEN // WORLD
    # While it computes, its parameters are plain: FSDP's own hook, run before this, gathers them.
    seen: set[type] = set()
    net.lstm.register_forward_pre_hook(
        lambda module, _: seen.update(type(p.data) for p in module.parameters())
    )
    train(net, rank)
    assert seen == {Tensor}
    full = {n: p.full_tensor() for n, p in net.state_dict().items()}  # type: ignore[attr-defined]
    assert_equal(full, whole(False).state_dict())
    return net


def fsdp(rank: int, folder: Path) -> None:
    sharded(rank)


def fsdp_without_reshard(rank: int, folder: Path) -> None:
    sharded(rank, reshard=False)


def fsdp_recomputed(rank: int, folder: Path) -> None:
    sharded(rank, recompute=True)


def sharded_state_is_saved_and_read_whole(rank: int, folder: Path) -> None:
    net = sharded(rank)
    dcp.save({"model": get_model_state_dict(net)}, checkpoint_id=folder / "saved")
    alone = Net(nn.LSTM)
    state = {"model": alone.state_dict()}
    dcp.load(state, checkpoint_id=folder / "saved", no_dist=True)
    alone.load_state_dict(state["model"])
    assert_equal(alone.state_dict(), whole(False).state_dict())


class Recurrent(nn.Module):
    """A stage of the pipeline."""

    def __init__(self, lstm: nn.Module) -> None:
        super().__init__()
        self.lstm = lstm

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.lstm(x)[0]
        return y


def pipeline(rank: int, folder: Path) -> None:
    def stages(kind: type[nn.Module]) -> list[nn.Module]:
        torch.manual_seed(0)
        first = kind(FEATURES, HIDDEN, bidirectional=True, dtype=torch.float64)
        second = kind(2 * HIDDEN, HIDDEN, proj_size=CLASSES, dtype=torch.float64)
        return [Recurrent(first), Recurrent(second)]

    def loss(y: Tensor, target: Tensor) -> Tensor:
        return nn.functional.cross_entropy(y[-1], target)

    x, target = batches()[0]
    x = x.transpose(0, 1)  # [T, B, .] between stages: batch_first gives views, which gloo refuses
    own = stages(fused_lstm.LSTM)[rank]
    stage = PipelineStage(own, rank, WORLD, torch.device("cpu"))
    rows = TensorChunkSpec(1)
    schedule = ScheduleGPipe(
        stage, n_microbatches=2, loss_fn=loss, args_chunk_spec=(rows,), output_merge_spec=rows
    )
    output = schedule.step(x) if rank == 0 else schedule.step(target=target)

    together = stages(nn.LSTM)
    expected = together[1](together[0](x))
    loss(expected, target).backward()
    if rank == 1:
        assert (output - expected).abs().max() <= TOLERANCE
    for a, b in zip(own.parameters(), together[rank].parameters(), strict=True):
        assert (a.grad - b.grad).abs().max() <= TOLERANCE
        assert b.grad.abs().max() > 1e-4


def refuse_torch(*_: Any) -> Any:
    """Instead of torch's own LSTM, which must not stand in for the kernels here."""
    raise AssertionError("torch's own LSTM was asked to compute")


PROMISES: dict[str, Callable[[int, Path], Any]] = {
    "ddp": lambda rank, _: ddp(rank),
    "ddp, static graph": lambda rank, _: ddp(rank, static_graph=True),
    "ddp, unused parameters": lambda rank, _: ddp(rank, unused=True),
    "ddp, bucket views": lambda rank, _: ddp(rank, gradient_as_bucket_view=True),
    "ddp, recomputed": lambda rank, _: ddp(rank, recompute=True),
    "fsdp2": fsdp,
    "fsdp2, not resharded after forward": fsdp_without_reshard,
    "fsdp2, recomputed": fsdp_recomputed,
    "fsdp2, saved and read whole": sharded_state_is_saved_and_read_whole,
    "pipeline of two stages": pipeline,
}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    torch.set_num_threads(1)
    dispatch.torch_lstm = refuse_torch
    meeting = f"file://{folder / 'meeting'}"
    dist.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    results: dict[str, str] = {}
    for name, keep in PROMISES.items():
        try:
            keep(rank, folder)
            results[name] = "kept"
        except Exception:
            results[name] = traceback.format_exc()
            break
        finally:
            (folder / f"{rank}.json").write_text(json.dumps(results))
    dist.destroy_process_group()
    gc.collect()  # see training/distributed.py: what still holds the group would abort the process


if __name__ == "__main__":
    main()
