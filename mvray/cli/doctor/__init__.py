"""`mvray doctor`: what this machine or cluster has, what is wrong with it, and what to do about it.

Each check ends in findings. One that fails in a way that nobody thought of becomes a finding too, in
the words of its exception.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator

from mvray.cli.doctor import cluster, hardware, places, software
from mvray.cli.doctor.finding import Finding

__all__ = ["Finding", "as_text", "examine"]

MARKS = {"ok": "ok", "info": "--", "warn": "WARN", "bad": "BAD"}

Check = Callable[[], Iterator[Finding]]


def examine(storage_uri: str, tracking_uri: str, address: str | None = None) -> list[Finding]:
    """Look at this machine, the storage, the run store, and the Ray cluster at ``address`` if one is named."""
    checks: tuple[tuple[str, Check], ...] = (
        ("Python", software.python),
        ("packages", software.packages),
        ("torch", software.torch),
        ("CPUs", hardware.cpus),
        ("memory", hardware.memory),
        ("GPUs", hardware.gpus),
        ("NCCL", hardware.nccl),
        ("shared memory", hardware.shared_memory),
        ("disk", lambda: places.disk(storage_uri)),
        ("storage", lambda: places.storage(storage_uri)),
        ("tracking", lambda: places.tracking(tracking_uri)),
        ("Ray", lambda: cluster.examined(address, storage_uri)),
        ("ports", places.ports),
        ("Detectron2", software.detectron2),
        ("video", software.video),
    )
    return [finding for name, check in checks for finding in _findings(name, check)]


def _findings(name: str, check: Check) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(check())
    except Exception as error:  # the doctor's own trouble is a finding like any other
        remedy = "Read the message; without this the doctor cannot tell more."
        findings.append(Finding(name, "bad", f"The check failed. {type(error).__name__}: {error}", remedy))
    return findings


def as_text(findings: list[Finding], width: int = 100) -> str:
    """Findings as lines, each problem with its remedy below, and a sentence at the end."""
    name_width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        head = f"{MARKS[finding.state]:4}  {finding.name:{name_width}}  "
        below = " " * len(head)
        lines.append(textwrap.fill(finding.text, width, initial_indent=head, subsequent_indent=below))
        if finding.remedy:
            lines.append(
                textwrap.fill(finding.remedy, width, initial_indent=below + "> ", subsequent_indent=below + "  ")
            )
    bad, warn = (sum(finding.state == state for finding in findings) for state in ("bad", "warn"))
    problems = f"{bad} problem{'s' * (bad != 1)}, {warn} warning{'s' * (warn != 1)}."
    return "\n".join([*lines, "", problems if bad or warn else "All is well."])
