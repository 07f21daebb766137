"""Every kernel by itself: the C++ program of `make test-arm`, on this machine."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pocketlm import kernels


@pytest.mark.skipif(not kernels.COMPILED_ISAS, reason="the compiled core was not built")
def test_every_kernel_of_every_instruction_set() -> None:
    import pocketlm.kernels._core as core

    program = Path(core.__file__).with_name("test_kernels")
    assert program.exists(), "this build has no native tests; build with `make test`"
    done = subprocess.run([program, *kernels.COMPILED_ISAS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
