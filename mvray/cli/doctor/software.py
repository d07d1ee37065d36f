"""Python and packages."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata, util

from packaging.requirements import Requirement

from mvray.cli.doctor.finding import Finding

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)


def python() -> Iterator[Finding]:
    text = f"{platform.python_version()} at {sys.executable}"
    if OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON:
        yield Finding("Python", "ok", text)
    else:
        yield Finding("Python", "bad", f"{text}; expected 3.11 to 3.13.", "Make the environment with one of these.")


def packages() -> Iterator[Finding]:
    good = []
    for line in metadata.requires("mvray") or []:
        needed = Requirement(line)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(needed.name)
        except metadata.PackageNotFoundError:
            yield Finding("packages", "bad", f"{needed.name} is not installed.", f'pip install "{needed}"')
            continue
        if needed.specifier.contains(version, prereleases=True):
            good.append(f"{needed.name} {version}")
        else:
            text = f"{needed.name} is {version}; expected {needed.specifier}."
            yield Finding("packages", "bad", text, f'pip install --upgrade "{needed}"')
    yield Finding("packages", "ok", ", ".join(good))


def torch() -> Iterator[Finding]:
    import torch
    import torchvision

    # Where the two were not built for each other, torchvision lacks its compiled operators; the import does not fail.
    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    try:
        torchvision.ops.nms(boxes, torch.ones(1), 0.5)
    except RuntimeError as error:
        remedy = "Install torch and torchvision of one release together, as in requirements.lock."
        yield Finding("torch", "bad", f"torch and torchvision do not fit together: {error}", remedy)
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPU"
    yield Finding(
        "torch", "ok", f"torch {torch.__version__} ({built}) works with torchvision {torchvision.__version__}"
    )


def detectron2() -> Iterator[Finding]:
    purpose = "only the instance masks of Detectron2 need it; torchvision's work without"
    if util.find_spec("detectron2") is None:
        remedy = 'pip install --no-build-isolation "git+https://github.com/facebookresearch/detectron2.git"'
        yield Finding("Detectron2", "info", f"not installed: {purpose}", f"To have it: {remedy}")
        return
    try:
        import detectron2
        import detectron2._C
    except Exception as error:  # its compiled half fails in many ways
        text = f"installed, but cannot be imported: {type(error).__name__}: {error}"
        yield Finding("Detectron2", "warn", text, "Build it again with the torch that is installed now.")
        return
    yield Finding("Detectron2", "ok", str(detectron2.__version__))


def video() -> Iterator[Finding]:
    decoders = [f"{name} {metadata.version(name)}" for name in ("torchcodec", "av") if util.find_spec(name)]
    if decoders:
        yield Finding("video", "ok", ", ".join(decoders))
    else:
        yield Finding(
            "video", "info", "no decoder installed: only jobs on videos need one", "To have it: pip install av"
        )
