"""Checkpoints: the only module that knows how training state is stored.

A checkpoint is a folder ``checkpoints/<step>/`` of three files: model.safetensors, state.pt (read with
``weights_only=True``) and complete.json, written last. Without complete.json it does not count, so
a half-written one is never taken for whole. Writing happens in a background thread: `Checkpoints.save`
copies the state and returns.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import StepFailed

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


class Checkpoints:
    """The checkpoints of one Train step, below its folder. One process (rank 0) writes.

    With ``attempt``, the folder's file of that name must still say so at each write: when a driver is
    killed its workers live on for a moment, and must not write beside those of the next one.
    """

    def __init__(self, folder: Storage, attempt: str = "") -> None:
        self._folder, self._attempt = folder, attempt
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. A name is the number of optimiser steps, in nine digits."""
        return [name for name in self._folders() if self._folder.exists(f"checkpoints/{name}/{COMPLETE}")]

    def _folders(self) -> list[str]:
        return sorted(entry.path.rstrip("/").rpartition("/")[2] for entry in self._folder.list("checkpoints"))

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's weights and the rest of the training state."""
        weights = self.weights(name)
        raw = self._folder.read(f"checkpoints/{name}/{STATE}")
        state: dict[str, Any] = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
        return weights, state

    def weights(self, name: str) -> dict[str, Tensor]:
        return weights_from_bytes(self._folder.read(f"checkpoints/{name}/{MODEL}"))

    def save(self, step: int, weights: Mapping[str, Tensor], state: dict[str, Any], keep: str | None) -> str:
        """Write in the background; then remove the others but ``keep`` (the best one).

        Waits for the write before it, so that at most one copy of the state is in memory. An error
        of that write is raised here.
        """
        self.wait()
        name = f"{step:09d}"
        copies = _copied(dict(weights)), _copied(state)
        self._writer = threading.Thread(target=self._write, args=(name, *copies, keep), name="checkpoint")
        self._writer.start()
        return name

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

    def _write(self, name: str, weights: dict[str, Tensor], state: dict[str, Any], keep: str | None) -> None:
        try:
            self.check_attempt()
            buffer = io.BytesIO()
            torch.save(state, buffer)
            self._folder.write(f"checkpoints/{name}/{MODEL}", weights_to_bytes(weights))
            self._folder.write(f"checkpoints/{name}/{STATE}", buffer.getvalue())
            self._folder.write(f"checkpoints/{name}/{COMPLETE}", json.dumps({"step": int(name)}).encode())
            for old in self._folders():
                if old not in (name, keep):
                    # Its mark goes first: a removal that is cut short must not leave a whole-looking one.
                    self._folder.delete(f"checkpoints/{old}/{COMPLETE}")
                    self._folder.delete(f"checkpoints/{old}")
        except BaseException as error:
            self._error = error
