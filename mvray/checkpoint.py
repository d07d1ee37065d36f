"""Checkpoints: the only module that knows how training state is stored.

A checkpoint is a folder ``checkpoints/<step>/`` of three files: model.safetensors, state.pt (read with
``weights_only=True``) and complete.json, written last. Without complete.json it does not count, so
a half-written one is never taken for whole. Writing happens in a background thread: `Checkpoints.save`
copies the state and returns. Where the disk is full or the storage away, training goes on without that
checkpoint, and the next one is tried.
"""

from __future__ import annotations

import io
import json
import pickle
import threading
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mvray.errors import StepFailed, StorageFailed

if TYPE_CHECKING:
    from torch import Tensor

    from mvray.storage import Storage

MODEL, STATE, COMPLETE = "model.safetensors", "state.pt", "complete.json"


def weights_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors; tensors that share memory are written one by one."""
    import safetensors.torch

    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def weights_from_bytes(data: bytes) -> dict[str, Tensor]:
    """The state dict of `weights_to_bytes`, on the CPU."""
    import safetensors.torch

    loaded: dict[str, Tensor] = safetensors.torch.load(data)
    return loaded


def _copied(value: Any) -> Any:
    """A copy on the CPU that training cannot change any more."""
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value


class _Copy(NamedTuple):
    name: str
    weights: dict[str, Tensor]
    state: dict[str, Any]


class Checkpoints:
    """The checkpoints of one Train step, below its folder. One process (rank 0) writes.

    With ``attempt``, the folder's file of that name must still say so at each write: when a driver is
    killed its workers live on for a moment, and must not write beside those of the next one.

    ``trouble`` says why the last checkpoint could not be stored, "" if it was. The best one that could not
    stays in memory and is stored before the next, which counts on it.
    """

    def __init__(self, folder: Storage, attempt: str = "") -> None:
        self._folder, self._attempt = folder, attempt
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._best: _Copy | None = None
        self.trouble = ""

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. A name is the number of optimiser steps, in nine digits."""
        return [name for name in self._folders() if self._folder.exists(f"checkpoints/{name}/{COMPLETE}")]

    def _folders(self) -> list[str]:
        return sorted(entry.path.rstrip("/").rpartition("/")[2] for entry in self._folder.list("checkpoints"))

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's weights and the rest of the training state."""
        weights, path = self.weights(name), f"checkpoints/{name}/{STATE}"
        try:
            state: dict[str, Any] = torch.load(
                io.BytesIO(self._folder.read(path)), map_location="cpu", weights_only=True
            )
        except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
            raise StepFailed(
                f"{self._folder.full(path)} is refused: it is broken, or holds more than tensors and numbers, such as "
                f"code ({str(error).splitlines()[0]}). Nothing of it was run. Find out who may write to this storage; "
                f"then remove the folder checkpoints/{name}: the same command goes on from the one before it."
            ) from error
        return weights, state

    def weights(self, name: str) -> dict[str, Tensor]:
        best = self._best
        if best is not None and best.name == name:
            return best.weights
        return weights_from_bytes(self._folder.read(f"checkpoints/{name}/{MODEL}"))

    def save(self, step: int, weights: Mapping[str, Tensor], state: dict[str, Any], keep: str | None) -> str:
        """Write in the background; then remove the others but ``keep`` (the best one).

        Waits for the write before it, so that at most one copy of the state is in memory, and that of the
        best where it could not be stored. An error of that write is raised here, but for StorageFailed.
        """
        self.wait()
        copy = _Copy(f"{step:09d}", _copied(dict(weights)), _copied(state))
        self._writer = threading.Thread(target=self._write, args=(copy, keep), name="checkpoint")
        self._writer.start()
        return copy.name

    def wait(self) -> None:
        """Until everything handed to `save` is stored. Raises what the writer raised."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def check_attempt(self) -> None:
        """Raises StepFailed where another run has taken the step on."""
        if self._attempt and self._folder.read("attempt").decode() != self._attempt:
            raise StepFailed(f"Another mvray run has taken over {self._folder.uri}; this one ends.")

    def _write(self, copy: _Copy, keep: str | None) -> None:
        try:
            self.check_attempt()
            best, self._best = self._best, None
            if best is not None and best.name == keep and not self._stored(best):
                self._best = best  # what is stored now would count on it
            elif self._stored(copy):
                self._remove_but(copy.name, keep)
            elif copy.name == keep:
                self._best = copy
        except StorageFailed as error:
            self.trouble = _trouble(error)
        except BaseException as error:
            self._error = error

    def _stored(self, copy: _Copy) -> bool:
        """Store it, whole; False where the storage has no room or is away, and nothing of it is left then."""
        buffer = io.BytesIO()
        torch.save(copy.state, buffer)
        place = f"checkpoints/{copy.name}"
        try:
            self._folder.write(f"{place}/{MODEL}", weights_to_bytes(copy.weights))
            self._folder.write(f"{place}/{STATE}", buffer.getvalue())
            self._folder.write(f"{place}/{COMPLETE}", json.dumps({"step": int(copy.name)}).encode())
        except StorageFailed as error:
            self.trouble = _trouble(error)
            with suppress(OSError):  # what is left does not count, and goes with the next one that is whole
                self._folder.delete(place)
            return False
        self.trouble = ""
        return True

    def _remove_but(self, *kept: str | None) -> None:
        for old in self._folders():
            if old not in kept:
                # Its mark goes first: a removal that is cut short must not leave a whole-looking one.
                self._folder.delete(f"checkpoints/{old}/{COMPLETE}")
                self._folder.delete(f"checkpoints/{old}")


def _trouble(error: StorageFailed) -> str:
    return f"No checkpoint could be stored; training goes on, and tries again at the next. {error}"
