"""The virtual environment of an engine, and what is compiled and converted for it, once."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

TORCH = "torch==2.13.0"  # first and pinned: a range can bring gigabytes of libraries for GPUs


class BuildFailed(Exception):
    """In one line; the log has the rest."""


def python_of(engine: ModuleType, home: Path) -> Path:
    return home / "venv/bin/python" if hasattr(engine, "PACKAGES") else Path(sys.executable)


def prepare(engine: ModuleType, home: Path, checkpoint: Path) -> None:
    """BuildFailed."""
    done = home / "done"
    if done.exists() or not hasattr(engine, "PACKAGES"):
        return
    home.mkdir(exist_ok=True)
    python = home / "venv/bin/python"
    if not python.exists():
        run([sys.executable, "-m", "venv", home / "venv"], home)
        run([python, "-m", "pip", "install", TORCH], home)
        run([python, "-m", "pip", "install", *engine.PACKAGES, TORCH], home)
        # Some bring companions of torch that are made for another torch, and cannot be imported.
        run([python, "-m", "pip", "uninstall", "--yes", "torchvision", "torchaudio", "torchcodec"], home)
    engine.build(home, checkpoint)
    done.touch()


def run(command: Sequence[str | Path], home: Path) -> None:
    """One step of building, with what it prints in home/log. BuildFailed."""
    with (home / "log").open("a") as log:
        code = subprocess.run(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL).returncode
    if code != 0:
        raise BuildFailed(f"{' '.join(map(str, command[:4]))} ... ended with {code}; see {home / 'log'}")


def versions(engine: ModuleType, home: Path) -> str:
    """Of the packages that make a difference."""
    if not hasattr(engine, "PACKAGES"):
        command: list[str | Path] = ["git", "-C", Path(__file__).parent, "log", "-1", "--format=commit %h"]
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()
    code = (
        "import importlib.metadata as m, sys; print(*(f'{n} {m.version(n)}' for n in sys.argv[1:]), sep=', ')"
    )
    names = [*engine.PACKAGES, TORCH.partition("=")[0]]
    done = subprocess.run([python_of(engine, home), "-c", code, *names], capture_output=True, text=True)
    return ", ".join(filter(None, [getattr(engine, "SOURCE", ""), done.stdout.strip()]))
