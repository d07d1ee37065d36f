"""mvray look | group | find | apply: a trained step on anyone's pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    look = commands.add_parser("look", help="show where a trained step looks on any pictures or videos")
    look.add_argument("step", metavar="STEP_PATH", help="folder of a finished Train step")
    look.add_argument("files", type=Path, nargs="+", metavar="FILES", help="pictures or videos, or folders of them")
    look.add_argument("--out", type=Path, required=True, metavar="DIR")
    look.add_argument("--layer", default="", help="name of the layer (default: the method's)")
    _job(look)
    look.set_defaults(command=_look)

    group = commands.add_parser("group", help="sort any pictures into groups of the same character")
    group.add_argument("step", metavar="MODEL", help="folder of a finished Train step")
    group.add_argument("folder", type=Path, metavar="FOLDER", help="faces or pictures, in any folders below it")
    group.add_argument("--out", type=Path, required=True, metavar="DIR")
    group.add_argument("--layer", default="", help="the layer that is read (default: embedding, fc1 or the last)")
    group.add_argument("--per-folder", action="store_true", help="each folder in FOLDER by itself, as a book")
    group.add_argument("--min-size", type=int, metavar="N", help="least pictures of a group (default: 10, or fewer)")
    _job(group)
    group.set_defaults(command=_group)

    find = commands.add_parser("find", help="find the pictures that are most like an example")
    find.add_argument("step", metavar="MODEL", help="folder of a finished Train step")
    find.add_argument("examples", type=Path, nargs="+", metavar="EXAMPLE", help="one picture or several of the same")
    find.add_argument("folder", type=Path, metavar="FOLDER", help="where to look, in any folders below it")
    find.add_argument("--out", type=Path, metavar="DIR", help="write a table and a contact sheet too")
    find.add_argument("--most", type=int, metavar="N", help="at most so many (default: 20)")
    find.add_argument("--within", type=float, metavar="DISTANCE", help="none farther than this, 0 to 2")
    find.add_argument("--layer", default="", help="the layer that is read (default: embedding, fc1 or the last)")
    _job(find)
    find.set_defaults(command=_find)

    apply = commands.add_parser("apply", help="make class maps of any pictures by a step that segments")
    apply.add_argument("step", metavar="MODEL", help="folder of a finished Train step")
    apply.add_argument("files", type=Path, nargs="+", metavar="PICTURES", help="pictures, or folders of them")
    apply.add_argument("--out", type=Path, required=True, metavar="DIR")
    apply.add_argument("--crf", action="store_true", help="sharpen them by the fully connected CRF")
    _job(apply)
    apply.set_defaults(command=_apply)


def _job(parser: argparse.ArgumentParser) -> None:
    text = "the job file, where the method is your own and lies elsewhere than below this folder"
    parser.add_argument("--job", type=Path, metavar="FILE", help=text)


def _load_code(options: argparse.Namespace) -> None:
    if options.job is not None:
        from mvray.experiment import job_file

        job_file.load(options.job)


def _look(options: argparse.Namespace) -> int:
    from mvray.inference import look

    _load_code(options)
    sheet = look(options.step, options.files, options.out, options.layer)
    print(f"Wrote {sheet}.")
    return 0


def _apply(options: argparse.Namespace) -> int:
    from mvray.inference import apply

    _load_code(options)
    for line in apply(options.step, options.files, options.out, options.crf):
        print(line)
    print(f"Wrote {options.out / 'sheet.png'}.")
    return 0


def _group(options: argparse.Namespace) -> int:
    from mvray.inference import group

    _load_code(options)
    for line in group(options.step, options.folder, options.out, options.layer, options.per_folder, options.min_size):
        print(line)
    print(f"Wrote {options.out / 'index.html'}.")
    return 0


def _find(options: argparse.Namespace) -> int:
    from mvray.inference import find

    _load_code(options)
    limits = {"most": options.most, "within": options.within}
    for line in find(options.step, options.examples, options.folder, options.out, layer=options.layer, **limits):
        print(line)
    if options.out:
        print(f"Wrote {options.out / 'index.html'}.")
    return 0
