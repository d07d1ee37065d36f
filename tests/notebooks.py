"""Execute a notebook as Jupyter would, without Jupyter: every code cell in one namespace, its last value displayed.

Run: python tests/notebooks.py jobs/notebook.ipynb FOLDER     executes it in FOLDER and writes the outputs into the file
"""

from __future__ import annotations

import ast
import contextlib
import io
import json
import linecache
import os
import sys
from pathlib import Path
from typing import Any


def execute(notebook: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The notebook with new outputs; returns it with the namespace under "names". Raises what a cell raises."""
    names: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    before = Path.cwd()
    os.chdir(folder)
    try:
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                count += 1
                cell["execution_count"] = count
                cell["outputs"] = list(_outputs("".join(cell["source"]), f"<cell {count}>", count, names))
    finally:
        os.chdir(before)
    return names


def _outputs(source: str, file: str, count: int, names: dict[str, Any]) -> Any:
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    tree = ast.parse(source, file)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, file, "exec"), names)  # noqa: S102  our own notebook
        value = eval(compile(ast.Expression(last.value), file, "eval"), names) if last else None  # noqa: S307
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    if value is not None:
        data: dict[str, Any] = {"text/plain": str(value).splitlines(keepends=True)}
        if hasattr(value, "_repr_html_"):
            data["text/html"] = str(value._repr_html_()).splitlines(keepends=True)
        yield {"output_type": "execute_result", "execution_count": count, "metadata": {}, "data": data}


if __name__ == "__main__":
    path = Path(sys.argv[1]).absolute()
    content = json.loads(path.read_text())
    execute(content, Path(sys.argv[2]))
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
