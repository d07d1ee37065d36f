"""Crops: squares around boxes, cut once per node, mapped by every process."""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from processes import forked

import mvray.data.crops
from mvray.data import node_cache
from mvray.data.crops import Crops, Cut, CutPicture, crop, open_crops, square
from mvray.data.node_cache import KEPT_S
from mvray.storage.storage import Storage

Draw = Callable[..., Image.Image]
SIZE = (200, 120)
CUTS = (Cut(10, 20, 60, 70), Cut(0, 0, 120, 120), Cut(150, 100, 200, 120))


@pytest.fixture
def storage(tmp_path: Path, drawn_picture: Draw) -> Storage:
    """Six pictures of 200 x 120."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        drawn_picture(*SIZE, seed=number).save(folder / f"{number}.png")
    return Storage(str(folder))


def pictures(storage: Storage) -> list[CutPicture]:
    return [CutPicture(entry, *SIZE, CUTS) for entry in storage.list()]


def made(storage: Storage, cache: Path, most_px: int = 64) -> Crops:
    return open_crops("test", pictures(storage), most_px, storage.read, cache)


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((50, 40, 70, 60), 0.0, (50, 40, 70, 60)),
        ((50, 40, 70, 50), 0.0, (50, 35, 70, 55)),  # a square around it
        ((50, 40, 70, 60), 0.5, (40, 30, 80, 70)),  # half of its side on both sides
        ((0, 40, 20, 60), 0.5, (0, 30, 40, 70)),  # moves inwards at the edge
        ((190, 100, 200, 120), 0.0, (180, 100, 200, 120)),
        ((0, 0, 200, 100), 0.1, (0, 0, 200, 120)),  # as far as the page allows
        ((-30, -10, 10, 10), 0.0, (0, 0, 10, 10)),  # cut at the page first
        ((190, 110, 900, 900), 0.0, (190, 110, 200, 120)),
    ],
)
def test_the_square_around_a_box(box: tuple[float, ...], margin: float, expected: tuple[int, ...]) -> None:
    assert square(box, *SIZE, margin) == expected


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    "box",
    [
        (201, 10, 250, 60),  # beside the page
        (10, 120, 60, 200),  # below it
        (-50, 10, -3, 60),
        (10, 10, 10, 60),  # empty
        (60, 10, 10, 60),  # the wrong way round
        (10, 10, 11, 60),  # a line
        (199, 10, 260, 60),  # a line is left of it
        (NAN, 10, 60, 60),
        (10, 10, 60, NAN),
        (INF, INF, INF, INF),
    ],
)
def test_a_box_that_shows_nothing(box: tuple[float, ...]) -> None:
    assert square(box, *SIZE, 0.15) is None
    assert square((10, 10, 60, 60), 0, 0, 0.15) is None


def test_squares_stay_on_the_page_and_are_square_where_they_can() -> None:
    draw = np.random.default_rng(0)
    for _ in range(500):
        x, y, width, height = draw.uniform((-40, -40, 1, 1), (220, 140, 150, 100))
        found = square((x, y, x + width, y + height), *SIZE, draw.uniform(0, 0.5))
        if found is None:
            continue
        assert 0 <= found.x0 < found.x1 <= 200
        assert 0 <= found.y0 < found.y1 <= 120
        wide, high = found.x1 - found.x0, found.y1 - found.y0
        assert wide == high or (high == 120 and wide > 120)
        assert found.x0 <= max(x, 0) + 1
        assert found.y1 >= min(y + height, 120) - 1
        assert Cut.of(str(found)) == found


def test_a_crop_is_what_lies_in_the_cut(storage: Storage, tmp_path: Path) -> None:
    crops = made(storage, tmp_path / "cache")
    for number in range(6):
        page = np.asarray(Image.open(f"{storage.uri}/{number}.png"))
        small, large, flat = (crops.get(f"{number}.png", str(cut)) for cut in CUTS)
        assert np.array_equal(small, page[20:70, 10:60])
        assert np.array_equal(flat, page[100:120, 150:200])
        assert large.shape == (64, 64)  # at most 64 pixels
        assert (
            np.abs(large - np.asarray(Image.fromarray(page).resize((64, 64), 2, (0, 0, 120, 120))).astype(int)).max()
            < 3
        )
    assert crops.get("0.png", "1,2,3,4") is None
    assert crops.get("9.png", str(CUTS[0])) is None


def test_a_picture_of_another_size_is_cut_in_proportion(drawn_picture: Draw) -> None:
    image = drawn_picture(400, 240, seed=1)
    found = crop(image, Cut(10, 20, 60, 70), SIZE, 256)
    assert np.array_equal(found, np.asarray(image)[40:140, 20:120])
    assert crop(image, Cut(10, 20, 60, 70), SIZE, 50).shape == (50, 50)
    assert crop(drawn_picture(20, 12, seed=1), Cut(0, 0, 3, 3), SIZE, 256).shape == (1, 1)


def test_the_file_is_mapped_and_shared_by_threads(storage: Storage, tmp_path: Path) -> None:
    before = pa.total_allocated_bytes()
    crops = made(storage, tmp_path / "cache", 256)
    (file,) = (tmp_path / "cache").iterdir()
    assert file.suffix == ".arrow"
    assert str(file) in Path("/proc/self/maps").read_text()
    assert pa.total_allocated_bytes() - before < 20_000
    first = crops.get("0.png", str(CUTS[0]))
    assert not first.flags.writeable
    asked = [(f"{i % 6}.png", str(CUTS[i % 3])) for i in range(600)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda at: crops.get(*at).sum(), asked))
    assert found == [crops.get(*at).sum() for at in asked]


def test_a_picture_that_cannot_be_decoded_has_no_crops(storage: Storage, tmp_path: Path) -> None:
    storage.write("2.png", b"\x89PNG\r\n and no more")
    crops = made(storage, tmp_path / "cache")
    assert crops.get("2.png", str(CUTS[0])) is None
    assert crops.get("3.png", str(CUTS[0])) is not None
    assert open_crops("none", [], 64, storage.read, tmp_path / "cache").get("2.png", "") is None


def test_other_files_cuts_sizes_and_places_are_another_file(storage: Storage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    asked = pictures(storage)
    made(storage, cache)
    made(storage, cache)
    assert len(list(cache.iterdir())) == 1
    made(storage, cache, most_px=65)
    open_crops("elsewhere", asked, 64, storage.read, cache)
    open_crops("test", [each._replace(cuts=CUTS[:2]) for each in asked], 64, storage.read, cache)
    open_crops("test", [each._replace(width=201) for each in asked], 64, storage.read, cache)
    assert len(list(cache.iterdir())) == 5
    storage.write("0.png", storage.read("0.png") + b"\0")
    made(storage, cache)
    assert len(list(cache.iterdir())) == 6


def test_old_files_are_forgotten(storage: Storage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    crops = made(storage, cache)
    (first,) = cache.iterdir()
    (cache / "abc.0123").write_bytes(b"half of a file that a killed process left")
    for file in cache.iterdir():
        os.utime(file, (time.time() - KEPT_S - 60,) * 2)
    made(storage, cache, most_px=31)
    assert first.exists()  # this process uses it
    node_cache.begin_task(20)
    made(storage, cache, most_px=32)
    node_cache.begin_task(20)
    for file in cache.iterdir():
        os.utime(file, (time.time() - KEPT_S - 60,) * 2)
    made(storage, cache, most_px=33)
    (left,) = cache.iterdir()
    assert left != first
    assert crops.get("0.png", str(CUTS[0])).shape == (50, 50)  # still mapped here


def decode(storage: Storage, cache: Path, slow_s: float) -> Callable[[Connection], None]:
    """What a process does that opens the crops: it says when it begins to decode, and then how many and what."""

    def run(pipe: Connection) -> None:
        count, lock, plain = [], threading.Lock(), mvray.data.crops.open_upright

        def picture(*given: object, **how: object) -> Image.Image:
            with lock:
                if not count:
                    pipe.send("decoding")
                count.append(1)
            time.sleep(slow_s)
            return plain(*given, **how)

        mvray.data.crops.open_upright = picture
        asked = [each._replace(cuts=CUTS[:1]) for each in pictures(storage)]
        crops = open_crops("test", asked, 64, storage.read, cache)
        pipe.send((len(count), int(crops.get("5.png", str(CUTS[0])).sum())))

    return run


def test_of_several_processes_one_decodes_each_picture_once(storage: Storage, tmp_path: Path) -> None:
    both = [forked(decode(storage, tmp_path / "cache", slow_s=0.05)) for _ in range(2)]
    answers = []
    for _, pipe in both:
        with contextlib.suppress(EOFError):
            while True:
                answers.append(pipe.recv())
    total = int(np.asarray(Image.open(f"{storage.uri}/5.png"))[20:70, 10:60].sum())
    assert sorted(answers, key=str) == [(0, total), (6, total), "decoding"]
    assert [file.suffix for file in (tmp_path / "cache").iterdir()] == [".arrow"]


def test_what_a_killed_process_leaves_is_not_used(storage: Storage, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    killed, pipe = forked(decode(storage, cache, slow_s=60))
    assert pipe.recv() == "decoding"
    killed.kill()
    killed.join()
    left = {file.suffix for file in cache.iterdir()}
    assert ".lock" in left
    assert ".arrow" not in left
    asked = [each._replace(cuts=CUTS[:1]) for each in pictures(storage)]
    crops = open_crops("test", asked, 64, storage.read, cache)
    assert crops.get("5.png", str(CUTS[0])).shape == (50, 50)
    assert sum(file.suffix == ".arrow" for file in cache.iterdir()) == 1


def test_a_failing_storage_leaves_nothing_behind(storage: Storage, tmp_path: Path) -> None:
    def read(path: str) -> bytes:
        raise OSError(f"the storage does not answer for {path}")

    with pytest.raises(OSError, match="does not answer"):
        open_crops("test", pictures(storage), 64, read, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_full_disk_is_done_without(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    place = tmp_path / "cache"
    assert node_cache.build_once(place / "a.arrow", full) is None
    assert node_cache.build_once(place / "b.arrow", full) is None
    assert [record.message for record in caplog.records] == [
        f"{place} is full: work goes on without a copy of the data there, slower. Free some space, or set TMPDIR."
    ]
    assert list(place.iterdir()) == []


def test_a_full_disk_first_loses_what_nobody_uses(tmp_path: Path) -> None:
    node_cache.build_once(tmp_path / "cache" / "old.arrow", lambda file: file.write_bytes(b"old"))
    node_cache.begin_task(20)
    tries = []

    def make(file: Path) -> None:
        tries.append(file)
        if len(tries) == 1:
            raise OSError(28, "No space left on device")
        file.write_bytes(b"new")

    assert node_cache.build_once(tmp_path / "cache" / "new.arrow", make) == tmp_path / "cache" / "new.arrow"
    assert [file.name for file in (tmp_path / "cache").iterdir()] == ["new.arrow"]


def test_the_longest_unused_go_first_and_what_is_in_use_never(tmp_path: Path) -> None:
    places = [tmp_path / "cache" / f"{number}.arrow" for number in range(5)]
    for age, place in enumerate(places[:4]):
        node_cache.build_once(place, lambda file: file.write_bytes(bytes(1000)))
        os.utime(place, (time.time() - 100 + age,) * 2)

    def hold(pipe: Connection) -> None:
        node_cache.begin_task(20)  # lets go of what this process held when it was copied
        pipe.send(str(node_cache.build_once(places[0], lambda _: None)))
        pipe.recv()

    other, pipe = forked(hold)
    assert pipe.recv() == str(places[0])
    os.utime(places[0], (time.time() - 1000,) * 2)
    node_cache.begin_task(3500 / 2**30)
    node_cache.build_once(places[4], lambda file: file.write_bytes(bytes(1000)))
    assert [place.exists() for place in places] == [True, False, False, True, True]
    pipe.send("end")
    other.join()
    node_cache.begin_task(0)
    node_cache.build_once(places[1], lambda file: file.write_bytes(bytes(1000)))
    assert [place.exists() for place in places] == [False, True, False, False, False]
    node_cache.begin_task(20)


def test_the_usual_place_is_the_users_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, storage: Storage) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    open_crops("test", pictures(storage), 64, storage.read)
    (file,) = (tmp_path / f"mvray-{os.getuid()}" / "crops").iterdir()
    assert re.fullmatch(r"[0-9a-f]{32}\.arrow", file.name)
    assert file.parent.parent.stat().st_mode & 0o777 == 0o700
    assert Counter(path.suffix for path in file.parent.iterdir()) == {".arrow": 1}
