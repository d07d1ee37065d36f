"""CPUs, memory and GPUs of this machine."""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from mvray.cli.doctor.finding import GB, Finding

MEMORY_LOW_GB, SHARED_MEMORY_LOW_GB = 4, 0.25
SHARED_MEMORY = "/dev/shm"  # noqa: S108  a mount point, not a file
OBJECT_STORE_SHARE = 0.3
"""Share of the memory that Ray reserves for its object store in /dev/shm."""


def cpus() -> Iterator[Finding]:
    present, usable = os.cpu_count() or 1, len(os.sched_getaffinity(0))
    text = (
        f"{usable} usable of {present} ({platform.machine()})"
        if usable < present
        else f"{present} ({platform.machine()})"
    )
    quota = _cgroup("cpu.max")
    if quota and quota[0] != "max":
        text += f", limited to {int(quota[0]) / int(quota[1]):.1f} for this container"
    if usable > 1:
        yield Finding("CPUs", "ok", text)
    else:
        yield Finding("CPUs", "warn", text, "Training, decoding and Ray share it; two or more are better.")


def memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    text = f"{memory.available / GB:.1f} GB free of {memory.total / GB:.1f} GB"
    limit = _cgroup("memory.max")
    if limit and limit[0] != "max":
        text += f", limited to {int(limit[0]) / GB:.1f} GB for this container"
    if memory.available > MEMORY_LOW_GB * GB:
        yield Finding("memory", "ok", text)
    else:
        remedy = "Ray stops workers of a node that runs out. End other programs, or use less workers."
        yield Finding("memory", "warn", text, remedy)


def _cgroup(name: str) -> list[str]:
    file = Path("/sys/fs/cgroup") / name
    return file.read_text().split() if file.exists() else []


def gpus() -> Iterator[Finding]:
    import torch

    if torch.cuda.is_available():
        for k in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(k)
            free, total = torch.cuda.mem_get_info(k)
            with torch.cuda.device(k):
                bf16 = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no bf16: float32 is used"
            yield Finding("GPUs", "ok", f"{k}: {about.name}, {free / GB:.1f} GB free of {total / GB:.1f} GB, {bf16}")
        return
    present = sorted(Path("/dev").glob("nvidia[0-9]*"))
    if not present:
        yield Finding("GPUs", "info", "none: training runs on CPUs")
        return
    text = f"{len(present)} NVIDIA devices, but torch {torch.__version__} cannot use them."
    remedy = "Install a torch built for CUDA, and a driver that is new enough for it (nvidia-smi names its version)."
    yield Finding("GPUs", "bad", text, remedy)


def nccl() -> Iterator[Finding]:
    import torch

    if not torch.cuda.is_available():
        yield Finding("NCCL", "info", "not needed without GPUs (CPU workers talk through gloo)")
        return
    import torch.distributed as dist

    parts = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
    version = ".".join(str(part) for part in parts)
    try:
        store = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("nccl", store=store, rank=0, world_size=1)
        number = torch.ones(1, device="cuda")
        dist.all_reduce(number)
        torch.cuda.synchronize()
        dist.destroy_process_group()
    except RuntimeError as error:
        remedy = "Set NCCL_DEBUG=INFO and run this again; NCCL then says what it misses."
        yield Finding("NCCL", "bad", f"{version} does not start: {error}", remedy)
        return
    yield Finding("NCCL", "ok", f"{version} starts and sums on GPU 0")


def shared_memory() -> Iterator[Finding]:
    yield enough_shared_memory(shutil.disk_usage(SHARED_MEMORY).total, psutil.virtual_memory().total)


def enough_shared_memory(size: int, memory: int) -> Finding:
    """What ``size`` bytes of /dev/shm mean on a machine with ``memory`` bytes."""
    needed = OBJECT_STORE_SHARE * memory
    fact = f"{SHARED_MEMORY} has {size / GB:.1f} GB; Ray's object store likes 30 % of the memory, {needed / GB:.1f} GB"
    gigabytes = max(1, round(needed / GB))
    remedy = f"In a container: --shm-size={gigabytes}g. Else: mount -o remount,size={gigabytes}G {SHARED_MEMORY}"
    if size < SHARED_MEMORY_LOW_GB * GB:
        text = f"{fact}. With this little, decoding processes die with a bus error."
        return Finding("shared memory", "bad", text, remedy)
    if size < needed:
        return Finding("shared memory", "warn", f"{fact}. Ray puts what does not fit in /tmp, which is slow.", remedy)
    return Finding("shared memory", "ok", fact)
