"""Sample actions: whole, in UCF101's layout, with exact masks, the same actors and scenes in every class."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from mvray.data.synthetic.actions import clips_of, compose, groups_tested, names_of
from mvray.data.synthetic.film import HEIGHT, WIDTH, Film, Layer, shoot
from mvray.data.synthetic.motions import MOTIONS
from mvray.data.synthetic.sprites import Sprite
from mvray.data.synthetic.staging import film_of

CLASSES, VIDEOS, SEED = 3, 3, 5

pytestmark = pytest.mark.slow  # drawn samples, some seconds each


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("art") / "actions"
    compose(out, classes=CLASSES, videos=VIDEOS, seed=SEED, processes=1)
    return out


@pytest.fixture(scope="module")
def instances(sample: Path) -> dict[str, Any]:
    return dict(json.loads((sample / "instances.json").read_text(encoding="utf-8")))


def lines(root: Path, name: str) -> list[str]:
    return (root / "ucfTrainTestlist" / name).read_text(encoding="utf-8").splitlines()


def group_of(file: str) -> str:
    return file.split("_")[2]


# -- layout --------------------------------------------------------------------------------------


def test_has_the_layout_of_ucf101(sample: Path) -> None:
    assert {path.name for path in sample.iterdir()} == {
        "UCF-101", "ucfTrainTestlist", "instances.json", "README.txt", "NOTICE.md", "sample.json",
    }  # fmt: skip
    assert "CC-BY-4.0" in (sample / "NOTICE.md").read_text(encoding="utf-8")
    assert lines(sample, "classInd.txt") == ["1 Jump", "2 Spin", "3 Walk"]
    files = {str(path.relative_to(sample / "UCF-101")) for path in sample.rglob("*.avi")}
    assert files == {
        f"{name}/v_{name}_g{group:02d}_c01.avi" for name in ("Jump", "Spin", "Walk") for group in (1, 2, 3)
    }
    for split in ("01", "02", "03"):
        numbered = [line.split(" ") for line in lines(sample, f"trainlist{split}.txt")]
        train, test = [file for file, _ in numbered], lines(sample, f"testlist{split}.txt")
        assert {f"{number} {file.split('/')[0]}" for file, number in numbered} == set(lines(sample, "classInd.txt"))
        assert set(train) | set(test) == files
        assert len(train) + len(test) == len(files)
        assert not {group_of(file) for file in train} & {group_of(file) for file in test}
        assert {file.split("/")[0] for file in test} == {"Jump", "Spin", "Walk"}


def test_splits_test_on_groups_as_ucf101_does() -> None:
    assert [list(groups_tested(25, split)) for split in (1, 2, 3)] == [
        list(range(0, 7)),
        list(range(7, 14)),
        list(range(14, 21)),
    ]
    assert [list(groups_tested(10, split)) for split in (1, 2, 3)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8]]
    for groups in range(3, 100):
        parts = [set(groups_tested(groups, split)) for split in (1, 2, 3)]
        assert not parts[0] & parts[1] | parts[1] & parts[2] | parts[0] & parts[2]
        assert all(part and part < set(range(groups)) for part in parts)


def test_groups_have_two_clips_or_one() -> None:
    assert clips_of(30) == [2] * 15
    for videos in range(3, 301):
        clips = clips_of(videos)
        assert sum(clips) == videos
        assert len(clips) >= 3
        assert 1 <= min(clips) <= max(clips) <= 2


def test_videos_are_as_they_are_listed(sample: Path, instances: dict[str, Any]) -> None:
    assert {video["name"] for video in instances["videos"]} == {
        str(path.relative_to(sample / "UCF-101")) for path in sample.rglob("*.avi")
    }
    lengths = set()
    for video in instances["videos"]:
        with av.open(str(sample / "UCF-101" / video["name"])) as file:
            stream = file.streams.video[0]
            assert len(file.streams) == 1, "a sound track"
            assert (stream.codec_context.name, stream.codec_context.codec_tag) == ("mpeg4", "XVID")
            assert (stream.average_rate, stream.width, stream.height) == (25, video["width"], video["height"])
            frames = list(file.decode(stream))
        assert len(frames) == video["length"] == len(video["file_names"])
        assert [frame.pts for frame in frames] == list(range(len(frames)))
        keys = [i for i, frame in enumerate(frames) if frame.key_frame]
        assert keys[0] == 0
        assert min(np.diff(keys)) >= 12
        assert max(np.diff(keys)) <= 25
        assert video["file_names"][7] == f"{video['name']}/00007"
        lengths.add(len(frames))
    assert min(lengths) >= 40
    assert max(lengths) <= 80
    assert len(lengths) > 3


# -- masks ---------------------------------------------------------------------------------------


def decoded(rle: dict[str, Any]) -> np.ndarray:
    """A mask from COCO's compressed RLE, slowly: runs of 0 and 1 in turn, down the columns. From the third on,
    a run is written as the difference to the one two before it, in pieces of five bits, the lowest first."""
    runs: list[int] = []
    value = bits = 0
    for letter in rle["counts"]:
        piece = ord(letter) - 48
        value |= (piece & 0x1F) << bits
        bits += 5
        if not piece & 0x20:
            value -= (1 << bits) if piece & 0x10 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = bits = 0
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(rle["size"][::-1]).T


def masks_in(instances: dict[str, Any], video: dict[str, Any]) -> np.ndarray:
    """Every instance of a video as the file has it: N x T x H x W."""
    found = [each for each in instances["annotations"] if each["video_id"] == video["id"]]
    nothing = np.zeros((HEIGHT, WIDTH), bool)
    return np.array([[nothing if rle is None else decoded(rle) for rle in each["segmentations"]] for each in found])


def test_instances_are_youtube_vis(instances: dict[str, Any]) -> None:
    assert instances["categories"] == [{"id": 1, "name": "person"}, {"id": 2, "name": "object"}]
    length = {video["id"]: video["length"] for video in instances["videos"]}
    ids = [each["id"] for each in instances["annotations"]]
    assert len(ids) == len(set(ids))
    persons = [each["video_id"] for each in instances["annotations"] if each["category_id"] == 1]
    assert sorted(persons) == sorted(length), "not exactly one actor in each video"
    for each in instances["annotations"]:
        assert (each["iscrowd"], each["width"], each["height"]) == (0, WIDTH, HEIGHT)
        rles, boxes, areas = each["segmentations"], each["bboxes"], each["areas"]
        assert len(rles) == len(boxes) == len(areas) == length[each["video_id"]]
        for rle, box, area in zip(rles, boxes, areas, strict=True):
            assert (rle is None) == (box is None) == (area is None)
            if rle is not None:
                assert rle["size"] == [HEIGHT, WIDTH]
                rows, columns = np.nonzero(decoded(rle))
                assert area == len(rows) > 0
                x, y = columns.min(), rows.min()
                assert box == [x, y, columns.max() + 1 - x, rows.max() + 1 - y]


def test_masks_are_the_film_s_and_never_overlap(sample: Path, instances: dict[str, Any]) -> None:
    for video in instances["videos"][::4]:
        masks_NTHW = masks_in(instances, video)
        assert masks_NTHW.sum(axis=0).max() == 1
        name, group = video["name"].split("/")[0], int(group_of(video["name"])[1:])
        frames, masks = zip(*shoot(film_of(name, group - 1, 0, SEED)), strict=True)
        expected_NTHW = np.stack(masks, axis=1)
        seen = expected_NTHW.any(axis=(1, 2, 3))
        assert np.array_equal(masks_NTHW, expected_NTHW[seen])
        with av.open(str(sample / "UCF-101" / video["name"])) as file:
            played = [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
        for made, read in zip(frames, played, strict=True):
            assert np.abs(made.astype(int) - read).mean() < 8, "another picture than was encoded"


def first_frames(film: Film, frames: int) -> Film:
    layers = tuple(replace(layer, poses=layer.poses[:frames]) for layer in film.layers)
    return Film(film.backdrop, layers, film.camera[:frames])


def alone(layer: Layer, film: Film, colour: bool) -> np.ndarray:
    """One layer over black, T x H x W x 3: in its colours, or white, so that its alpha shows."""
    cut = layer.sprite
    if not colour:
        white = [Image.merge("RGBa", [level.getchannel("a")] * 4) for level in cut.levels]
        cut = Sprite(tuple(white), cut.width, cut.height)
    black = Image.new("RGB", film.backdrop.size)
    shot = Film(black, (replace(layer, sprite=cut),), film.camera)
    return np.stack([frame_HW3 for frame_HW3, _ in shoot(shot)])


def test_frames_and_masks_equal_a_slow_composition() -> None:
    """Layer by layer in floats: out = colour + (1 - alpha) out; the front layer with alpha >= 1/2 owns a pixel."""
    film = first_frames(film_of("Hop", 2, 1, seed=4), 14)
    frames, masks = zip(*shoot(film), strict=True)
    out_THW3 = np.stack([frame for frame, _ in shoot(Film(film.backdrop, (), film.camera))]).astype(float)
    owner_THW = np.full(out_THW3.shape[:3], -1)
    for n, layer in enumerate(film.layers):
        alpha_THW3 = alone(layer, film, colour=False)
        out_THW3 = alone(layer, film, colour=True) + (1 - alpha_THW3 / 255) * out_THW3
        owner_THW[alpha_THW3[..., 0] >= 128] = n
    assert np.abs(np.stack(frames) - out_THW3).max() <= 2
    for n, layer in enumerate(film.layers):
        assert np.array_equal(np.stack(masks)[:, n], owner_THW == n), layer.drawing
    assert len(film.layers) >= 3
    covered = [(alone(layer, film, colour=False)[..., 0] >= 128).sum() for layer in film.layers]
    assert sum(covered) > sum((owner_THW == n).sum() for n in range(len(covered))), "nothing hides anything here"


# -- what tells the class ------------------------------------------------------------------------


@cache
def films() -> dict[tuple[str, int, int], Film]:
    """Four groups of two clips of each of the eight classes, staged but not shot."""
    return {(name, g, c): film_of(name, g, c, 0) for g in range(4) for c in range(2) for name in names_of(8)}


def actor_of(film: Film) -> Layer:
    (actor,) = (layer for layer in film.layers if layer.category == "person")
    return actor


def test_every_class_has_the_same_actors_and_scenes() -> None:
    for group in range(4):
        for clip in range(2):
            of_clip = [films()[name, group, clip] for name in names_of(8)]
            assert len({film.backdrop.tobytes() for film in of_clip}) == 1
            assert len({actor_of(film).drawing for film in of_clip}) == 1
    walks = [films()["Walk", group, clip] for group in range(4) for clip in range(2)]
    assert len({actor_of(film).drawing for film in walks}) == 8, "an actor in two clips of a class"
    assert len({film.backdrop.tobytes() for film in walks}) == 8


def test_fewer_classes_are_the_same_videos() -> None:
    assert set(names_of(4)) < set(names_of(12)) == set(MOTIONS)
    assert names_of(8) == sorted(names_of(8))


def test_another_seed_gives_other_films() -> None:
    films = [film_of("Walk", 0, 0, seed) for seed in (0, 0, 1)]
    first, again, other = (next(shoot(film))[0] for film in films)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
