"""benchmarks/peers: the arithmetic behind its tables, and what becomes of an engine that does not run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import pytest
from peers import limits, processes, report
from peers.__main__ import Entrant, Rounds, halves, measure
from peers.checkpoint import vocabulary
from peers.child import one_line
from peers.limits import BYTES, HEAD_WEIGHTS, LAYER_WEIGHTS, MIB, Limits, least_s
from peers.marks import MARKS, Run, against, served, share_in_int8
from peers.processes import Failed, InProcess
from peers.results import Results, Row
from peers.variant import Variant, timed
from peers.workload import CASES, WORD_IDS, WORDS, Case

OURS, OUR_INT8 = Row("pocketlm", "float32", 32), Row("pocketlm", "int8", 8)
OUR_SERVER = Row("pocketlm", "int8", 8, is_served=True)
FAST, SLOW = Row("other", "int8", 8), Row("other", "int4", 4)


def run_of(seconds: dict[tuple[Row, str], list[float]]) -> Run:
    """Of rows with these seconds in the rounds 1, 2, ..."""
    results = Results()
    for (row, case), of_rounds in seconds.items():
        for i, value in enumerate(of_rounds):
            results.add(row, case, i + 1, value)
    return Run(list(dict.fromkeys(row for row, _ in seconds)), results, Limits())


def test_a_ratio_is_the_median_of_the_ratios_of_the_rounds() -> None:
    # In the second round the machine was slow for both, and in the third for one.
    run = run_of({(OUR_INT8, "1 stream"): [1.0, 10.0, 1.0], (FAST, "1 stream"): [2.0, 20.0, 9.0]})
    found = against("1 stream")(run)
    assert found.ratio == 2.0
    assert found.between == "pocketlm int8 / other int8"
    assert run.results.tokens_per_s(OUR_INT8, "1 stream") == 64


def test_a_ratio_takes_the_rounds_that_both_were_in() -> None:
    run = run_of({(OUR_INT8, "64 clients"): [1.0, 5.0, 5.0], (FAST, "64 clients"): [60.0]})
    assert against("64 clients")(run).ratio == 60


def test_the_best_of_the_peers_counts_among_those_of_as_many_bits() -> None:
    run = run_of(
        {
            (OURS, "16 streams"): [9.0],
            (OUR_INT8, "16 streams"): [2.0],
            (FAST, "16 streams"): [3.0],
            (SLOW, "16 streams"): [4.0],
        }
    )
    assert against("16 streams")(run).ratio == 1.5
    assert against("16 streams", bits=8)(run).between == "pocketlm int8 / other int8"
    assert against("16 streams", bits=4)(run).ratio is None  # we have none here


def test_the_server_is_compared_with_the_engine_in_its_own_number_format() -> None:
    run = run_of(
        {
            (OURS, "64 streams"): [1.0],
            (OUR_INT8, "64 streams"): [3.0],
            (OUR_SERVER, "64 clients"): [4.0],
        }
    )
    assert served(run).ratio == 0.75


def test_the_least_time_is_the_slower_of_reading_and_multiplying() -> None:
    weights = LAYER_WEIGHTS + HEAD_WEIGHTS
    assert weights == 123_532_032  # what a token of GPT-2 124M is multiplied with
    # Multiplying takes no time: 64 steps read all weights.
    assert least_s(CASES["1 stream"], 1.0, weights, 1e30) == pytest.approx(64)
    # Reading takes none: the prompts go through the layers, the new tokens through the head as well.
    case = CASES["64 streams"]
    multiply_adds = 64 * ((32 + 63) * LAYER_WEIGHTS + 64 * HEAD_WEIGHTS)
    assert least_s(case, 1.0, 1e30, 1e9) == pytest.approx(multiply_adds / 1e9)


def test_a_share_of_the_limit_is_that_of_the_same_round() -> None:
    run = run_of({(OUR_INT8, "1 stream"): [2.0, 8.0]})
    least = least_s(CASES["1 stream"], BYTES["int8"], 1e9, 1e15)
    # In the second round the machine reads at a quarter of the speed.
    run.limits.bytes_per_s[MIB["int8"]] = {1: 1e9, 2: 0.25e9}
    run.limits.multiply_adds_per_s["int8"] = {1: 1e15, 2: 1e15}
    assert share_in_int8("1 stream")(run).ratio == pytest.approx(least / 2)
    assert run.share(FAST, "1 stream") is None  # what others multiply and read is not known


def test_a_mark_says_how_it_was_met() -> None:
    mark = MARKS[0]
    verdicts = [mark.verdict(ratio) for ratio in (None, 1.24, 1.25, 1.5)]
    assert verdicts == ["not measured", "missed", "reached", "aim reached"]


def test_prompts_are_new_in_each_round_and_share_no_beginning() -> None:
    case = CASES["64 streams"]
    prompts = case.prompts(1) + case.prompts(2)
    assert case.prompts(1) == prompts[:64]
    assert {len(prompt) for prompt in prompts} == {32}
    assert len({tuple(prompt[:4]) for prompt in prompts}) == 128


def test_prompts_are_words_of_the_vocabulary() -> None:
    vocab, _ = vocabulary()
    assert [vocab[word.replace(" ", "Ġ")] for word in WORDS] == list(WORD_IDS)
    assert len(vocab) == 50257


def test_an_answer_of_another_length_is_not_timed() -> None:
    generate = timed(lambda prompts, num_new_tokens: [[1] * num_new_tokens, [1]])
    with pytest.raises(ValueError, match=r"wanted 2 answers of 3 tokens, got 2 of \[1, 3\]"):
        generate([[5], [6]], 3)


ENGINE = """
from peers.variant import timed

