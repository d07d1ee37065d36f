"""Checkpoints on a real disk: what counts, what stays, and what happens when writing fails."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from mvray.errors import StepFailed, StorageFailed
from mvray.storage.storage import Storage
from mvray.training.checkpoint import Checkpoints, weights_from_bytes, weights_to_bytes


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"layer.weight": torch.full((2, 3), value), "steps": torch.tensor(int(value))}


def state(value: float) -> dict[str, Any]:
    optimisers = {
        "train": {"state": {0: {"momentum": torch.full((2,), value)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    }
    return {
        "state": {"epoch": 3, "best": None, "history": [{"a": 0.1}]},
        "optimisers": optimisers,
        "rng": torch.get_rng_state(),
    }


@pytest.fixture
def folder(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path))


@pytest.fixture
def checkpoints(folder: Storage) -> Checkpoints:
    return Checkpoints(folder)


def save(checkpoints: Checkpoints, step: int, keep: str | None = None) -> str:
    name = checkpoints.save(step, weights(step), state(step), keep)
    checkpoints.wait()
    return name


def test_what_is_saved_comes_back(checkpoints: Checkpoints) -> None:
    assert checkpoints.names() == []
    given = state(7)
    checkpoints.save(7, weights(7), given, None)
    checkpoints.wait()
    assert checkpoints.names() == ["000000007"]
    found, rest = checkpoints.load("000000007")
    assert all(torch.equal(found[name], value) for name, value in weights(7).items())
    assert rest["state"] == given["state"]
    assert torch.equal(rest["rng"], given["rng"])
    assert torch.equal(rest["optimisers"]["train"]["state"][0]["momentum"], torch.full((2,), 7.0))
    assert rest["optimisers"]["train"]["param_groups"] == given["optimisers"]["train"]["param_groups"]


def test_training_may_go_on_while_it_is_written(checkpoints: Checkpoints) -> None:
    given = {"w": torch.zeros(500_000)}
    rest = {"momentum": torch.zeros(500_000), "list": [1]}
    checkpoints.save(1, given, rest, None)
    for tensor in (given["w"], rest["momentum"]):
        tensor.fill_(9)
    rest["list"].append(2)
    checkpoints.wait()
    found, read = checkpoints.load("000000001")
    assert found["w"].abs().max() == 0
    assert read["momentum"].abs().max() == 0
    assert read["list"] == [1]


def test_the_newest_and_the_best_stay(checkpoints: Checkpoints, folder: Storage) -> None:
    first = save(checkpoints, 5)
    assert checkpoints.names() == [first]
    best = save(checkpoints, 10, keep="000000010")
    assert checkpoints.names() == [best]
    third = save(checkpoints, 15, keep=best)
    assert checkpoints.names() == [best, third]
    fourth = save(checkpoints, 1_000_000, keep=best)
    assert checkpoints.names() == [best, fourth]
    assert [entry.path for entry in folder.list("checkpoints")] == [f"checkpoints/{best}", f"checkpoints/{fourth}"]


def test_half_a_checkpoint_does_not_count(checkpoints: Checkpoints, folder: Storage) -> None:
    """Files appear whole, in order, complete.json last: without it the folder may lack any of them."""
    good = save(checkpoints, 5, keep="000000005")
    save(checkpoints, 10, keep=good)
    place = folder.local("checkpoints/000000010")
    (place / "complete.json").unlink()
    assert checkpoints.names() == [good]
    (place / "state.pt").unlink()
    assert Checkpoints(folder).names() == [good]
    save(checkpoints, 12, keep=good)
    assert not place.exists()  # the next one clears up
    assert checkpoints.names() == [good, "000000012"]


def test_a_removal_that_was_cut_short_leaves_nothing_that_counts(
    checkpoints: Checkpoints, folder: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(checkpoints, 5)
    delete, removed = Storage.delete, []

    def dying(self: Storage, path: str) -> None:
        removed.append(path)
        if len(removed) == 2:
            raise KeyboardInterrupt
        delete(self, path)

    monkeypatch.setattr(Storage, "delete", dying)
    checkpoints.save(10, weights(10), state(10), None)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.wait()
    assert removed == ["checkpoints/000000005/complete.json", "checkpoints/000000005"]
    assert folder.exists("checkpoints/000000005/model.safetensors")
    assert checkpoints.names() == ["000000010"]


def test_an_error_of_the_writer_is_raised_at_the_next_save(folder: Storage, checkpoints: Checkpoints) -> None:
    save(checkpoints, 5)
    blocked = folder.local("checkpoints/000000010")
    blocked.write_text("a file where a folder should be")
    checkpoints.save(10, weights(10), state(10), None)
    with pytest.raises(OSError, match="000000010"):
        checkpoints.save(15, weights(15), state(15), None)
    assert Checkpoints(folder).names() == ["000000005"]
    blocked.unlink()
    save(checkpoints, 20)  # told once
    assert checkpoints.names() == ["000000020"]


def test_an_error_of_the_last_write_is_raised_at_the_end(folder: Storage, checkpoints: Checkpoints) -> None:
    (folder.local("") / "checkpoints").write_text("a file where a folder should be")
    checkpoints.save(10, weights(10), state(10), None)
    with pytest.raises(OSError, match="checkpoints"):
        checkpoints.wait()


def test_only_the_newest_driver_writes(folder: Storage) -> None:
    folder.write("attempt", b"first")
    first = Checkpoints(folder, "first")
    save(first, 5)
    folder.write("attempt", b"second")
    first.save(10, weights(10), state(10), None)
    with pytest.raises(StepFailed, match="Another mvray run has taken over"):
        first.wait()
    second = Checkpoints(folder, "second")
    assert second.names() == ["000000005"]
    save(second, 8)
    assert second.names() == ["000000008"]


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Operations of `Storage` that fail, for longer than was waited, while their names are in this set."""
    failing: set[str] = set()

    def patch(name: str) -> None:
        real = getattr(Storage, name)

        def operation(self: Storage, *given: Any) -> Any:
            if name in failing:
                raise StorageFailed("s3://b does not answer")
            return real(self, *given)

        monkeypatch.setattr(Storage, name, operation)

    for name in ("read", "write", "delete"):
        patch(name)
    return failing


