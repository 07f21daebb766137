"""A variant of an engine in a process of its own: `python -m peers.child MODULE VARIANT HOME CHECKPOINT`.

It loads the engine once, and says so; then it answers each line of JSON with one.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from peers.workload import CASES, SANITY


def main() -> None:
    module, variant, home, checkpoint = sys.argv[1:]
    # What the engine prints goes to the log; the answers have the pipe for themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        print(json.dumps(answer), file=answers)

    try:
        start = time.perf_counter()
        generate = importlib.import_module(module).load(Path(home), Path(checkpoint), variant)
        say({"load_s": time.perf_counter() - start})
    except BaseException as error:
        say({"error": one_line(error)})
        raise
    for line in sys.stdin:
        asked = json.loads(line)
        case = {SANITY.name: SANITY, **CASES}[asked["case"]]
        try:
            seconds, tokens = generate(case.prompts(asked["round"]), case.num_new_tokens)
            say({"seconds": seconds, "tokens": tokens[0] if tokens and case is SANITY else None})
        except Exception as error:
            say({"error": one_line(error)})


def one_line(error: BaseException) -> str:
    if isinstance(error, subprocess.CalledProcessError):  # its own words are a command with all its paths
        return f"{Path(error.cmd[0]).name} ended with {error.returncode}"
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}"[:200]


if __name__ == "__main__":
    main()