def load(home, checkpoint, variant):
    if variant == "without a file":
        raise OSError("there is no\\nsuch file")
    print("an engine may print", flush=True)

    def generate(prompts, num_new_tokens):
        if len(prompts) > 1:
            raise MemoryError("too many")
        return [[5] * num_new_tokens for _ in prompts]

    return timed(generate)
"""


@contextmanager
def child(folder: Path, variant: str) -> Iterator[InProcess]:
    (folder / "some_engine.py").write_text(ENGINE)
    command = [sys.executable, "-m", "peers.child", "some_engine", variant, str(folder), str(folder)]
    environment = {"PYTHONPATH": os.pathsep.join([*sys.path, str(folder)])}
    process = InProcess(command, environment, folder / "log")
    try:
        yield process
    finally:
        process.end()


def test_a_child_answers_whatever_its_engine_does(tmp_path: Path) -> None:
    with child(tmp_path, "good") as process:
        process.get_ready()
        assert process.sanity_tokens() == [5] * 16
        assert process.seconds(CASES["1 stream"], 1) > 0
        with pytest.raises(Failed, match=r"^MemoryError: too many$"):
            process.seconds(CASES["16 streams"], 1)
        assert process.seconds(CASES["1 stream"], 2) > 0
    assert "an engine may print" in (tmp_path / "log").read_text()


def test_an_engine_that_does_not_load_says_why_in_a_line(tmp_path: Path) -> None:
    with (
        child(tmp_path, "without a file") as process,
        pytest.raises(Failed, match=r"^OSError: there is no such file$"),
    ):
        process.get_ready()


def test_a_row_without_figures_shows_its_reason() -> None:
    run = run_of({(OUR_INT8, "1 stream"): [0.5]})
    run.rows.append(FAST)
    run.results.reasons[FAST] = "could not be built"
    text = report.markdown(run, {"date": "today"}, {})
    [line] = [line for line in text.splitlines() if line.startswith("| other int8")]
    assert "could not be built" in line
    [line] = [line for line in text.splitlines() if line.startswith("| pocketlm int8")]
    assert "128" in line
    value = json.loads(json.dumps(report.value(run, {"date": "today"})))
    assert value["tokens_per_s"]["pocketlm int8"]["1 stream"] == 128
    assert value["reasons"] == {"other int8": "could not be built"}


@dataclass
class Told:
    """A process that takes these seconds for each case, and a failure where it takes none."""

    took: dict[str, float | None]
    asked: list[str] = field(default_factory=list)

    def seconds(self, case: Case, round_number: int) -> float:
        self.asked.append(f"{case.name} {round_number}")
        seconds = self.took[case.name]
        if seconds is None:
            raise Failed("took over 180 s")
        return seconds

    def end(self) -> None:
        self.asked.append("ended")


def test_what_takes_minutes_is_asked_once_and_what_fails_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "compile_program", lambda folder: folder)
    monkeypatch.setattr(Limits, "measure", lambda *args: None)
    slow = Told({"1 stream": 1.0, "16 streams": 61.0})
    failing = Told({"1 stream": 1.0, "16 streams": None})
    group = [
        Entrant(row, processes, Variant(8), cast(InProcess, process))
        for row, process in ((FAST, failing), (SLOW, slow))
    ]
    run = run_of({})
    cases = [CASES["1 stream"], CASES["16 streams"]]
    assert measure(group, cases, Rounds(1, 2, time.monotonic() + 60), run) == 2
    assert slow.asked == [
        *("1 stream 0", "16 streams 0"),  # the round that warms up
        *("1 stream 1", "16 streams 1"),
        "1 stream 2",
    ]
    assert run.results.rounds(SLOW, "16 streams") == {1: 61.0}
    assert run.results.rounds(SLOW, "1 stream") == {1: 1.0, 2: 1.0}
    assert failing.asked == ["1 stream 0", "16 streams 0", "ended"]
    assert run.results.reasons == {FAST: "16 streams: took over 180 s"}


def test_a_round_that_would_end_too_late_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "compile_program", lambda folder: folder)
    monkeypatch.setattr(Limits, "measure", lambda *args: None)
    told = Told({"1 stream": 50.0})
    group = [Entrant(FAST, processes, Variant(8), cast(InProcess, told))]
    assert measure(group, [CASES["1 stream"]], Rounds(1, 3, time.monotonic() + 40), run_of({})) == 1
    assert told.asked == ["1 stream 0", "1 stream 1"]


def test_servers_do_not_share_the_memory_with_engines_in_process() -> None:
    engines = ["pocketlm", "vllm", "transformers"]
    (in_process, first_cases), (served, last_cases) = halves(engines, list(CASES.values()))
    assert not any(entrant.row.is_served for entrant in in_process)
    assert all(entrant.row.is_served or entrant.row.is_ours for entrant in served)
    assert {case.name for case in first_cases} | {"64 clients"} == CASES.keys()
    # What the server is compared with is measured again beside it.
    assert [case.name for case in last_cases] == ["64 streams", "64 clients"]
    assert {e.row.variant for e in served if not e.row.is_served} == {
        e.row.variant for e in served if e.row.is_served and e.row.is_ours
    }


def test_a_program_that_failed_is_named_without_its_paths() -> None:
    error = subprocess.CalledProcessError(
        127, [Path("/somewhere/bin/program"), "--model", "/elsewhere/model"]
    )
    assert one_line(error) == "program ended with 127"
