"""The frame of every page that mvray writes: its head, and the colours and letters that they share."""

from __future__ import annotations

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --faint: #656d76; --line: #d8dee4; --ground: #fff; --card: #f6f8fa;
  --paper: #a8480f; --good: #1a7f37; --open: #9a6700; --mark: #1f6fb4 }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9198a1; --line: #3d444d; --ground: #0d1117;
  --card: #161b22; --paper: #f0a070; --good: #4ac26b; --open: #d4a72c; --mark: #58a6ff } }
body { margin: 0; background: var(--ground); color: var(--ink); font: 16px/1.5 system-ui, sans-serif }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.7rem; margin: 0; overflow-wrap: anywhere }
@media print { figure { break-inside: avoid } }
"""


def web_page(title: str, body: str, style: str) -> str:
    """A page that needs nothing beside it; ``style`` is CSS that comes after what all pages share."""
    return _PAGE.format(title=escape(title), style=_STYLE + style, body=body)
