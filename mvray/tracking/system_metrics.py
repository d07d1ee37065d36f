"""Which machine this is, and what it is busy with."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import psutil


def loopback() -> str:
    """What this machine's loopback addresses have to themselves: where it is the same, they lead to the same servers.

    "" where the system does not say. Host names and addresses do not tell it: a port of another machine may be
    forwarded to this one, and a container has a loopback of its own.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/net').readlink()}"
    except OSError:
        return ""


def load() -> dict[str, float]:
    """Load of this node, under the names that MLflow's page for system metrics knows."""
    memory = psutil.virtual_memory()
    values = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_percentage": memory.percent,
        "system_memory_usage_megabytes": memory.used / 1e6,
    }
    return {f"system/{name}": value for name, value in (values | _gpus()).items()}


def _gpus() -> dict[str, float]:
    # nvidia-smi opens no CUDA context; torch would take GPU memory away from the workers.
    if shutil.which("nvidia-smi") is None:
        return {}
    fields = {
        "utilization_percentage": "utilization.gpu",
        "memory_usage_megabytes": "memory.used",
        "power_usage_watts": "power.draw",
    }
    query = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
    try:
        output = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout
    except subprocess.SubprocessError:  # a driver that hangs or fails measures nothing
        return {}
    # A GPU says [N/A] to what it does not measure.
    return {
        f"gpu_{gpu}_{name}": float(value)
        for gpu, line in enumerate(output.splitlines())
        for name, value in zip(fields, line.split(", "), strict=True)
        if re.fullmatch(r"[\d.]+", value)
    }
