"""THE training loop: one rank of any method, on any environment (environment.py, pipeline/train.py).

Everything that decides a result is a pure function of the task and of (epoch, position): the order
of samples, each sample's own random key, the learning rate. So a run that continues from a
checkpoint in the middle of an epoch does what the uninterrupted one would have done.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from mvray.errors import DataError, NonFiniteLoss
from mvray.experiment import LAST
from mvray.nn import build_method
from mvray.storage import Storage
from mvray.training import pictures
from mvray.training.checkpoint import Checkpoints, weights_from_bytes, weights_to_bytes
from mvray.training.coordination import AGREE_EVERY_S, Coordination
from mvray.training.environment import placed
from mvray.training.live_progress import LiveProgress
from mvray.training.optim import lr_factor, optimiser, precision, set_lr
from mvray.training.ranks import gathered
from mvray.training.samples import Samples
from mvray.training.state import EpochView, Parts, State, resume, save
from mvray.training.task import Task

if TYPE_CHECKING:
    from mvray.experiment import Optim
    from mvray.training.environment import Environment


def train(task: Task, here: Environment, agree_every_s: float = AGREE_EVERY_S) -> dict[str, float]:
    """Train to the end, or until ``here.stopping()``, which ranks ask one another every ``agree_every_s``.

    Returns the last epoch's metrics. Raises NonFiniteLoss, and SettingError where the batch cannot be shared out.
    """
    task.step.check_shared(task.facts.samples, here.world)
    folder = Storage(task.folder)
    parts, state = _parts(task, here, folder, agree_every_s), State()
    resume(parts, state, here)
    parts.progress.show(state.epoch, state.position, parts.samples.batches, 0.0, state.history, now=True)
    going = all(here.report(task, row) for row in state.history)
    while going and not state.finished:
        going = _epoch(task, parts, state, here) and _end_epoch(task, parts, state, here)
        # A short epoch may have had no exchange between ranks, and validation may have taken long.
        going = going and (state.finished or not parts.coordination.stopping())
    parts.checkpoints.wait()
    if state.finished and here.rank == 0:
        _write_result(task, parts, state, folder)
    return state.history[-1] if state.history else {}


def _parts(task: Task, here: Environment, folder: Storage, agree_every_s: float) -> Parts:
    scale, optim = task.step.scale, task.step.optim
    torch.manual_seed(task.seed)
    method = build_method(task.step.method, task.facts)
    if task.start_weights:
        place, _, name = task.start_weights.rpartition("/")
        method.start(weights_from_bytes(Storage(place).read(name), task.start_weights))
    placed(method, here.device, scale.channels_last)
    # From here on each rank draws its own numbers (dropout); the model above is the same on all.
    torch.manual_seed(task.seed * 1_000_003 + here.rank + 1)
    call: Any = method
    if here.world > 1:
        partly = len(method.phases) > 1
        ids = [here.device.index] if here.device.type == "cuda" else None
        # Buffers (batch norm's running sums) become rank 0's at each epoch's end; no step reads them.
        call = DistributedDataParallel(
            method, device_ids=ids, find_unused_parameters=partly, forward_sync_buffers=False
        )
    if scale.compile:
        call = torch.compile(call)
    optimisers = {phase: optimiser(optim, method, phase) for phase in method.phases}
    samples = Samples(task, here)
    progress = LiveProgress(folder, here, task.epochs)
    checkpoints = Checkpoints(folder, task.attempt)
    coordination = Coordination(scale, here, agree_every_s)
    return Parts(method, call, optimisers, samples, checkpoints, progress, coordination, {})


def _epoch(task: Task, parts: Parts, state: State, here: Environment) -> bool:
    """Train from ``state.position`` to the epoch's end. False when it was asked to stop before."""
    optim, samples = task.step.optim, parts.samples
    began_at, first = time.monotonic(), state.position
    if first == 0:
        state.sums, state.notes = {}, {}
        parts.values = parts.method.before_epoch(EpochView(parts, state, task.seed, here))
    sums: dict[str, Tensor] = {}
    bad_step = torch.full((), -1, device=here.device)
    started_at = time.monotonic()
    parts.progress.before_s = started_at - began_at if first == 0 else None
    parts.method.train()
    length = samples.batches_of(state.epoch)
    with contextlib.closing(samples.train_batches(state.epoch, state.position, parts.values)) as batches:
        for batch in batches:
            epoch = state.epoch + state.position / samples.batches
            factor = lr_factor(optim, epoch, samples.epochs, samples.batches)
            losses = _step(parts, optim, batch, factor, here)
            state.position, state.steps = state.position + 1, state.steps + 1
            total = torch.stack([loss.float() for loss in losses.values()]).sum()
            bad_step = torch.where((bad_step < 0) & ~torch.isfinite(total), state.steps, bad_step)
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.double()
            if state.position == length:
                break
            rate = (state.position - first) / (time.monotonic() - started_at)
            parts.progress.show(state.epoch, state.position, length, rate, state.history)
            stop, due = parts.coordination.reached(state.position)
            if stop or due:
                _check_finite(bad_step, state, losses, here)
                _add(state.sums, sums)
                sums = {}
                _check_readable(task, parts, here)
                save(parts, state, here)
                parts.coordination.saved()
            if stop:
                return False
    _check_finite(bad_step, state, losses, here)
    _add(state.sums, sums)
    state.sums["samples_per_s"] = (state.position - first) * samples.batch_size / (time.monotonic() - started_at)
    return True


