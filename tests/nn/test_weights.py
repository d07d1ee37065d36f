"""Weights from files and URLs, and the messages for those that do not fit."""

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mvray.errors import DataError
from mvray.nn import weights
from mvray.storage.storage import Storage
from mvray.training.checkpoint import weights_to_bytes


def net(hidden: int = 4, classes: int = 3) -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, hidden), nn.Linear(hidden, classes))


def load(made: nn.Module, place: str | Path) -> None:
    weights.load(made, "two-layers", str(place), "1")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


@pytest.mark.parametrize("form", ["plain", "model_state", "safetensors"])
def test_all_forms_load(form: str, path: Path) -> None:
    given, made = net(), net()
    if form == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(given.state_dict(), path)
    else:
        torch.save(given.state_dict() if form == "plain" else {"model_state": given.state_dict(), "epoch": 1}, path)
    load(made, path)
    assert all(torch.equal(value, given.state_dict()[key]) for key, value in made.state_dict().items())


def test_what_does_not_fit_is_named(path: Path) -> None:
    state = net(5).state_dict()
    state["other"] = state.pop("0.bias")
    torch.save(state, path)
    made = net()
    before = {key: value.clone() for key, value in made.state_dict().items()}
    with pytest.raises(DataError) as refused:
        load(made, path)
    assert str(refused.value) == (
        f"{path} does not hold weights of two-layers: 1 entries are missing, such as 0.bias; 1 entries are unknown, "
        "such as other; 1 entries are of another shape, such as 0.weight ((5, 2) instead of (4, 2)). Name the network "
        "that the file was saved from."
    )
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as weights"),
        (b"no weights at all", "cannot be read as weights"),
        ([1, 2], "holds list, not a state dict"),
        ({"model_state": [1]}, "holds list, not a state dict"),
        ({"epoch": 3}, "holds dict, not a state dict of tensors"),
        (net(), "cannot be read as weights"),  # a pickled network would run code
    ],
)
def test_other_files_are_refused(content: object, message: str, path: Path) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
        path.with_suffix(".safetensors").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load(net(), path.with_suffix(".safetensors"))
    else:
        torch.save(content, path)
    with pytest.raises(DataError, match=message):
        load(net(), path)


def test_no_file(path: Path) -> None:
    with pytest.raises(DataError, match=r"no weights at .*weights\.pth; expected a state dict, .* or an http\(s\)"):
        load(net(), path)
    with pytest.raises(DataError, match=r"no weights at gs://bucket/x\.pth"):
        load(net(), "gs://bucket/x.pth")


@pytest.mark.slow
def test_weights_on_s3(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    given = {name: torch.rand_like(value) for name, value in net().state_dict().items()}
    Storage(s3).write("w.safetensors", weights_to_bytes(given))
    made = net()
    load(made, f"{s3}/w.safetensors")
    assert all(torch.equal(value, given[name]) for name, value in made.state_dict().items())
    with pytest.raises(DataError, match=r"no weights at s3://\S*/none\.pth"):
        load(made, f"{s3}/none.pth")


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; of "cut.pth" it sends only half of what it announces."""

    def log_message(self, *_args: object) -> None:
        pass

    def copyfile(self, source, outputfile) -> None:
        content = source.read()
        outputfile.write(content[: len(content) // 2] if self.path == "/cut.pth" else content)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    """A web server over tmp_path/served; downloads go to tmp_path/hub."""
    (tmp_path / "served").mkdir()
    hub = torch.hub.get_dir()
    torch.hub.set_dir(str(tmp_path / "hub"))
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        thread = threading.Thread(target=serving.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()
        thread.join()
    torch.hub.set_dir(hub)


def test_a_url_is_downloaded_once(server: str, tmp_path: Path) -> None:
    given, made = net(), net()
    served = tmp_path / "served" / "X3D_M.pyth"
    torch.save({"model_state": given.state_dict()}, served)
    load(made, f"{server}/X3D_M.pyth")
    served.unlink()
    load(net(), f"{server}/X3D_M.pyth")
    assert torch.equal(made[0].weight, given[0].weight)
    assert [each.name.endswith("-X3D_M.pyth") for each in (tmp_path / "hub/checkpoints").iterdir()] == [True]
    with pytest.raises(DataError, match=r"other/X3D_M.pyth cannot be downloaded \(HTTP Error 404"):
        load(net(), f"{server}/other/X3D_M.pyth")


def test_a_download_that_breaks_off_leaves_nothing_behind(server: str, tmp_path: Path) -> None:
    torch.save(net().state_dict(), tmp_path / "served" / "cut.pth")
    with pytest.raises(DataError, match=r"cut\.pth cannot be downloaded \(.*after \d+ of \d+ bytes"):
        load(net(), f"{server}/cut.pth")
    assert list((tmp_path / "hub/checkpoints").iterdir()) == []


def test_a_server_that_is_not_there(tmp_path: Path, server: str) -> None:
    with pytest.raises(DataError, match=r"cannot be downloaded .*refused"):
        load(net(), "http://127.0.0.1:9/x.pth")


def test_file_urls(path: Path) -> None:
    torch.save(net().state_dict(), path)
    load(net(), path.as_uri())
    with pytest.raises(DataError, match="no weights at file:///nowhere"):
        load(net(), "file:///nowhere/x.pth")
