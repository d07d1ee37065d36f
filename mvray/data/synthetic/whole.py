"""A sample takes its place in the file system as a whole, or not at all; pieces of it are made by processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any, TypeVar

from mvray.errors import DataError, SettingError

RECORD = "sample.json"
"""The settings of a sample, and size and checksum of every file."""
MOST_PROCESSES = 8

Work = TypeVar("Work")
Result = TypeVar("Result")


def check(seed: int, processes: int | None) -> None:
    """Raises SettingError for what no sample takes."""
    if seed < 0:
        raise SettingError(f"seed is {seed}; expected 0 or more.")
    if processes is not None and processes < 1:
        raise SettingError(f"processes is {processes}; expected 1 or more.")


def is_whole(out: Path, settings: dict[str, Any]) -> bool:
    """Whether ``out`` holds a sample with these settings, every file as it was written."""
    record = _record(out)
    files = record.pop("files", {})
    return record == settings and all((out / name).is_file() and _checksum(out / name) == files[name] for name in files)


@contextmanager
def replacing(out: Path, settings: dict[str, Any]) -> Iterator[Path]:
    """A new folder beside ``out`` that gets its record and takes its place at the end, and is removed if there
    is an error. What a killed process left there is removed first.

    ``settings["sample"]`` is the kind of sample. Raises DataError where ``out`` holds something else.
    """
    _check_free(out, settings["sample"])
    part = out.with_name(f".{out.name}.mvray-part")
    old = out.with_name(f".{out.name}.mvray-old")
    try:
        for left in (part, old):
            if left.exists():
                shutil.rmtree(left)
        part.mkdir(parents=True)
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error}. Name a place where you may write.") from error
    try:
        yield part
        files = {str(path.relative_to(part)): _checksum(path) for path in sorted(part.rglob("*")) if path.is_file()}
        (part / RECORD).write_text(json.dumps(settings | {"files": files}, indent=1) + "\n", encoding="utf-8")
        if out.exists():
            out.rename(old)
        part.rename(out)
    finally:
        for left in (part, old):
            shutil.rmtree(left, ignore_errors=True)


def _check_free(out: Path, kind: str) -> None:
    """Refuse a place where something else would be lost."""
    if out.is_dir():
        if not any(out.iterdir()) or _record(out).get("sample") == kind:
            return
    elif not out.exists():
        return
    what = "a folder with something else in it" if out.is_dir() else "a file"
    raise DataError(
        f"{out} is {what}; expected a new or empty folder, or sample {kind} to replace. Name another place."
    )


def _record(out: Path) -> dict[str, Any]:
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _checksum(path: Path) -> list[int]:
    """Size and CRC-32."""
    content = path.read_bytes()
    return [len(content), zlib.crc32(content)]


def produce(
    make: Callable[[Path, Work], Result], part: Path, works: Sequence[Work], processes: int | None
) -> Iterator[tuple[Work, Result]]:
    """Each piece of work with what ``make(part, work)`` returned, as they are finished.

    ``processes`` None means one per core, up to 8; with 1 all is made in this process.
    """
    processes = min(processes or min(os.cpu_count() or 1, MOST_PROCESSES), len(works))
    if processes == 1:
        yield from ((work, make(part, work)) for work in works)
        return
    pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_start_worker)
    try:
        waiting: dict[Future[Result], Work] = {pool.submit(make, part, work): work for work in works}
        for future in as_completed(waiting):
            yield waiting[future], future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and end with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