def _step(parts: Parts, optim: Optim, batch: dict[str, Tensor], factor: float, here: Environment) -> dict[str, Tensor]:
    """One optimiser step of every phase; the losses, detached, each weighted by this rank's share."""
    sums: dict[str, Tensor] = {}
    pieces = [
        dict(zip(batch, values, strict=True))
        for values in zip(*(t.chunk(optim.accumulate) for t in batch.values()), strict=True)
    ]
    for phase, updates in parts.optimisers.items():
        trained = {id(p) for group in updates.param_groups for p in group["params"]}
        if len(parts.optimisers) > 1:
            for parameter in parts.method.parameters():
                parameter.requires_grad_(id(parameter) in trained)
        set_lr(updates, optim.lr * factor)
        updates.zero_grad(set_to_none=True)
        for i, piece in enumerate(pieces):
            # DDP averages over ranks; the share makes that the mean over samples for uneven ranks too.
            share = len(piece["label"]) * here.world / parts.samples.batch_size
            hold = here.world > 1 and i + 1 < len(pieces)
            with parts.call.no_sync() if hold else contextlib.nullcontext(), precision(optim, here.device):
                losses = parts.call(piece, phase)
            torch.autograd.backward(torch.stack([loss * share for loss in losses.values()]).sum())
            for name, loss in losses.items():
                sums[name] = sums.get(name, 0.0) + loss.detach() * share
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_([p for g in updates.param_groups for p in g["params"]], optim.clip_norm)
        updates.step()
    return sums