@pytest.mark.parametrize("failing", [{"read", "write", "delete"}, {"read"}, {"write"}])
def test_the_best_one_is_not_lost_while_the_storage_is_away(folder: Storage, away: set[str], failing: set[str]) -> None:
    """With ``read`` the check for another driver fails already, before anything is written."""
    folder.write("attempt", b"one")
    checkpoints = Checkpoints(folder, "one")
    save(checkpoints, 10, keep="000000010")
    away |= failing
    best = save(checkpoints, 20, keep="000000020")
    assert "No checkpoint could be stored" in checkpoints.trouble
    assert torch.equal(checkpoints.weights(best)["layer.weight"], weights(20)["layer.weight"])
    save(checkpoints, 25, keep=best)  # still away
    away.clear()
    assert checkpoints.names() == ["000000010"]
    save(checkpoints, 30, keep=best)
    assert checkpoints.names() == [best, "000000030"]
    assert checkpoints.trouble == ""
    again = Checkpoints(folder, "one")
    assert torch.equal(again.weights(best)["layer.weight"], weights(20)["layer.weight"])
    assert again.load(best)[1]["state"] == state(20)["state"]


def test_of_two_best_ones_the_newer_is_kept_while_the_storage_is_away(
    folder: Storage, checkpoints: Checkpoints, away: set[str]
) -> None:
    save(checkpoints, 10, keep="000000010")
    away |= {"write"}
    save(checkpoints, 20, keep="000000020")
    save(checkpoints, 30, keep="000000030")
    assert torch.equal(checkpoints.weights("000000030")["layer.weight"], weights(30)["layer.weight"])
    away.clear()
    save(checkpoints, 40, keep="000000030")
    assert checkpoints.names() == ["000000030", "000000040"]


def test_weights_as_bytes() -> None:
    """Layout in memory and shared memory do not show in the file."""
    shared = torch.rand(4, 3, 5, 5).contiguous(memory_format=torch.channels_last)
    given = {
        "conv": shared,
        "tied": shared,
        "half": torch.rand(3).bfloat16().requires_grad_(),
        "count": torch.tensor(3),
    }
    found = weights_from_bytes(weights_to_bytes(given))
    assert set(found) == set(given)
    for name, value in given.items():
        assert torch.equal(found[name], value)
        assert found[name].dtype == value.dtype
    plain = {**given, "conv": shared.contiguous()}
    assert weights_to_bytes(plain) == weights_to_bytes(given)


def test_state_is_read_without_running_code(folder: Storage, checkpoints: Checkpoints) -> None:
    ran = folder.local("ran")

    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(ran),))

    save(checkpoints, 5)
    place = folder.local("checkpoints/000000005/state.pt")
    torch.save({"state": Trap()}, place)
    with pytest.raises(StepFailed, match=r"state.pt is refused \(it names \S*mkdir.*Nothing of it was run"):
        checkpoints.load("000000005")
    place.write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(StepFailed, match=r"state.pt is refused"):
        checkpoints.load("000000005")
    place.write_bytes(place.read_bytes()[:10])
    with pytest.raises(StepFailed, match=r"state.pt is refused"):
        checkpoints.load("000000005")
    assert not ran.exists()


