"""mvray sample: small data sets."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    sample = commands.add_parser("sample", help="compose a small data set out of real drawings")
    kinds = sample.add_subparsers(required=True, metavar="KIND")
    comics = kinds.add_parser("comics", help="comic books in Manga109's layout")
    comics.add_argument("out", type=Path, metavar="OUT")
    comics.add_argument("--titles", type=int, default=14)
    comics.add_argument("--pages", type=int, default=40, help="pages of each title")
    comics.add_argument("--seed", type=int, default=0)
    comics.set_defaults(command=_sample_comics)
    actions = kinds.add_parser("actions", help="videos of twelve motions in UCF101's layout, with instance masks")
    actions.add_argument("out", type=Path, metavar="OUT")
    actions.add_argument("--classes", type=int, default=8, help="motions, at most 12")
    actions.add_argument("--videos", type=int, default=30, help="videos of each class")
    actions.add_argument("--seed", type=int, default=0)
    actions.set_defaults(command=_sample_actions)
    faces = kinds.add_parser("faces", help="faces of drawn characters in the AnimeFace Character Dataset's layout")
    faces.add_argument("out", type=Path, metavar="OUT")
    faces.add_argument("--characters", type=int, default=60)
    faces.add_argument("--pictures", type=int, default=20, help="pictures of each character, of some only half as many")
    faces.add_argument("--seed", type=int, default=0)
    faces.set_defaults(command=_sample_faces)
    segments = kinds.add_parser("segments", help="pictures with class maps in PASCAL VOC 2012's layout")
    segments.add_argument("out", type=Path, metavar="OUT")
    segments.add_argument("--pictures", type=int, default=300, help="pictures in all, a fifth of them for val")
    segments.add_argument("--size", type=int, default=160, help="pixels of the longer side")
    segments.add_argument("--seed", type=int, default=0)
    segments.set_defaults(command=_sample_segments)


def _sample_comics(options: argparse.Namespace) -> int:
    from mvray.data.synthetic import comics

    comics.compose(options.out, titles=options.titles, pages=options.pages, seed=options.seed)
    print(f"Wrote {options.titles} titles of {options.pages} pages to {options.out}.")
    return 0


def _sample_actions(options: argparse.Namespace) -> int:
    from mvray.data.synthetic import actions

    actions.compose(options.out, classes=options.classes, videos=options.videos, seed=options.seed)
    print(f"Wrote {options.classes} classes of {options.videos} videos to {options.out}.")
    return 0


def _sample_faces(options: argparse.Namespace) -> int:
    from mvray.data.synthetic import faces

    faces.compose(options.out, characters=options.characters, pictures=options.pictures, seed=options.seed)
    print(f"Wrote faces of {options.characters} characters to {options.out}.")
    return 0


def _sample_segments(options: argparse.Namespace) -> int:
    from mvray.data.synthetic import segments

    segments.compose(
        options.out, pictures=options.pictures, size=options.size, seed=options.seed, progress=_said_once()
    )
    print(f"Wrote {options.pictures} pictures with class maps to {options.out}.")
    return 0


def _said_once(after_s: float = 10.0) -> Callable[[int, int], None]:
    """For ``progress``: one line, once composing has taken so long; what is left goes by the pace since the first."""
    started = time.monotonic()
    first: list[tuple[float, int]] = []
    said = False

    def say(done: int, total: int) -> None:
        nonlocal said
        now = time.monotonic()
        first.append((now, done))
        if said or now - started < after_s or done == first[0][1] or done == total:
            return
        said = True
        left_s = (now - first[0][0]) / (done - first[0][1]) * (total - done)
        print(f"{done} of {total} pictures in {now - started:.0f} s; about {left_s:.0f} s are left.", flush=True)

    return say
