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
from dataclasses import dataclass, field
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

SLOW_S = 60  # a case that takes longer is measured once
ENGINES = ("pocketlm", "openvino", "llamacpp", "transformers", "ctranslate2", "vllm")
ROOT = Path(__file__).parents[2]
WORK = ROOT / ".bench"
MODEL = WORK / "checkpoint"


@dataclass
class Entrant:
    """A row, and what runs it."""

    row: Row
    engine: ModuleType
    variant: Variant
    process: InProcess | Server | None = None
    slow_cases: set[str] = field(default_factory=set)  # as it turned out

    @property
    def home(self) -> Path:
        return WORK / self.row.engine

    def takes(self, case: Case) -> bool:
        return case.over_http if self.row.is_served else case.name in self.variant.cases

    def is_once(self, case: Case) -> bool:
        return self.variant.is_slow or self.variant.is_exact or case.name in self.slow_cases

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


def entrants(engines: list[str], *, is_served: bool) -> Iterator[Entrant]:
    for name in engines:
        engine = importlib.import_module(f"peers.{name}")
        for variant_name, variant in engine.VARIANTS.items():
            if variant.is_served or not is_served:
                yield Entrant(Row(name, variant_name, variant.bits, is_served), engine, variant)


def halves(engines: list[str], cases: list[Case]) -> Iterator[tuple[list[Entrant], list[Case]]]:
    """Who is in memory together, and in which cases: engines in process, then servers with our engine."""
    in_process = [case for case in cases if not case.over_http]
    over_http = [case for case in cases if case.over_http]
    if in_process:
        engines_alone = entrants(engines, is_served=False)
        yield [e for e in engines_alone if e.variant.is_exact or any(map(e.takes, in_process))], in_process
    if over_http:
        engines_alone = entrants(engines, is_served=False)
        ours = [e for e in engines_alone if e.row.is_ours and e.variant.is_served]
        yield [*ours, *entrants(engines, is_served=True)], [CASES["64 streams"], *over_http]


def say(words: str) -> None:
    print(f"{datetime.now():%H:%M:%S} {words}", file=sys.stderr, flush=True)


def start_all(group: list[Entrant], results: Results, running: ExitStack) -> None:
    unbuilt: dict[str, str] = {}  # engine -> reason
    for engine in dict.fromkeys(entrant.row.engine for entrant in group):
        [first, *_] = [entrant for entrant in group if entrant.row.engine == engine]
        say(f"{engine}: built below {first.home}, unless it was")
        first.home.mkdir(exist_ok=True)
        try:
            prepare(first.engine, first.home, MODEL)
        except BuildFailed as error:
            unbuilt[engine] = str(error)
    for entrant in group:
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


def compare_tokens(group: list[Entrant], results: Results) -> dict[Row, str]:
    """How many of the first tokens are those of pocketlm in float32; for an exact row all must be."""
    tokens: dict[Row, TokenIds] = {}
    for entrant in group:
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
    for entrant in group:
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


@dataclass(frozen=True)
class Rounds:
    """A round that warms up, then these."""

    first: int  # its number: no two of a run are equal
    num: int
    deadline: float  # of time.monotonic(); no round begins that would end later


def measure(group: list[Entrant], cases: list[Case], rounds: Rounds, run: Run) -> int:
    """The number of rounds that there was time for."""
    program = limits.compile_program(WORK)
    longest_s = 0.0
    for number in range(rounds.num + 1):
        round_number = rounds.first - 1 + number
        if number > 1 and time.monotonic() + longest_s > rounds.deadline:
            return number - 1
        round_s = 0.0  # of what every round has
        say(f"round {number} of {rounds.num}")
        if number:
            run.limits.measure(program, round_number)
        for case in cases:
            # To and fro, as what comes first in a round may find another machine than what comes last.
            for entrant in group[:: 1 if number % 2 else -1]:
                is_due = entrant.takes(case) and (number == 1 or not entrant.is_once(case))
                if entrant.process is not None and is_due:
                    try:
                        seconds = entrant.process.seconds(case, round_number)
                    except Failed as error:
                        fail(entrant, run.results, f"{case.name}: {error}")
                    else:
                        if seconds > SLOW_S:
                            entrant.slow_cases.add(case.name)
                        round_s += seconds * (not entrant.is_once(case))
                        if number:
                            run.results.add(entrant.row, case.name, round_number, seconds)
        longest_s = max(longest_s, round_s)
    return rounds.num


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="0 starts all and compares their tokens")
    parser.add_argument("--minutes", type=float, default=60, help="two thirds for the engines in process")
    parser.add_argument("--only", default=",".join(ENGINES), help="engines, with commas between them")
    parser.add_argument("--cases", default=",".join(CASES), help="cases, with commas between them")
    args = parser.parse_args()
    start = time.monotonic()
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

    run = Run([], Results(), limits.Limits())
    everyone: list[Entrant] = []
    equal: dict[Row, str] = {}
    num_rounds: dict[str, int] = {}
    for group, their_cases in halves(engines, cases):
        is_last = their_cases[-1].over_http
        with ExitStack() as running:
            start_all(group, run.results, running)
            equal |= compare_tokens(group, run.results)
            deadline = start + 60 * args.minutes * (1 if is_last else 2 / 3)
            rounds = Rounds(1 + sum(num_rounds.values()), args.rounds, deadline)
            where = "over HTTP" if is_last else "in process"
            num_rounds[where] = measure(group, their_cases, rounds, run) if args.rounds else 0
        new = [entrant for entrant in group if entrant.row not in run.rows]
        everyone += new
        run.rows.extend(entrant.row for entrant in new)

    facts = {
        "machine": f"{cpu_model()}, {isa()[0]}, {platform.system()} {platform.release()}",
        "threads": str(NUM_THREADS),
        "date": f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC",
        "rounds": ", ".join(f"{num} {where}" for where, num in num_rounds.items())
        + "; of what is in float32 or takes minutes, one",
        **{entrant.row.engine: versions(entrant.engine, entrant.home) for entrant in everyone},
    }
    notes = {
        entrant.row: "; ".join(filter(None, [entrant.variant.settings, equal.get(entrant.row, "")]))
        for entrant in everyone
    }
    text = report.markdown(run, facts, notes)
    if any(num_rounds.values()):
        (ROOT / "benchmarks/RESULTS.md").write_text(text)
    print(text)
    print(json.dumps(report.value(run, facts)))


if __name__ == "__main__":
    main()
