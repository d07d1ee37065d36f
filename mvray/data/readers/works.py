"""Which works of a Manga109 root take part: series, authors, and works that training never sees."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from typing import TYPE_CHECKING

from mvray.errors import DataError, SettingError
from mvray.storage import Storage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

VOLUMES = ("all", "first", "none")


def series_of(title: str) -> str:
    """LoveHina_vol14 -> LoveHina."""
    return re.sub(r"_vol\d+$", "", title)


def by_volumes(titles: Iterable[str], volumes: str) -> list[str]:
    """``titles`` without the volumes of series that ``volumes`` leaves out: it keeps "all", the "first" or "none"."""
    series: dict[str, list[str]] = {}
    for title in sorted(titles):
        series.setdefault(series_of(title), []).append(title)
    kept = {"all": slice(None), "first": slice(1), "none": slice(0)}[volumes]
    return [
        title
        for name, several in series.items()
        for title in (several if several == [name] else several[kept])
    ]  # fmt: skip


def check_known(setting: str, asked: Iterable[str], titles: Collection[str], place: str) -> None:
    """Raises DataError where a setting names works that are not there."""
    if unknown := sorted(set(asked) - set(titles)):
        raise DataError(
            f"source.{setting} names {', '.join(unknown)}, which {place} does not have. "
            f"It has: {', '.join(sorted(titles))}."
        )


def authors_of(titles: Sequence[str], path: str) -> dict[str, str]:
    """The author of each title, by the CSV file ``path``. Raises DataError where one has none."""
    table = _author_table(path)
    if missing := [title for title in titles if title not in table]:
        raise DataError(
            f"{path} has no row for {len(missing)} works ({', '.join(missing[:5])} ...); expected one per "
            "work. Add them, or choose works with source.works."
        )
    return {title: table[title] for title in titles}


def _author_table(path: str) -> dict[str, str]:
    folder, slash, name = path.rpartition("/")
    try:
        text = Storage(f"{folder}{slash}" or ".").read(name).decode("utf-8-sig")
    except (FileNotFoundError, UnicodeDecodeError) as error:
        raise DataError(
            f"source.authors is {path!r}, which cannot be read ({error}); expected a CSV file in UTF-8 with the "
            "columns title and author."
        ) from error
    table = csv.DictReader(io.StringIO(text))
    if not {"title", "author"} <= set(table.fieldnames or ()):
        raise DataError(f"{path} has the columns {', '.join(table.fieldnames or ())}; expected title and author.")
    return {row["title"].strip(): row["author"].strip() for row in table}


def in_drawn_order(names: Iterable[str], seed: int) -> list[str]:
    """``names`` by a hash of each and the seed: other names do not change which of two comes first."""
    return sorted(names, key=lambda name: (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), name))


def check_asked(asked: float, kind: str) -> float:
    """The setting source.unseen. Raises SettingError where it is neither a share nor a number."""
    asked = float(asked)
    if not asked >= 0 or (asked > 1 and asked % 1):
        raise SettingError(f"source.unseen is {asked:g}; expected a share from 0 to 1 or a number of {kind}.")
    return asked


def how_many(asked: float, there: int, kind: str) -> int:
    """``asked`` as a number: a share of what is ``there`` up to 1, a number above. Raises DataError for too many."""
    count = int(asked * there + 0.5) if asked <= 1 else int(asked)
    if count > there:
        raise DataError(
            f"Found {there} {kind}; source.unseen asks for {count} that training never sees. "
            "Ask for fewer, or for a share: --set source.unseen=0.2."
        )
    return count


def set_apart(titles: Sequence[str], asked: float, seed: int) -> list[str]:
    """The works that training never sees: ``asked`` of them, whole series, in drawn order.

    A series that is larger than what is left to draw is passed over.
    """
    left = how_many(asked, len(titles), "works")
    found: list[str] = []
    for series in in_drawn_order({series_of(title) for title in titles}, seed):
        members = [title for title in sorted(titles) if series_of(title) == series]
        if len(members) <= left:
            found += members
            left -= len(members)
    return found


def one_per_author(titles: Iterable[str], authors: dict[str, str], named: Collection[str], seed: int) -> list[str]:
    """Of ``titles``, those that are ``named``, and the first in drawn order of each author who has none there."""
    taken = {authors[title] for title in named}
    found = [title for title in titles if title in named]
    for title in in_drawn_order(set(titles) - set(named), seed):
        if authors[title] not in taken:
            taken.add(authors[title])
            found.append(title)
    return sorted(found)
