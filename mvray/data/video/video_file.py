"""Cheap checks of a video file: whether it is complete, and what it is where it is no video."""

from __future__ import annotations

import os
from typing import IO

from mvray.data.decoding import Unreadable, is_picture, looks_like

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"
_BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot")
_OTHER_STARTS = (_EBML, b"FLV", b"0&\xb2u", b"\x00\x00\x01", b"OggS")
_HEAD_BYTES = 4096


def check_whole(file: IO[bytes]) -> None:
    """Raises Unreadable where the file is empty, or ends before its own header says (AVI, MP4, MOV, Matroska).

    A few bytes are read. Other containers do not say how long they are.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(256)
    if not head:
        raise Unreadable("empty (0 bytes)")
    stated = size
    if head.startswith(b"RIFF") and head[8:12] == b"AVI ":
        length = int.from_bytes(head[4:8], "little")
        stated = 8 + length if length != 0xFFFFFFFF else size
    elif head[4:8] in _BOXES:
        stated = _boxes_end(file, size)
    elif head.startswith(_EBML):
        stated = _segment_end(head) or size
    if stated > size + 1:  # one byte of padding may be missing at the end
        raise Unreadable(f"truncated ({size} bytes, but its header says {stated})")


def why_not(file: IO[bytes]) -> str | None:
    """What a file is that cannot be opened as a video; None where it looks like one."""
    head = file.read(_HEAD_BYTES)
    stream = b"GG" in (head[0:189:188], head[4:197:192])  # MPEG-TS, each packet with or without its time before it
    if stream or head[8:12] == b"AVI " or head[4:8] in _BOXES or head.startswith(_OTHER_STARTS):
        return None
    return f"not a video: {'a picture' if is_picture(head) else looks_like(head)}"


def _boxes_end(file: IO[bytes], size: int) -> int:
    """Where the last box of an MP4 or MOV file ends. Raises Unreadable where its index or its media data is missing."""
    at, names = 0, set()
    while at + 8 <= size:
        file.seek(at)
        header = file.read(16)
        names.add(header[4:8])
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0: until the end; others are broken
            break
        at += length
    if b"moov" not in names:
        raise Unreadable(f"truncated ({size} bytes of an MP4 or MOV file, without its index, moov)")
    if b"mdat" not in names:
        raise Unreadable("has no frames (an MP4 or MOV file with an index, moov, but without media data, mdat)")
    return at


def _segment_end(head: bytes) -> int | None:
    """Where the segment of a Matroska or WebM file ends; None where it does not say."""
    at = len(_EBML)
    for expected in (None, _SEGMENT):
        if expected is not None:
            if head[at : at + 4] != expected:
                return None
            at += 4
        if at >= len(head) or not head[at]:
            return None
        width = 9 - head[at].bit_length()
        length = int.from_bytes(head[at : at + width], "big") - (1 << (7 * width))
        if length == (1 << (7 * width)) - 1:  # all ones: not known
            return None
        at += width + length
    return at
