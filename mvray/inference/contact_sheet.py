"""Contact sheets: many small pictures in parts, as one page that needs nothing beside it."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from mvray.inference.model import Thumbnail, printable
from mvray.reports import web_page

AT_ONCE = 48
"""Pictures of a part that are shown at once; the rest opens at a click."""


@dataclass(frozen=True)
class Shot:
    """A picture: its thumbnail, its name (shown when pointed at), a caption, and the file that a click opens."""

    thumbnail: Thumbnail
    name: str
    file: Path
    caption: str = ""


@dataclass(frozen=True)
class Part:
    """Pictures under a title, in a chapter, whose name stands above its first part. ``faint`` parts are told apart
    from the others; ``large`` shots are those that the page is about; ``folded``: a long part shows its first
    AT_ONCE."""

    title: str
    shots: Sequence[Shot] = ()
    note: str = ""
    chapter: str = ""
    faint: bool = False
    large: bool = False
    folded: bool = True


def page(title: str, lines: Sequence[str], parts: Sequence[Part], place: Path, overview: bool = False) -> str:
    """The page, to be written in the folder ``place``: links to the files are relative to it.

    With ``overview``, the first picture of each part that is not faint leads there.
    """
    body = [f"<header><h1>{escape(title)}</h1>", *(f"<p>{escape(line)}</p>" for line in lines), "</header>"]
    body += [_overview(parts)] if overview else []
    before = ""
    for at, part in enumerate(parts):
        body += [f"<h2>{escape(part.chapter)}</h2>"] if part.chapter != before else []
        body.append(_part(at, part, place))
        before = part.chapter
    return web_page(title, "\n".join(body), _STYLE)


def _overview(parts: Sequence[Part]) -> str:
    heads = "".join(_head(at, part) for at, part in enumerate(parts) if part.shots and not part.faint)
    return f'<nav class="overview">{heads}</nav>' if heads else ""


def _head(at: int, part: Part) -> str:
    name = escape(f"{part.chapter} {part.title}".strip())
    return f'<a href="#part-{at}" title="{name}">{_image(part.shots[0])}<span>{len(part.shots):,}</span></a>'


def _part(at: int, part: Part, place: Path) -> str:
    kinds = " ".join(kind for kind in ("faint", "large") if getattr(part, kind))
    head = f"<h3>{escape(part.title)} <small>{escape(part.note)}</small></h3>" if part.title else ""
    shots = [_shot(shot, place) for shot in part.shots]
    first = len(shots) if not part.folded or len(shots) <= AT_ONCE + AT_ONCE // 4 else AT_ONCE
    more = ""
    if rest := shots[first:]:
        more = f'<details><summary>{len(rest):,} more</summary><div class="shots">{"".join(rest)}</div></details>'
    return (
        f'<section class="{kinds}" id="part-{at}">{head}'
        f'<div class="shots">{"".join(shots[:first])}</div>{more}</section>'
    )


def _shot(shot: Shot, place: Path) -> str:
    relative = os.path.relpath(os.path.realpath(shot.file), os.path.realpath(place))
    link = quote(os.fsencode(relative))
    caption = f"<figcaption>{escape(shot.caption)}</figcaption>" if shot.caption else ""
    return f'<figure><a href="{link}" title="{escape(printable(shot.name))}">{_image(shot)}</a>{caption}</figure>'


def _image(shot: Shot) -> str:
    small = shot.thumbnail
    data = base64.b64encode(small.data).decode()
    size = f'width="{small.width}" height="{small.height}"'
    return f'<img loading="lazy" decoding="async" {size} alt="" src="data:image/jpeg;base64,{data}">'


_STYLE = """
* { box-sizing: border-box }
main { max-width: 84rem }
h1 { margin: 0 0 .3rem; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 3rem 0 0; overflow-wrap: anywhere }
h3 { font-size: 1rem; margin: 0 0 .6rem } h3 small { font-weight: 400; color: var(--faint); margin-left: .4rem }
header p { margin: 0; color: var(--faint); font-size: .875rem; overflow-wrap: anywhere }
header p:first-of-type { color: var(--ink); font-size: 1rem }
section { border-top: 1px solid var(--line); padding: 1rem 0 1.4rem; margin-top: .8rem }
.shots { display: flex; flex-wrap: wrap; gap: 6px; align-items: flex-start }
figure { margin: 0; width: min-content } figure a { display: block }
img { display: block; height: 96px; width: auto; max-width: 192px; object-fit: cover; border-radius: 4px;
  background: #fff }
a:hover img, a:focus-visible img { outline: 3px solid var(--mark); outline-offset: 1px }
figcaption { font-size: .75rem; color: var(--faint); font-variant-numeric: tabular-nums; padding: .15rem 0 .3rem;
  overflow-wrap: anywhere; min-width: 4.5rem }
.large img { height: 128px; max-width: 256px }
.faint img { opacity: .8; height: 72px } .faint a:hover img { opacity: 1 }
.overview { display: flex; flex-wrap: wrap; gap: 8px; background: var(--card); border-radius: 8px; padding: .8rem;
  margin: 1.2rem 0 }
.overview a { position: relative; display: block } .overview img { height: 64px; max-width: 96px }
.overview span { position: absolute; right: 3px; bottom: 3px; background: #000b; color: #fff; border-radius: 4px;
  font-size: .7rem; line-height: 1.2rem; padding: 0 .35rem; font-variant-numeric: tabular-nums }
details { margin-top: .6rem } summary { color: var(--mark); cursor: pointer; margin-bottom: .6rem; font-size: .875rem }
"""
