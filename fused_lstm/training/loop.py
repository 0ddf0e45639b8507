"""Training: epochs over shuffled batches, a test after each, a checkpoint now and then.

The run's whole state is in `Training`, and `Training.state` / `Training.restore` are inverse to
each other; so a run that goes on from a checkpoint takes the same steps as one never stopped.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from fused_lstm.training import TrainingError
from fused_lstm.training.distributed import World
from fused_lstm.training.model import CLASSES, SequenceClassifier
from fused_lstm.training.recipes import Recipe, sum_loss

__all__ = ["Training", "confusion", "predict"]

_BAR_SECONDS = 0.1  # between updates of the bar's figures
_BAR = "{desc} |{bar}| {n_fmt}/{total_fmt}, {remaining} left, {rate_fmt}{postfix}"


class Training:
    """One model on its way through the epochs of a recipe.

    Args:
        train, test: inputs [N, T, I] float32 and labels [N] int64, on the model's device.
        epochs: passes over `train`; the learning rate's schedule spans them.
        batch_size: images per step, over all processes.
    """

    def __init__(
        self,
        model: SequenceClassifier,
        recipe: Recipe,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        world: World,
        *,
        epochs: int,
        batch_size: int,
        seed: int,
    ) -> None:
        self.model, self.recipe, self.world = model, recipe, world
        self.train, self.test = train, test
        self.epochs, self.batch_size, self.seed = epochs, batch_size, seed
        self.steps_per_epoch = math.ceil(len(train[1]) / batch_size)
        self.parallel_model = world.wrap(model)
        self.optimizer = torch.optim.Adam(model.parameters(), recipe.learning_rate, fused=True)
        self.schedule = (
            torch.optim.lr_scheduler.OneCycleLR(
                self.optimizer, recipe.learning_rate, total_steps=epochs * self.steps_per_epoch
            )
            if recipe.one_cycle
            else None
        )
        self.epoch = self.step = 0  # the next step to take
        self.sums = self._no_sums()  # of this epoch, this process: loss, right, seen
        self.seconds = 0.0  # spent in this epoch before a resume
        self.history: list[dict[str, float]] = []  # one entry per finished epoch

    def run(
        self,
        after_epoch: Callable[[dict[str, float]], None],
        save: Callable[[], None],
        checkpoint_steps: int,
    ) -> None:
        """Takes the remaining steps.

        Args:
            after_epoch: gets the epoch's entry of `history`.
            save: called at the start, within and after each epoch, on every process at once.
            checkpoint_steps: steps between two of its calls within an epoch.

        Raises:
            TrainingError: the loss is no longer a finite number.
        """
        if self.epoch == self.step == 0:
            save()
        while self.epoch < self.epochs:
            self._train_epoch(save, checkpoint_steps)
            after_epoch(self.history[-1])
            save()

    def _train_epoch(self, save: Callable[[], None], checkpoint_steps: int) -> None:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.train[1]), generator=generator)
        before, began, first = self.seconds, time.perf_counter(), self.step
        self.model.train()
        bar = tqdm(
            total=self.steps_per_epoch,
            initial=self.step,
            desc=f"epoch {self.epoch + 1}/{self.epochs}",
            unit=" steps",
            bar_format=_BAR,
            leave=False,
            disable=None if self.world.first else True,  # None: shown on a terminal only
        )
        shown = began
        with bar:
            while self.step < self.steps_per_epoch:
                start = self.step * self.batch_size
                self._take_step(order[start : start + self.batch_size])
                self.step += 1
                now = time.perf_counter()
                self.seconds = before + now - began
                if not bar.disable and now - shown > _BAR_SECONDS:
                    shown = now
                    loss, right, seen = self.sums.tolist()
                    bar.set_postfix_str(
                        f"loss {loss / seen:.4f}, accuracy {right / seen:.4f}", refresh=False
                    )
                    bar.update(self.step - bar.n)
                if self.step % checkpoint_steps == 0 and self.step < self.steps_per_epoch:
                    save()
        loss, right, seen = self.world.sum(self.sums).tolist()
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss became {loss} in epoch {self.epoch + 1}; the last checkpoint is whole"
            )
        test_loss, test_accuracy = self.evaluate()
        self.history.append(
            {
                "epoch": self.epoch + 1,
                "train_loss": loss / seen,
                "train_accuracy": right / seen,
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "seconds": self.seconds,
                "steps_per_second": (self.step - first) / max(self.seconds - before, 1e-9),
            }
        )
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0
        self.sums = self._no_sums()

    def _no_sums(self) -> Tensor:
        return torch.zeros(3, dtype=torch.float64, device=self.train[0].device)

    def _take_step(self, batch: Tensor) -> None:
        """One step of the optimizer on the images that `batch` [B] names."""
        mine = self.world.share(batch).to(self.train[0].device)
        x, labels = self.train[0].index_select(0, mine), self.train[1].index_select(0, mine)
        logits = self.parallel_model(x)
        loss = sum_loss(self.recipe, logits, labels)
        # The wrapper averages over processes; times their number it sums, over B it is the mean.
        (loss * (self.world.size / len(batch))).backward()
        if self.recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.schedule is not None:
            self.schedule.step()
        with torch.no_grad():
            right = (logits.argmax(1) == labels).sum()
            self.sums += torch.stack([loss.detach(), right, right.new_tensor(len(mine))])

    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the test images, the same on every process."""
        logits = predict(self.model, self.test[0])
        loss = sum_loss(self.recipe, logits, self.test[1]).item()
        right = (logits.argmax(1) == self.test[1]).sum().item()
        return loss / len(logits), right / len(logits)

    def state(self) -> dict[str, Any]:
        """Everything that `restore` needs, tensors and plain values only; call on all processes."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "generator": torch.get_rng_state(),
            "progress": {
                "epoch": self.epoch,
                "step": self.step,
                "seconds": self.seconds,
                "sums": self.world.sum(self.sums).cpu(),
                "history": self.history,
            },
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Puts this run where `state` was taken.

        Raises:
            RuntimeError, ValueError or KeyError: the state belongs to a model of another shape.
        """
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        torch.set_rng_state(state["generator"])
        progress = state["progress"]
        self.epoch, self.step = progress["epoch"], progress["step"]
        self.seconds, self.history = progress["seconds"], list(progress["history"])
        self.sums = self._no_sums()
        if self.world.first:  # it holds the sum over the processes
            self.sums += progress["sums"].to(self.sums.device)


@torch.no_grad()
def predict(model: SequenceClassifier, x: Tensor, batch_size: int = 500) -> Tensor:
    """Scores [N, classes] of the inputs [N, T, I]."""
    model.eval()
    return torch.cat([model(part) for part in x.split(batch_size)])


def confusion(labels: Tensor, predicted: Tensor) -> Tensor:
    """Counts [classes, classes]: row is the true digit, column the predicted one."""
    return torch.bincount(labels * CLASSES + predicted, minlength=CLASSES**2).view(CLASSES, CLASSES)
