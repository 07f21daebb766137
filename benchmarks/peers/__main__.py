"""pocketlm and other engines on this machine, in turn, on one checkpoint.

    make bench-peers ARGS="--rounds 5"

What an engine needs is built below .bench/ when it is first asked for. One that cannot be built, started
or run keeps its row, with the reason. Prints tables, then one JSON line, and writes benchmarks/RESULTS.md.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

from peers import checkpoint, limits, report
from peers.environments import BuildFailed, prepare, python_of, versions
from peers.marks import Run
from peers.processes import Failed, InProcess, Server, completion, free_port
from peers.results import Results, Row
from peers.variant import NUM_THREADS, Variant
from peers.workload import CASES, Case, TokenIds
from pocketlm.hardware import cpu_model
from pocketlm.kernels import isa

ENGINES = ("pocketlm", "openvino", "llamacpp", "transformers", "ctranslate2", "vllm")
ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench"
MODEL = WORK / "checkpoint"
MOST_EXACT_ROUNDS = 2  # float32 takes long, and is nobody's best


@dataclass
class Entrant:
    """A row, and what runs it."""

    row: Row
    engine: ModuleType
    variant: Variant
    process: InProcess | Server | None = None

    @property
    def home(self) -> Path:
        return WORK / self.row.engine

    def takes(self, case: Case) -> bool:
        return case.over_http if self.row.is_served else case.name in self.variant.cases

    def is_due(self, round_number: int) -> bool:
        if self.variant.is_slow:
            return round_number == 1
        return round_number <= MOST_EXACT_ROUNDS or not self.variant.is_exact

    def start(self) -> InProcess | Server:
        environment = {"PYTHONPATH": str(ROOT / "benchmarks"), **getattr(self.engine, "ENVIRONMENT", {})}
        log = self.home / f"{self.row}.log"
        if self.row.is_served:
            port = free_port()
            command = self.engine.serve(self.home, MODEL, self.row.variant, port)
            return Server(command, environment, log, port, getattr(self.engine, "request", completion))
        python = str(python_of(self.engine, self.home))
        names = [self.engine.__name__, self.row.variant, str(self.home), str(MODEL)]
        return InProcess([python, "-m", "peers.child", *names], environment, log)


def entrants(engines: list[str], cases: list[Case]) -> Iterator[Entrant]:
    for is_served in (False, True):
        for name in engines:
            engine = importlib.import_module(f"peers.{name}")
            for variant_name, variant in engine.VARIANTS.items():
                if variant.is_served or not is_served:
                    row = Row(name, variant_name, variant.bits, is_served)
                    entrant = Entrant(row, engine, variant)
                    if variant.is_exact or any(map(entrant.takes, cases)):
                        yield entrant


def say(words: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {words}", file=sys.stderr, flush=True)


def start_all(field: list[Entrant], results: Results, running: ExitStack) -> None:
    unbuilt: dict[str, str] = {}  # engine -> reason
    for engine in dict.fromkeys(entrant.row.engine for entrant in field):
        [first, *_] = [entrant for entrant in field if entrant.row.engine == engine]
        say(f"{engine}: built below {first.home}, unless it was")
        first.home.mkdir(exist_ok=True)
        try:
            prepare(first.engine, first.home, MODEL)
        except BuildFailed as error:
            unbuilt[engine] = str(error)
    for entrant in field:
        row = entrant.row
        if row.engine in unbuilt:
            results.reasons[row] = unbuilt[row.engine]
            continue
        say(f"{row}: started")
        entrant.process = entrant.start()
        running.callback(entrant.process.end)
        try:
            entrant.process.get_ready()
        except Failed as error:
            fail(entrant, results, str(error))


def compare_tokens(field: list[Entrant], results: Results) -> dict[Row, str]:
    """How many of the first tokens are those of pocketlm in float32; for an exact row all must be."""
    tokens: dict[Row, TokenIds] = {}
    for entrant in field:
        if isinstance(entrant.process, InProcess):
            try:
                found = entrant.process.sanity_tokens()
            except Failed as error:
                fail(entrant, results, str(error))
            else:
                if found is not None:
                    tokens[entrant.row] = found
    ours = tokens.get(Row("pocketlm", "float32", 32))
    notes = {}
    for entrant in field:
        theirs = tokens.get(entrant.row)
        if ours is not None and theirs is not None and theirs is not ours:
            pairs = zip(ours, theirs, strict=True)
            num_equal = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ours))
            notes[entrant.row] = f"{num_equal} of the first {len(ours)} tokens as pocketlm in float32"
            if entrant.variant.is_exact and theirs != ours:
                results.reasons[entrant.row] = "its tokens are not those of pocketlm in float32"
    return notes


def fail(entrant: Entrant, results: Results, reason: str) -> None:
    results.reasons[entrant.row] = reason
    if entrant.process is not None:
        entrant.process.end()
        entrant.process = None


def measure(field: list[Entrant], cases: list[Case], num_rounds: int, deadline: float, run: Run) -> int:
    """The rounds that there was time for, after one that warms up."""
    program = limits.compile_program(WORK)
    longest_s = 0.0
    for round_number in range(num_rounds + 1):
        start = time.monotonic()
        if round_number > 1 and start + longest_s > deadline:
            return round_number - 1
        say(f"round {round_number} of {num_rounds}")
        if round_number:
            run.limits.measure(program, round_number)
        for case in cases:
            # To and fro, as what comes first in a round may find another machine than what comes last.
            for entrant in field[:: 1 if round_number % 2 else -1]:
                if entrant.process is not None and entrant.takes(case) and entrant.is_due(round_number):
                    try:
                        seconds = entrant.process.seconds(case, round_number)
                    except Failed as error:
                        fail(entrant, run.results, str(error))
                    else:
                        if round_number:
                            run.results.add(entrant.row, case.name, round_number, seconds)
        if round_number != 1:  # which has what runs once
            longest_s = max(longest_s, time.monotonic() - start)
    return num_rounds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="0 starts all and compares their tokens")
    parser.add_argument("--minutes", type=float, default=25, help="no round begins that would end later")
    parser.add_argument("--only", default=",".join(ENGINES), help="engines, with commas between them")
    parser.add_argument("--cases", default=",".join(CASES), help="cases, with commas between them")
    args = parser.parse_args()
    deadline = time.monotonic() + 60 * args.minutes
    engines, names = args.only.split(","), args.cases.split(",")
    for what, given, known in (("engine", engines, ENGINES), ("case", names, CASES)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {what} {name!r}; there are: {', '.join(known)}")
    cases = [CASES[name] for name in names]

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what was started is ended
    WORK.mkdir(exist_ok=True)
    if not MODEL.exists():
        half = WORK / "checkpoint.half"
        shutil.rmtree(half, ignore_errors=True)
        checkpoint.write(half).rename(MODEL)

    field = list(entrants(engines, cases))
    run = Run([entrant.row for entrant in field], Results(), limits.Limits())
    with ExitStack() as running:
        start_all(field, run.results, running)
        equal = compare_tokens(field, run.results)
        num_rounds = measure(field, cases, args.rounds, deadline, run) if args.rounds else 0

    facts = {
        "machine": f"{cpu_model()}, {isa()[0]}, {platform.system()} {platform.release()}",
        "threads": str(NUM_THREADS),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "rounds": f"{num_rounds}; what is in float32 has at most {MOST_EXACT_ROUNDS}",
        **{entrant.row.engine: versions(entrant.engine, entrant.home) for entrant in field},
    }
    notes = {
        entrant.row: "; ".join(filter(None, [entrant.variant.settings, equal.get(entrant.row, "")]))
        for entrant in field
    }
    text = report.markdown(run, facts, notes)
    if num_rounds:
        (ROOT / "benchmarks/RESULTS.md").write_text(text)
    print(text)
    print(json.dumps(report.value(run, facts)))


if __name__ == "__main__":
    main()