def _end_epoch(task: Task, parts: Parts, state: State, here: Environment) -> bool:
    """Validate, note whether it is the best yet, write a checkpoint; returns whether a search lets it go on."""
    began_at = time.monotonic()
    if here.world > 1:
        for buffer in parts.method.buffers():
            torch.distributed.broadcast(buffer, 0)  # BatchNorm's running sums differ between ranks
    metrics = {"epoch": float(state.epoch), "lr": task.step.optim.lr * _last_factor(task, parts, state)}
    metrics |= {f"epoch/{name}": value for name, value in state.notes.items()}
    metrics["samples_per_s"] = state.sums.pop("samples_per_s")
    everyone = gathered(state.sums, here)
    for name in state.sums:
        metrics[f"train/{name}"] = sum(sums[name] for sums in everyone) / here.world / state.position
    scores = parts.samples.scores(parts.method, "validation")
    metrics |= {f"validation/{name}": value for name, value in scores.items()}
    if here.rank == 0:
        pictures.keep(task, state.epoch, parts.samples, parts.method)
    value = scores.get(task.step.select, float(state.epoch))
    better = task.step.select == LAST or _is_better(value, state.best, task.step.select_max)
    state.epochs_without_better = 0 if better else state.epochs_without_better + 1
    if better:
        state.best, state.best_epoch, state.best_name = value, state.epoch, f"{state.steps:09d}"
    state.history.append(metrics)
    state.epoch, state.position = state.epoch + 1, 0
    patience = task.step.optim.patience
    state.finished = state.epoch >= task.epochs or (patience is not None and state.epochs_without_better >= patience)
    state.sums = {}
    _check_readable(task, parts, here)  # before saving: a run that lost too many samples must not go on
    save(parts, state, here)
    parts.coordination.saved()
    rate = metrics["samples_per_s"] / parts.samples.batch_size
    parts.progress.after_s = time.monotonic() - began_at
    parts.progress.show(state.epoch, 0, parts.samples.batches, rate, state.history, now=True)
    return here.report(task, metrics)


def _is_better(value: float, best: float | None, maximise: bool) -> bool:
    """Whether ``value`` is the best yet. A NaN is better than nothing only."""
    if best is None or math.isnan(best):
        return True
    return value > best if maximise else value < best


def _check_readable(task: Task, parts: Parts, here: Environment) -> None:
    """List what could not be decoded; end where it is more than the data's ``max_bad_fraction``."""
    failures = {where: why for of_rank in gathered(parts.samples.failures(), here) for where, why in of_rank.items()}
    if failures and here.rank == 0:
        Storage(task.folder).write("unreadable/training.json", json.dumps(failures).encode())
    most = task.step.data.max_bad_fraction
    if len(failures) > most * parts.samples.total:
        where, why = next(iter(failures.items()))
        raise DataError(
            f"{len(failures)} of {parts.samples.total} samples cannot be decoded, first {where}: {why}. "
            f"At most {most:.1%} may be bad. They are listed in {task.folder}/unreadable; mend or remove them."
        )


def _last_factor(task: Task, parts: Parts, state: State) -> float:
    samples, epoch = parts.samples, state.epoch + (state.position - 1) / parts.samples.batches
    return lr_factor(task.step.optim, epoch, samples.epochs, samples.batches)


def _add(into: dict[str, float], sums: Mapping[str, Tensor]) -> None:
    for name, value in sums.items():
        into[name] = into.get(name, 0.0) + float(value)


def _check_finite(bad_step: Tensor, state: State, losses: Mapping[str, Tensor], here: Environment) -> None:
    """Raise on every rank where the loss of any was not finite: one that went on would wait for ever."""
    if steps := [step for step in gathered(int(bad_step), here) if step >= 0]:
        last = ", ".join(f"{name}={float(loss):.4g}" for name, loss in losses.items())
        raise NonFiniteLoss(
            f"The loss became NaN or infinite at step {min(steps)} (epoch {state.epoch}; last: {last}). "
            "Lower optim.lr, set optim.clip_norm, or use optim.precision=float32."
        )


def _write_result(task: Task, parts: Parts, state: State, folder: Storage) -> None:
    """The selected weights and what training measured; metrics.json last, it says that training is done."""
    assert state.best_name is not None
    parts.checkpoints.check_attempt()
    folder.insist("weights.safetensors", weights_to_bytes(parts.checkpoints.weights(state.best_name)))
    folder.insist("history.json", json.dumps(state.history).encode())
    best = state.history[state.best_epoch]
    metrics = {**best, "epochs": len(state.history), "best_epoch": state.best_epoch}
    folder.insist("metrics.json", json.dumps({k: v for k, v in metrics.items() if k != "epoch"}).encode())
