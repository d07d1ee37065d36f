"""`mvray sample actions`: little cartoon videos in the layout of UCF101, with exact instance masks.

A class is a motion. Its clips have the same actors and scenes as those of every other class, so that
only who looks at the motion can tell the class. A group is a kind of scene; no actor is in two groups.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from mvray.data.synthetic.avi import write_avi
from mvray.data.synthetic.drawings import NOTICE
from mvray.data.synthetic.film import HEIGHT, WIDTH, shoot
from mvray.data.synthetic.motions import MOTIONS
from mvray.data.synthetic.staging import ACTOR, CLIPS_PER_GROUP, MOST_ACTORS, THING, film_of
from mvray.data.synthetic.whole import check, is_whole, produce, replacing
from mvray.errors import SettingError

VERSION = 2
"""Grows when the same settings give other videos."""
FEWEST_GROUPS = 3
SPLITS = (1, 2, 3)
VIDEOS, LISTS, INSTANCES = "UCF-101", "ucfTrainTestlist", "instances.json"
CATEGORIES = ({"id": 1, "name": ACTOR}, {"id": 2, "name": THING})
ABOUT = """Sample actions, composed by mvray out of real drawings (licences: NOTICE.md, which stays with them).

UCF-101/CLASS/v_CLASS_gXX_cYY.avi   160 x 120, 25 frames a second; gXX is a kind of scene, cYY an actor
ucfTrainTestlist/                   classInd.txt, trainlist01..03.txt, testlist01..03.txt, as in UCF101
instances.json                      exact masks of the actor (person) and the things in view (object), as in YouTube-VIS
sample.json                         the settings, and size and checksum of every file
"""


@dataclass(frozen=True)
class Work:
    """The clips of one group of one class."""

    name: str
    group: int
    clips: int
    seed: int


def compose(
    out: Path,
    classes: int = 8,
    videos: int = 30,
    seed: int = 0,
    processes: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Compose ``videos`` videos of each of ``classes`` motions under ``out``, in UCF101's layout.

    The same settings give the same bytes, with any number of ``processes`` (None: one per core, up to 8).
    ``progress`` is told videos done and videos in all. Everything is written to a folder beside ``out``,
    which then takes its name: what is at ``out`` is always whole. A whole sample with the same settings
    is left as it is. Raises SettingError for numbers that do not fit and DataError where ``out`` holds
    something else.
    """
    _check(classes, videos, seed, processes)
    out = out.resolve()
    settings = {"sample": "actions", "version": VERSION, "classes": classes, "videos": videos, "seed": seed}
    if is_whole(out, settings):
        return
    clips = clips_of(videos)
    works = [Work(name, group, clips[group], seed) for group in range(len(clips)) for name in names_of(classes)]
    with replacing(out, settings) as part:
        filmed: dict[Work, list[Video]] = {}
        for work, clips_of_work in produce(_film, part, works, processes):
            filmed[work] = clips_of_work
            if progress:
                progress(sum(len(clips_filmed) for clips_filmed in filmed.values()), classes * videos)
        in_order = sorted(filmed, key=lambda work: (work.name, work.group))
        write_lists(part / LISTS, names_of(classes), clips)
        _write_instances(part / INSTANCES, [video for work in in_order for video in filmed[work]])
        (part / "README.txt").write_text(ABOUT, encoding="utf-8")
        shutil.copyfile(NOTICE, part / "NOTICE.md")


def _check(classes: int, videos: int, seed: int, processes: int | None) -> None:
    if not 2 <= classes <= len(MOTIONS):
        raise SettingError(
            f"classes is {classes}; expected 2 to {len(MOTIONS)}, the number of motions ({', '.join(MOTIONS)})."
        )
    if not FEWEST_GROUPS <= videos <= MOST_ACTORS:
        raise SettingError(
            f"videos is {videos}; expected {FEWEST_GROUPS} to {MOST_ACTORS} of each class, "
            f"{CLIPS_PER_GROUP} to a group."
        )
    check(seed, processes)


def names_of(classes: int) -> list[str]:
    """The class names of a sample, in the order of the alphabet, as UCF101 numbers them."""
    return sorted(list(MOTIONS)[:classes])


