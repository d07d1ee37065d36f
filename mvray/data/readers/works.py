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


def check_known(setting: str, named: Iterable[str], titles: Collection[str], place: str) -> None:
    """Raises DataError where a setting names works that are not there."""
    if unknown := sorted(set(named) - set(titles)):
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


def shuffled(names: Iterable[str], seed: int) -> list[str]:
    """``names`` by a hash of each and the seed: other names do not change which of two comes first."""
    return sorted(names, key=lambda name: (hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), name))


def check_unseen(amount: float, kind: str) -> float:
    """The setting source.unseen. Raises SettingError where it is neither a share nor a number."""
    amount = float(amount)
    if not amount >= 0 or (amount > 1 and amount % 1):
        raise SettingError(f"source.unseen is {amount:g}; expected a share from 0 to 1 or a number of {kind}.")
    return amount


def unseen_count(amount: float, count_of_all: int, kind: str) -> int:
    """``amount`` as a number: a share of ``count_of_all`` up to 1, a number above. Raises DataError for too many."""
    count = int(amount * count_of_all + 0.5) if amount <= 1 else int(amount)
    if count > count_of_all:
        raise DataError(
            f"Found {count_of_all} {kind}; source.unseen asks for {count} that training never sees. "
            "Ask for fewer, or for a share: --set source.unseen=0.2."
        )
    return count


def set_apart(titles: Sequence[str], amount: float, seed: int) -> list[str]:
    """The works that training never sees: ``amount`` of them, whole series, in drawn order.

    A series that is larger than what is left to draw is passed over.
    """
    left = unseen_count(amount, len(titles), "works")
    apart: list[str] = []
    for series in shuffled({series_of(title) for title in titles}, seed):
        members = [title for title in sorted(titles) if series_of(title) == series]
        if len(members) <= left:
            apart += members
            left -= len(members)
    return apart


def one_per_author(titles: Iterable[str], authors: dict[str, str], named: Collection[str], seed: int) -> list[str]:
    """The ``titles`` that are ``named``, and one title, drawn by ``seed``, of each author without a named one."""
    taken = {authors[title] for title in named}
    kept = [title for title in titles if title in named]
    for title in shuffled(set(titles) - set(named), seed):
        if authors[title] not in taken:
            taken.add(authors[title])
            kept.append(title)
    return sorted(kept)
