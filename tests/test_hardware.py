"""What of the machine this process may use, under affinity masks and cgroup limits of both versions."""

from __future__ import annotations

import os
from pathlib import Path

import psutil
import pytest

from pocketlm import hardware


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cgroup file system without limits, which stands in for /sys/fs/cgroup."""
    monkeypatch.setattr(hardware, "CGROUP_ROOT", tmp_path)
    set_processors(monkeypatch, 8)
    return tmp_path


def set_processors(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(count)))
    else:
        monkeypatch.setattr(os, "cpu_count", lambda: count)


def set_membership(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """What /proc/self/cgroup says."""
    real = hardware._lines
    monkeypatch.setattr(
        hardware, "_lines", lambda path: list(lines) if path == Path("/proc/self/cgroup") else real(path)
    )


def test_this_machine_has_threads_and_memory_with_reasons() -> None:
    num_threads, reason = hardware.num_threads()
    assert 1 <= num_threads <= (os.cpu_count() or 1) and reason
    num_bytes, reason = hardware.available_memory()
    assert 0 < num_bytes <= psutil.virtual_memory().total and reason


def test_without_limits_the_affinity_mask_decides(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "0::/")
    assert hardware.num_threads()[0] == 8
    assert hardware.cpu_quota() is None
    assert hardware.cgroup_memory_left() is None


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("150000 100000", 1), ("400000 100000", 4), ("50000 100000", 1), ("max 100000", 8)],
)
def test_a_quota_is_rounded_down_but_never_to_zero(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch, quota: str, expected: int
) -> None:
    set_membership(monkeypatch, "0::/")
    (cgroup / "cpu.max").write_text(quota + "\n")
    num_threads, reason = hardware.num_threads()
    assert num_threads == expected
    assert ("quota" in reason) == (expected != 8)


def test_the_tightest_limit_above_the_process_counts(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "0::/pod/container")
    (cgroup / "pod/container").mkdir(parents=True)
    (cgroup / "pod/cpu.max").write_text("200000 100000")
    (cgroup / "pod/container/cpu.max").write_text("600000 100000")
    assert hardware.cpu_quota() == 2.0


def test_in_a_container_the_root_is_its_own_cgroup(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc/self/cgroup shows the host's path, which does not exist below the mounted root."""
    set_membership(monkeypatch, "0::/kubepods/pod1/abc")
    (cgroup / "cpu.max").write_text("300000 100000")
    (cgroup / "memory.max").write_text("1000")
    (cgroup / "memory.current").write_text("400")
    assert hardware.cpu_quota() == 3.0
    assert hardware.cgroup_memory_left() == 600
    (cgroup / "memory.stat").write_text("anon 100\ninactive_file 150\nactive_file 50\n")
    assert hardware.cgroup_memory_left() == 750  # the cache of files is given back when it is needed


def test_cgroup_version_1(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "4:memory:/docker/x", "3:cpu,cpuacct:/docker/x")
    for controller in ("cpu", "memory"):
        (cgroup / controller / "docker/x").mkdir(parents=True)
    (cgroup / "cpu/docker/x/cpu.cfs_quota_us").write_text("250000")
    (cgroup / "cpu/docker/x/cpu.cfs_period_us").write_text("100000")
    (cgroup / "memory/docker/x/memory.limit_in_bytes").write_text("5000")
    (cgroup / "memory/docker/x/memory.usage_in_bytes").write_text("4000")
    assert hardware.num_threads() == (2, "cgroup CPU quota of 2.5")
    assert hardware.available_memory() == (1000, "left under the cgroup memory limit")


def test_version_1_without_a_quota(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "3:cpu:/")
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu/cpu.cfs_quota_us").write_text("-1")
    (cgroup / "cpu/cpu.cfs_period_us").write_text("100000")
    assert hardware.cpu_quota() is None


def test_memory_over_the_limit_is_none_left(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "0::/")
    (cgroup / "memory.max").write_text("1000")
    (cgroup / "memory.current").write_text("1200")
    assert hardware.available_memory()[0] == 0


def test_throttling_is_that_of_the_most_throttled_level(
    cgroup: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_membership(monkeypatch, "0::/pod/container")
    assert hardware.cpu_throttling() is None
    (cgroup / "pod/container").mkdir(parents=True)
    (cgroup / "cpu.stat").write_text("usage_usec 900\nuser_usec 500\nsystem_usec 400\n")  # no quota here
    assert hardware.cpu_throttling() is None
    (cgroup / "pod/cpu.stat").write_text(
        "usage_usec 9\nnr_periods 10\nnr_throttled 4\nthrottled_usec 1500000\n"
    )
    (cgroup / "pod/container/cpu.stat").write_text("nr_periods 10\nnr_throttled 0\nthrottled_usec 0\n")
    assert hardware.cpu_throttling() == (4, 1.5)


def test_throttling_in_version_1_is_in_nanoseconds(cgroup: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    set_membership(monkeypatch, "3:cpu,cpuacct:/docker/x")
    (cgroup / "cpu/docker/x").mkdir(parents=True)
    (cgroup / "cpu/docker/x/cpu.stat").write_text("nr_periods 9\nnr_throttled 7\nthrottled_time 2500000000\n")
    assert hardware.cpu_throttling() == (7, 2.5)