def clips_of(videos: int) -> list[int]:
    """How many clips each group has: two or one, and there are at least three groups."""
    groups = max(FEWEST_GROUPS, -(-videos // CLIPS_PER_GROUP))
    return [videos // groups + (group < videos % groups) for group in range(groups)]


def file_of(name: str, group: int, clip: int) -> str:
    """A video's path below UCF-101/, group and clip counted from 0."""
    return f"{name}/v_{name}_g{group + 1:02d}_c{clip + 1:02d}.avi"


def groups_tested(groups: int, split: int) -> range:
    """The groups (from 0) that split 1, 2 or 3 tests on: 3 of 10, as 7 of 25 in UCF101, other ones in each."""
    share = max(1, groups * 3 // 10)
    return range((split - 1) * share, split * share)


def write_lists(folder: Path, names: Sequence[str], clips: Sequence[int]) -> None:
    """classInd.txt, and for each split trainlist0S.txt (with class numbers) and testlist0S.txt (without)."""
    folder.mkdir()
    _write_lines(folder / "classInd.txt", [f"{number} {name}" for number, name in enumerate(names, 1)])
    every = [
        (number, group, file_of(name, group, clip))
        for number, name in enumerate(names, 1)
        for group, many in enumerate(clips)
        for clip in range(many)
    ]
    for split in SPLITS:
        test = groups_tested(len(clips), split)
        _write_lines(folder / f"testlist{split:02d}.txt", [file for _, group, file in every if group in test])
        train = [f"{file} {number}" for number, group, file in every if group not in test]
        _write_lines(folder / f"trainlist{split:02d}.txt", train)


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


# -- films and their masks -----------------------------------------------------------------------


@dataclass(frozen=True)
class Video:
    """A video that is written: ``tracks`` are its annotations without ids, as YouTube-VIS has them."""

    file: str
    frames: int
    tracks: tuple[dict[str, Any], ...]


def _film(part: Path, work: Work) -> list[Video]:
    """Write the clips of a group."""
    (part / VIDEOS / work.name).mkdir(parents=True, exist_ok=True)
    return [_filmed(part, work, clip) for clip in range(work.clips)]


def _filmed(part: Path, work: Work, clip: int) -> Video:
    film = film_of(work.name, work.group, clip, work.seed)
    file = file_of(work.name, work.group, clip)
    frames, masks = zip(*shoot(film), strict=True)
    write_avi(part / VIDEOS / file, frames, (WIDTH, HEIGHT), keyframe_interval=12 + (work.group * 5 + clip) % 14)
    masks_TNHW = np.stack(masks)
    tracks = [_track(layer.category, masks_TNHW[:, n]) for n, layer in enumerate(film.layers) if masks_TNHW[:, n].any()]
    return Video(file, len(frames), tuple(tracks))


def _track(category: str, masks_THW: np.ndarray) -> dict[str, Any]:
    """One instance through a video: RLE, box and area in each frame, None where nothing of it is visible."""
    from pycocotools import mask as coco

    rles = coco.encode(np.asfortranarray(masks_THW.transpose(1, 2, 0), dtype=np.uint8))
    areas = [int(area) for area in coco.area(rles)]
    boxes = [[float(side) for side in box] for box in coco.toBbox(rles)]
    texts = [{"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")} for rle in rles]
    return {
        "category_id": next(known["id"] for known in CATEGORIES if known["name"] == category),
        "iscrowd": 0,
        "width": masks_THW.shape[2],
        "height": masks_THW.shape[1],
        "segmentations": [text if area else None for text, area in zip(texts, areas, strict=True)],
        "bboxes": [box if area else None for box, area in zip(boxes, areas, strict=True)],
        "areas": [area or None for area in areas],
    }


def _write_instances(path: Path, videos: Sequence[Video]) -> None:
    """The masks of all videos as one JSON file in the layout of YouTube-VIS."""
    listed = [
        {
            "id": number,
            "name": video.file,
            "width": WIDTH,
            "height": HEIGHT,
            "length": video.frames,
            "file_names": [f"{video.file}/{frame:05d}" for frame in range(video.frames)],
        }
        for number, video in enumerate(videos, 1)
    ]
    ids = count(1)
    annotations = [
        {"id": next(ids), "video_id": number, **track}
        for number, video in enumerate(videos, 1)
        for track in video.tracks
    ]
    info = {"description": "mvray sample actions: exact masks of what is visible in each frame", "version": VERSION}
    whole = {"info": info, "videos": listed, "categories": CATEGORIES, "annotations": annotations}
    path.write_text(json.dumps(whole, separators=(",", ":")) + "\n", encoding="utf-8")
