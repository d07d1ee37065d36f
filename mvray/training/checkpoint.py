"""Checkpoints: the only module that knows how training state is stored.

A checkpoint is a folder ``checkpoints/<step>/`` of three files: model.safetensors, state.pt (read with
``weights_only=True``) and complete.json, written last, with their checksums. Without complete.json it does not
count, so a half-written one is never taken for whole. Writing happens in a background thread: `Checkpoints.save`
copies the state and returns. Where the disk is full or the storage away, training goes on without that
checkpoint, and the next one is tried. Since one that counts was whole, a file of it that cannot be read was
damaged later: training goes on from the one before. Only what somebody else has put there ends it.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from mvray.errors import StepFailed, StorageFailed, TakenOver

if TYPE_CHECKING:
    from torch import Tensor

    from mvray.storage import Storage

MODEL, STATE, COMPLETE = "model.safetensors", "state.pt", "complete.json"


class Damaged(StepFailed):
    """A stored file that was whole cannot be read any more."""


def weights_to_bytes(state: Mapping[str, Tensor]) -> bytes:
    """A state dict as safetensors; tensors that share memory are written one by one."""
    import safetensors.torch

    return safetensors.torch.save({name: tensor.detach().cpu().contiguous() for name, tensor in state.items()})


def weights_from_bytes(data: bytes, name: str = "weights.safetensors") -> dict[str, Tensor]:
    """The state dict of `weights_to_bytes`, on the CPU. Raises StepFailed, with ``name``, where they are damaged."""
    import safetensors.torch

    try:
        loaded: dict[str, Tensor] = safetensors.torch.load(data)
    except Exception as error:  # the header says what is read how, so that damage to it raises anything
        raise Damaged(f"{name} is damaged ({error})") from error
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
    stays in memory and is stored before the next, which counts on it. ``damage`` says which could not be read.
    """

    def __init__(self, folder: Storage, attempt: str = "") -> None:
        self._folder, self._attempt = folder, attempt
        self._writer: threading.Thread | None = None
        self._error: BaseException | None = None
        self._best: _Copy | None = None
        self.trouble = self.damage = ""

    def names(self) -> list[str]:
        """Complete checkpoints, oldest first. A name is the number of optimiser steps, in nine digits."""
        return [name for name in self._folders() if self._folder.exists(f"checkpoints/{name}/{COMPLETE}")]

    def _folders(self) -> list[str]:
        return sorted(entry.path.rstrip("/").rpartition("/")[2] for entry in self._folder.list("checkpoints"))

    def newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint that can be read, see `load`; None where there is none. ``damage`` names those that
        cannot. Raises StepFailed where there are only such, or one is refused."""
        damaged: list[Damaged] = []
        for name in reversed(self.names()):
            try:
                loaded = self.load(name)
            except Damaged as error:
                damaged.append(error)
                continue
            if damaged:
                self.damage = f"{'; '.join(map(str, damaged))}. Going on from checkpoint {name}."
            return loaded
        if damaged:
            raise StepFailed(
                f"{damaged[0]}, and there is no other checkpoint that can be read. Find out what happened to this "
                f"storage; then remove {self._folder.full('checkpoints')}: the same command begins the step again."
            ) from damaged[0]
        return None

    def load(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The model's weights and the rest of the training state. Raises Damaged, and StepFailed for foreign files."""
        path = f"checkpoints/{name}/{STATE}"
        data, sums = self._read(path), self._checksums(name)
        try:
            state: dict[str, Any] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # as in weights_from_bytes
            if not _may_be_code(data, error):
                raise Damaged(f"{self._folder.full(path)} is damaged ({type(error).__name__})") from error
            raise StepFailed(
                f"{self._folder.full(path)} is refused{_names(error)}: it is broken, or holds more than tensors and "
                "numbers, such as code. Nothing of it was run. Find out who can write to this storage; then remove the "
                "checkpoint's folder: the same command goes on from another one, or begins the step again."
            ) from error
        self._check(path, data, sums)
        return self._weights(name), state

    def weights(self, name: str) -> dict[str, Tensor]:
        """The model's weights. Raises StepFailed where they cannot be read."""
        best = self._best
        if best is not None and best.name == name:
            return best.weights
        try:
            return self._weights(name)
        except Damaged as error:
            raise StepFailed(
                f"{error}; the weights to keep are in it. Find out what happened to this storage; then remove "
                f"{self._folder.full('checkpoints')}: the same command begins the step again."
            ) from error

    def _weights(self, name: str) -> dict[str, Tensor]:
        path = f"checkpoints/{name}/{MODEL}"
        data = self._read(path)
        weights = weights_from_bytes(data, self._folder.full(path))
        self._check(path, data, self._checksums(name))
        return weights

    def _checksums(self, name: str) -> dict[str, int]:
        """Of the files of a checkpoint, by name; of those stored before mvray kept them, none."""
        path = f"checkpoints/{name}/{COMPLETE}"
        try:
            sums = json.loads(self._read(path)).get("crc32", {})
            return {file: int(sums[file]) for file in sums}
        except (ValueError, TypeError, AttributeError) as error:
            raise Damaged(f"{self._folder.full(path)} is damaged ({error})") from error

    def _check(self, path: str, data: bytes, sums: Mapping[str, int]) -> None:
        """Checked after reading, whose own error says more. Neither reader notices changed bytes of a tensor."""
        if zlib.crc32(data) != sums.get(path.rpartition("/")[2], zlib.crc32(data)):
            raise Damaged(f"{self._folder.full(path)} is damaged (its checksum is not that of {COMPLETE})")

    def _read(self, path: str) -> bytes:
        try:
            return self._folder.read(path)
        except FileNotFoundError as error:
            raise Damaged(f"{self._folder.full(path)} is missing") from error

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
        """Raises TakenOver where another run has taken the step on."""
        if self._attempt and self._folder.read("attempt").decode() != self._attempt:
            raise TakenOver(f"Another mvray run has taken over {self._folder.uri}; this one ends.")

    def _write(self, copy: _Copy, keep: str | None) -> None:
        best = self._best if self._best is not None and self._best.name == keep else None
        self._best = copy if copy.name == keep else best  # until it is stored, whatever fails first
        try:
            self.check_attempt()
            for checkpoint in (best, copy) if best is not None else (copy,):
                if not self._stored(checkpoint):
                    return  # a later checkpoint refers to the best one, which is not stored
                if checkpoint is self._best:
                    self._best = None
            self._remove_but(copy.name, keep)
        except StorageFailed as error:
            self.trouble = _trouble(error)
        except BaseException as error:
            self._error = error

    def _stored(self, copy: _Copy) -> bool:
        """Store it, whole; False where the storage has no room or is away, and nothing of it is left then."""
        buffer = io.BytesIO()
        torch.save(copy.state, buffer)
        place = f"checkpoints/{copy.name}"
        files = {MODEL: weights_to_bytes(copy.weights), STATE: buffer.getvalue()}
        about = {"step": int(copy.name), "crc32": {file: zlib.crc32(data) for file, data in files.items()}}
        try:
            for file, data in files.items():
                self._folder.write(f"{place}/{file}", data)
            self._folder.write(f"{place}/{COMPLETE}", json.dumps(about).encode())
        except StorageFailed as error:
            self.trouble = _trouble(error)
            with suppress(OSError):  # what is left does not count, and goes with the next one that is whole
                self._folder.delete(place)
            return False
        self.trouble = ""
        return True

    def _remove_but(self, *names: str | None) -> None:
        for old in self._folders():
            if old not in names:
                # Its mark goes first: a removal that is cut short must not leave a whole-looking one.
                self._folder.delete(f"checkpoints/{old}/{COMPLETE}")
                self._folder.delete(f"checkpoints/{old}")


def _may_be_code(data: bytes, error: Exception) -> bool:
    """Whether a file that torch does not take was written so: it is whole, or a pickle by itself, or names code."""
    if data.startswith(b"\x80") or _names(error):
        return True
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return archive.testzip() is None
    except Exception:  # as in weights_from_bytes
        return False


def _names(error: Exception) -> str:
    """What torch found in the file, without its advice to read it all the same."""
    match = re.search(r"GLOBAL (\S+)", str(error))
    return f" (it names {match[1]})" if match else ""


def _trouble(error: StorageFailed) -> str:
    return f"No checkpoint could be stored; training goes on, and tries again at the next. {error}"
