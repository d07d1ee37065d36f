"""A folder per class, with any videos in it: the layout of class_folders.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from mvray.data.readers.base import VideoSource as VideoSource
from mvray.data.readers.class_folders import ClassFolders

if TYPE_CHECKING:
    from mvray.storage import Entry

SUFFIXES = (
    *(".avi", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".mkv", ".webm", ".ogv", ".flv", ".wmv", ".asf"),
    *(".mpg", ".mpeg", ".vob", ".ts", ".mts", ".m2ts"),
)


@dataclass(frozen=True, kw_only=True)
class Videos(ClassFolders, VideoSource):
    """Videos in a folder per class. ``read`` gives the frame in the middle.

    ``frames`` in the index is what each file's header says, or the number of its packets where it does
    not (Matroska, WebM, MPEG, ASF, FLV, Ogg); `VideoSource.open` counts exactly. Sound is not read. An
    animated GIF is a picture here (folder.py), not a video.
    """

    kind: ClassVar[str] = "videos"
    file_noun: ClassVar[str] = "video"
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def counted(self, entries: Sequence[Entry]) -> tuple[Mapping[str, int], Mapping[str, str]]:
        return self.frame_counts(entries)