@pytest.mark.parametrize("file", ["model.safetensors", "state.pt"])
@pytest.mark.parametrize("damage", ["cut", "empty", "zeros", "page", "one bit", "a number", "gone"])
def test_a_damaged_checkpoint_is_passed_over(folder: Storage, checkpoints: Checkpoints, file: str, damage: str) -> None:
    good = save(checkpoints, 5, keep="000000005")
    save(checkpoints, 10, keep=good)
    place = folder.local(f"checkpoints/000000010/{file}")
    data = place.read_bytes()
    bit = data.rfind(b"layer.weight") if file == "model.safetensors" else data.find(b"history")
    number = torch.full((2,), 10).numpy().tobytes()  # in both files: weights(10), state(10)
    spoilt = {
        "cut": data[: len(data) // 2],
        "empty": b"",
        "zeros": bytes(len(data)),
        "page": b"<html>503</html>" * 9,
        "one bit": data[: bit - 1] + bytes([data[bit - 1] ^ 0x80]) + data[bit:],
        "a number": data.replace(number, bytes([number[0] ^ 1]) + number[1:]),
    }
    place.unlink() if damage == "gone" else place.write_bytes(spoilt[damage])
    found, rest = checkpoints.newest() or pytest.fail("there is an older one")
    assert torch.equal(found["layer.weight"], weights(5)["layer.weight"])
    assert rest["state"] == state(5)["state"]
    said = "missing" if damage == "gone" else r"damaged \(.*\)"
    assert re.fullmatch(rf"{place} is {said}. Going on from checkpoint 000000005.", checkpoints.damage)
    folder.delete("checkpoints/000000005")
    with pytest.raises(
        StepFailed, match=rf"{file} is .*no other checkpoint .* remove .*/checkpoints: the same command"
    ):
        Checkpoints(folder).newest()


@pytest.mark.parametrize("content", [b"", b"[]", b"\x00" * 30, b'{"crc32": 1}', b'{"crc32": {"state.pt": "x"}}'])
def test_a_damaged_mark_is_passed_over(folder: Storage, checkpoints: Checkpoints, content: bytes) -> None:
    good = save(checkpoints, 5, keep="000000005")
    save(checkpoints, 10, keep=good)
    folder.write("checkpoints/000000010/complete.json", content)
    found, _ = checkpoints.newest() or pytest.fail("there is an older one")
    assert torch.equal(found["layer.weight"], weights(5)["layer.weight"])
    assert "complete.json is damaged" in checkpoints.damage


def test_a_checkpoint_without_checksums_is_read(folder: Storage, checkpoints: Checkpoints) -> None:
    """Those that mvray stored before it kept them."""
    save(checkpoints, 5)
    folder.write("checkpoints/000000005/complete.json", b'{"step": 5}')
    found, _ = checkpoints.newest() or pytest.fail("there is one")
    assert torch.equal(found["layer.weight"], weights(5)["layer.weight"])


def test_what_is_foreign_is_not_passed_over(folder: Storage, checkpoints: Checkpoints) -> None:
    """A file that is as it was written, but not by us: somebody else has put it there."""
    good = save(checkpoints, 5, keep="000000005")
    save(checkpoints, 10, keep=good)
    place = folder.local("checkpoints/000000010/state.pt")
    for content in ({"state": Path("x")}, {"state": os.mkdir}):
        torch.save(content, place)
        with pytest.raises(StepFailed, match=r"state.pt is refused"):
            checkpoints.newest()
    for protocol in range(6):
        place.write_bytes(pickle.dumps(os.mkdir, protocol=protocol))
        with pytest.raises(StepFailed, match=r"state.pt is refused"):
            checkpoints.newest()


def test_the_weights_to_keep_are_damaged(folder: Storage, checkpoints: Checkpoints) -> None:
    best = save(checkpoints, 5, keep="000000005")
    folder.local(f"checkpoints/{best}/model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(StepFailed, match=r"model.safetensors is damaged .*the weights to keep are in it"):
        checkpoints.weights(best)
    checkpoints.save(10, weights(10), state(10), best)
    checkpoints.wait()
    place = folder.local("checkpoints/000000010/model.safetensors")
    place.write_bytes(place.read_bytes()[:-1] + b"\x01")  # of the number of steps: any bytes are a number
    with pytest.raises(StepFailed, match=r"model.safetensors is damaged \(its checksum"):
        checkpoints.weights("000000010")
    with pytest.raises(StepFailed, match=r"weights.safetensors is damaged"):
        weights_from_bytes(b"")
