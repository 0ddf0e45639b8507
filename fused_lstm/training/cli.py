"""The command `python -m fused_lstm.training`: from the words typed to a trained model in a folder.

Standard output tells what is trained on (first line), with which kernel, how each epoch went, and
the result (last line). Whatever the user can mend ends as one line on standard error and exit code
1; a run ended with Ctrl-C says how to go on (130).
"""

import dataclasses
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fused_lstm.training import TrainingError
from fused_lstm.training.checkpoint import (
    CHECKPOINT,
    read_checkpoint,
    require_same,
    require_shapes,
    write_checkpoint,
)
from fused_lstm.training.data import DigitSet, load_digit_set, sequence_shape, sequences
from fused_lstm.training.distributed import World, joined_world
from fused_lstm.training.files import open_output_folder, write_atomically
from fused_lstm.training.model import SequenceClassifier, build_model, kernel_in_use
from fused_lstm.training.recipes import Recipe, recipe_for
from fused_lstm.training.settings import (
    PROGRAM,
    Settings,
    choose_device,
    parser,
    settle,
    usable_cpus,
)

__all__ = ["main"]

_READING = {
    "row": "row by row",
    "pixel": "pixel by pixel",
    "permuted": "pixels in a fixed disorder",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command with the words `argv` (default: the process's) and returns its exit code."""
    words = parser().parse_args(argv)
    words.out = words.out or Path("runs") / f"{words.order or 'row'}-{words.recipe or 'default'}"
    path = words.out / CHECKPOINT
    try:
        _require_packages(words.tensorboard)
        with joined_world() as world:
            run = world.first_then_rest(lambda: _prepare(words, world, path))
            _train(words, world, run, path)
    except TrainingError as error:
        print(f"{PROGRAM}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted; --resume --out {words.out} goes on", file=sys.stderr)
        return 130
    return 0


def _require_packages(tensorboard: bool) -> None:
    wanted = ("matplotlib", "tqdm") + ("tensorboard",) * tensorboard
    missing = " ".join(name for name in wanted if importlib.util.find_spec(name) is None)
    if missing:
        raise TrainingError(f"{missing}: not installed; python -m pip install {missing}")


class _Run(NamedTuple):
    """What a run needs before its first step; all that can go wrong by the user's doing is over."""

    settings: Settings
    recipe: Recipe
    epochs: int
    batch_size: int
    model: SequenceClassifier
    data: DigitSet
    train: tuple[Tensor, Tensor]  # [N, T, I], [N]
    test: tuple[Tensor, Tensor]
    fingerprint: int
    saved: dict[str, Any] | None


def _prepare(words: Any, world: World, path: Path) -> _Run:
    device = choose_device(words.device, world.local_rank, world.size)
    saved = read_checkpoint(path) if words.resume else None
    settings = settle(words, saved and saved["settings"], path)
    recipe = recipe_for(settings.recipe, settings.order)
    settings.threads = settings.threads or min(torch.get_num_threads(), usable_cpus())
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    model = build_model(recipe, settings.impl, *sequence_shape(settings.order)).to(device)
    data = load_digit_set(settings.dataset, words.data_root, settings.recipe)
    mnist = data.name == "MNIST"
    settings.dataset = "mnist" if mnist else "digits"
    settings.epochs = settings.epochs or (recipe.epochs if mnist else recipe.digits_epochs)
    settings.batch_size = settings.batch_size or recipe.batch_size
    fingerprint = data.fingerprint()
    if saved is not None:
        require_same(path, "fingerprint of the data set", fingerprint, saved["data"])
        require_shapes(path, model, saved["model"])
    if world.first:
        open_output_folder(words.out)
    scale = data.scale(recipe.normalise)
    train, test = (
        (sequences(images, recipe.order, *scale).to(device), labels.to(device))
        for images, labels in (
            (data.train_images, data.train_labels),
            (data.test_images, data.test_labels),
        )
    )
    return _Run(
        settings, recipe, settings.epochs, settings.batch_size, model, data, train, test,
        fingerprint, saved,
    )  # fmt: skip


def _train(words: Any, world: World, run: _Run, path: Path) -> None:
    """Trains and reports."""
    from fused_lstm.training.loop import Training
    from fused_lstm.training.report import EventLog

    began = time.perf_counter()
    settings, recipe, data = run.settings, run.recipe, run.data
    training = Training(
        run.model, recipe, run.train, run.test, world,
        epochs=run.epochs, batch_size=run.batch_size, seed=settings.seed,
    )  # fmt: skip
    if run.saved is not None:
        try:
            training.restore(run.saved)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise TrainingError(f"{path}: the checkpoint does not fit ({error})") from error

    def say(line: str) -> None:
        if world.first:
            print(line, flush=True)

    def save() -> None:
        state = training.state()  # on every process: it sums over them
        if world.first:
            kept = {"settings": dataclasses.asdict(settings), "data": run.fingerprint}
            write_checkpoint(path, {**state, **kept})

    def after_epoch(entry: dict[str, float]) -> None:
        say(_epoch_line(recipe, settings, entry))
        events.add(entry)

    steps, share = run.train[0].shape[1], -(-run.batch_size // world.size)
    kernel = kernel_in_use(run.model, settings.impl, steps, share)
    say(
        f"data set: {data.name}, {len(data.train_labels)} training and {len(data.test_labels)} test"
        f" images, {data.origin}"
    )
    say(f"kernel: {kernel}")
    say(
        f"recipe: {recipe.name}, {_READING[recipe.order]}, {recipe.hidden_size} units, batch"
        f" {run.batch_size}, {run.epochs} epochs, seed {settings.seed}; {words.device},"
        f" {world.size} process(es) of {settings.threads} thread(s)"
    )
    if run.saved is not None:
        say(f"resumed: {path}, {training.epoch} epochs and {training.step} steps done")
    events = EventLog(words.out / "tensorboard", words.tensorboard and world.first, training.epoch)
    training.run(after_epoch, save, words.checkpoint_steps or recipe.checkpoint_steps)
    events.close()
    if world.first:
        _report(words.out, run, training, kernel)
        say(
            f"{data.name}: test accuracy {training.history[-1]['test_accuracy']:.4f} after"
            f" {run.epochs} epochs; trained in {time.perf_counter() - began:.0f} s; model, plot and"
            f" figures in {words.out}"
        )


def _epoch_line(recipe: Recipe, settings: Settings, entry: dict[str, float]) -> str:
    if recipe.name == "tutorial":  # its own words, counted from 0
        accuracy = round(entry["test_accuracy"], 4)
        return f"Iter {int(entry['epoch']) - 1}, Testing Accuracy= {accuracy}"
    return (
        f"epoch {entry['epoch']}/{settings.epochs}: loss {entry['train_loss']:.4f},"
        f" accuracy {entry['train_accuracy']:.4f}, test accuracy {entry['test_accuracy']:.4f},"
        f" {entry['seconds']:.1f} s, {entry['steps_per_second']:.0f} steps/s"
    )


def _report(out: Path, run: _Run, training: Any, kernel: str) -> None:
    """Writes model.pt, metrics.json and training.png."""
    from fused_lstm.training.loop import confusion, predict
    from fused_lstm.training.report import environment, write_metrics, write_plot

    data, settings = run.data, dataclasses.asdict(run.settings)
    predicted = predict(run.model, run.test[0]).argmax(1).cpu()
    counts = confusion(data.test_labels, predicted)
    accuracy = training.history[-1]["test_accuracy"]
    weights = {name: weight.cpu() for name, weight in run.model.state_dict().items()}
    with write_atomically(out / "model.pt") as file:
        torch.save({"settings": settings, "model": weights}, file)
    write_metrics(
        out / "metrics.json",
        {
            "dataset": {
                "name": data.name,
                "origin": data.origin,
                "training_images": len(data.train_labels),
                "test_images": len(data.test_labels),
            },
            "test_accuracy": accuracy,
            "settings": settings,
            "recipe": dataclasses.asdict(run.recipe),
            "kernel": kernel,
            "processes": training.world.size,
            "environment": environment(),
            "epochs": training.history,
            "confusion": counts.tolist(),
        },
    )
    title = (
        f"{data.name}, {_READING[run.recipe.order]}: {run.recipe.name} recipe,"
        f" {run.settings.impl} LSTM, test accuracy {accuracy:.4f}"
    )
    write_plot(
        out / "training.png", title, training.history, counts, data.test_images, data.test_labels,
        predicted,
    )  # fmt: skip
