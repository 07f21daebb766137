"""What this process may use of the machine: processors and memory, with the reason for each figure."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")


def cpu_model() -> str:
    """The name in /proc/cpuinfo where there is one; Python's own is often empty."""
    lines = _lines(Path("/proc/cpuinfo"))
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def num_threads() -> tuple[int, str]:
    """How many compute threads to run, and why.

    The affinity mask bounds them, and so does the cgroup CPU quota, rounded down: a thread over the
    quota is stopped by the kernel in the middle of a step while the others wait for it.
    """
    if hasattr(os, "sched_getaffinity"):
        available, reason = len(os.sched_getaffinity(0)), "processors in the affinity mask"
    else:
        available, reason = os.cpu_count() or 1, "processors"
    quota = cpu_quota()
    if quota is not None and quota < available:
        return max(1, int(quota)), f"cgroup CPU quota of {quota:g}"
    return available, reason


def available_memory() -> tuple[int, str]:
    """Bytes this process can still take, and why."""
    available, reason = psutil.virtual_memory().available, "available on the machine"
    left = cgroup_memory_left()
    if left is not None and left < available:
        return left, "left under the cgroup memory limit"
    return available, reason


def cpu_quota() -> float | None:
    """The tightest CPU quota over this process, in processors, or None."""
    quotas = []
    for folder in _cgroup_folders("cpu"):
        limit, period = (
            _words(folder / "cpu.max")
            or (_words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us"))
            or ["max", "1"]
        )
        if limit not in ("max", "-1"):
            quotas.append(int(limit) / int(period))
    return min(quotas, default=None)


def cpu_throttling() -> tuple[int, float] | None:
    """Periods in which the CPU quota stopped this process so far, and the seconds lost; None without cgroups.

    Each cgroup above the process may have a quota; the one that stopped it most is what counts.
    """
    periods, seconds = [], []
    for folder in _cgroup_folders("cpu"):
        stat = _pairs(folder / "cpu.stat")
        if "nr_throttled" in stat:
            periods.append(int(stat["nr_throttled"]))
            if "throttled_usec" in stat:
                seconds.append(int(stat["throttled_usec"]) / 1e6)
            else:  # version 1, in nanoseconds
                seconds.append(int(stat["throttled_time"]) / 1e9)
    return (max(periods), max(seconds)) if periods else None


def cgroup_memory_left() -> int | None:
    """Bytes left under the tightest memory limit over this process, or None.

    The kernel gives back pages of files that nobody used lately before it calls the limit reached.
    """
    left = []
    for folder in _cgroup_folders("memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0] != "max":
            stat = _pairs(folder / "memory.stat")
            reclaimable = int(stat.get("total_inactive_file", stat.get("inactive_file", "0")))
            left.append(max(0, int(limit[0]) - int(used[0]) + reclaimable))
    return min(left, default=None)


def _cgroup_folders(controller: str) -> list[Path]:
    """The cgroup of this process and all above it, for version 2 and version 1 of cgroups.

    In a container the path in /proc is often the host's and does not exist below the mounted root;
    the root itself, which is then the container's own cgroup, is always in the list.
    """
    folders = []
    for line in _lines(Path("/proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        if controllers == "" or controller in controllers.split(","):
            root = CGROUP_ROOT if controllers == "" else CGROUP_ROOT / controller
            own = root / path.strip("/")
            folders += [own, *(parent for parent in own.parents if root in (parent, *parent.parents))]
    return folders


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not Linux, no cgroups, or not ours to read: there is no such limit for us
        return []


def _pairs(path: Path) -> dict[str, str]:
    """A file of lines NAME VALUE."""
    return dict(line.split(maxsplit=1) for line in _lines(path))


def _words(path: Path) -> list[str]:
    return " ".join(_lines(path)).split()
