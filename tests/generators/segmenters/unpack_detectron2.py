"""Put Detectron2's Python code into a folder of its own, for the tests and the benchmark: no way to install it.

Detectron2 itself is not on the package registry. The sdist pb1-detectron2 is its original Python code of
version 0.6 without the C++ sources: it cannot be built, but Mask R-CNN runs without its compiled half,
``detectron2._C``, on torchvision's operators. Two lines make it importable today: an empty ``_C``, and the
name that Pillow has for LINEAR now. What it needs beyond mvray's own environment (requirements.lock) lies
in the same folder, which only conftest.py here and bench_masks.py put on sys.path.

Run: .venv/bin/python tests/generators/segmenters/unpack_detectron2.py .venv/detectron2
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

HERE = Path(__file__).parent


def unpack(target: Path) -> None:
    """Make ``target``; it appears whole or not at all. Raises CalledProcessError where the registry is not reached."""
    part = target.with_name(target.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    bin_ = Path(sys.executable).parent
    install = [bin_ / "uv", "pip", "install", "--quiet", "--python", sys.executable, "--no-deps", "--require-hashes"]
    subprocess.run([*install, "--target", part, "-r", HERE / "requirements.lock"], check=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    download += ["--require-hashes", "--no-binary", ":all:", "--dest", part, "-r", HERE / "detectron2.lock"]
    subprocess.run(download, check=True, env={**os.environ, "PYTHONPATH": str(part)})
    _take_code(next(part.glob("pb1*detectron2*.tar.gz")), part)
    shutil.rmtree(target, ignore_errors=True)
    part.rename(target)


def _take_code(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as opened:
        inside = [member for member in opened.getmembers() if Path(member.name).parts[1:2] == ("detectron2",)]
        # Python 3.11.2, Debian's, has no filters yet; the archive's hash is known.
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        opened.extractall(folder / "sdist", inside, **safely)  # noqa: S202
    archive.unlink()
    next((folder / "sdist").glob("*/detectron2")).rename(folder / "detectron2")
    shutil.rmtree(folder / "sdist")
    (folder / "detectron2/_C.py").write_text("")
    transform = folder / "detectron2/data/transforms/transform.py"
    transform.write_text(transform.read_text().replace("Image.LINEAR", "Image.BILINEAR"))


if __name__ == "__main__":
    unpack(Path(sys.argv[1]).absolute())
