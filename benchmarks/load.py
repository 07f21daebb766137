"""A crowd of clients against a server: nothing may break, leak, or change an answer.

200 clients for two minutes. Half of the good requests stream, a tenth of all leave at a random moment,
some have bad bodies. First every request of the crowd is asked alone; afterwards the server must be
idle, with its memory flat. Prints a table, then one JSON line; the exit code is 1 if anything failed.

    python benchmarks/load.py [--url http://127.0.0.1:5000 | --model bundled] [--clients 200] [--seconds 120]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import httpx
from own_server import own_server
from prometheus_client.parser import text_string_to_metric_families

NUM_CASES = 64
MAX_REQUESTS = 200_000
MAX_GROWTH = 0.05  # of resident memory, from the second quarter of the time to the last
MIN_SECONDS_OF_MEMORY = 60  # in a shorter run the KV cache is still being touched for the first time
SHARE_LEAVING, SHARE_BAD, SHARE_STREAMING, SHARE_CACHED = 0.1, 0.1, 0.5, 0.5
IDLE = ("pocketlm:num_requests_running", "pocketlm:num_requests_waiting", "pocketlm:http_streams_open")
KV_USAGE = "pocketlm:kv_cache_usage_perc"
RSS = "process_resident_memory_bytes"

PROMPTS = [
    "Kubernetes is a",
    "The quick brown fox",
    "A CPU quota of half a core means",
    "To restart a service, first",
    "Once upon a time there was a server",
    "Ünïcödé \N{SNOWMAN} and 日本語",
    "def main() -> None:",
    "1, 2, 3, 4,",
]
BAD = [  # how to spoil a good body, and what the server must answer
    (lambda body: b"{", 400),
    (lambda body: b"[1, 2]", 400),
    (lambda body: b"\xff\xfe", 400),
    (lambda body: json.dumps({**body, "temperature": 9}).encode(), 400),
    (lambda body: json.dumps({**body, "no_such_field": 1}).encode(), 400),
    (lambda body: json.dumps({**body, "max_tokens": "many"}).encode(), 400),
    (lambda body: json.dumps({**body, "stop": [1]}).encode(), 400),
    (lambda body: json.dumps({**body, "model": "no-such-model"}).encode(), 404),
]


@dataclass
class Case:
    """A request with a seed, and what the server answered when it was alone."""

    route: str
    body: dict[str, Any]
    answer: Any = None

    @property
    def texts(self) -> list[tuple[str, str]]:
        """Text and finish reason of each choice."""
        return texts_of(self.route, self.answer)


def make_cases(rng: random.Random) -> list[Case]:
    cases = []
    for number in range(NUM_CASES):
        route = rng.choice(["/generate", "/v1/completions", "/v1/chat/completions"])
        prompt = f"{rng.choice(PROMPTS)} {number}"
        body: dict[str, Any] = {
            "seed": rng.randrange(2**32),
            "max_tokens": rng.randrange(1, 48),
            "temperature": rng.choice([0, 0.7, 1.0]),
            "top_p": rng.choice([0.9, 1.0]),
        }
        num_answers = rng.choice([1, 1, 1, 2])
        if rng.random() < 0.2:
            body["stop"] = ["\n", " the"]
        if route == "/v1/chat/completions":
            body |= {"messages": [{"role": "user", "content": prompt}], "n": num_answers}
        elif route == "/v1/completions":
            body |= {"prompt": prompt, "n": num_answers, "logprobs": rng.choice([None, 2])}
        else:
            body |= {"prompt": prompt, "num_return_sequences": num_answers}
        cases.append(Case(route, body))
    return cases


def answer_of(route: str, body: dict[str, Any]) -> Any:
    """The part of a whole body that depends on the request alone: no ids, no times, no cache."""
    if route != "/generate":
        return [body["choices"], body["usage"]["completion_tokens"]]
    names = ("generated_text", "generated_texts", "finish_reason", "finish_reasons")
    return [
        body["prompt"],
        {name: body[name] for name in names if name in body},
        body["usage"]["completion_tokens"],
    ]


def texts_of(route: str, answer: Any) -> list[tuple[str, str]]:
    if route == "/generate":
        prompt, fields, _ = answer
        texts = fields.get("generated_texts") or [fields["generated_text"]]
        reasons = fields.get("finish_reasons") or [fields["finish_reason"]]
        return [(text[len(prompt) :], reason) for text, reason in zip(texts, reasons, strict=True)]
    choices = sorted(answer[0], key=lambda choice: choice["index"])
    return [(c["message"]["content"] if "message" in c else c["text"], c["finish_reason"]) for c in choices]


class Failure(Exception):
    """The server did something it must not do; the first argument is a short name of it."""


class Stream:
    """The events of a streaming answer, put together again."""

    def __init__(self, route: str) -> None:
        self._route = route
        self._texts: dict[int, str] = defaultdict(str)
        self._reasons: dict[int, str] = {}
        self._is_done = False
        self._whole: Any = None  # /generate ends with the whole result

    def add(self, data: str) -> None:
        if self._is_done:
            raise Failure("event after [DONE]", data)
        if data == "[DONE]":
            self._is_done = True
            return
        event = json.loads(data)
        if "error" in event:
            raise Failure("error in a stream", data)
        if "generated_text" in event:
            self._whole = answer_of(self._route, event)
            for index, (_, reason) in enumerate(texts_of(self._route, self._whole)):
                self._reasons[index] = reason
        elif self._route == "/generate":
            self._texts[event["index"]] += event["text"]
        for choice in event.get("choices", []):
            text = choice["delta"].get("content", "") if "delta" in choice else choice["text"]
            self._texts[choice["index"]] += text or ""
            if choice["finish_reason"] is not None:
                self._reasons[choice["index"]] = choice["finish_reason"]

    def texts(self) -> list[tuple[str, str]]:
        if not self._is_done:
            raise Failure("stream without [DONE]", self._route)
        texts = [(self._texts[index], reason) for index, reason in sorted(self._reasons.items())]
        if self._whole is not None and texts_of(self._route, self._whole) != texts:
            raise Failure("pieces differ from the last event", f"{texts} {self._whole}")
        return texts


class Load:
    """The crowd, and what it has seen."""

    def __init__(
        self, client: httpx.AsyncClient, cases: list[Case], num_clients: int, seconds: float
    ) -> None:
        self._client = client
        self._cases = cases
        self._num_clients = num_clients
        self._seconds = seconds
        self._end = 0.0
        self.num_requests = 0
        self.outcomes: Counter[tuple[str, str]] = Counter()
        self.seconds_of: dict[str, list[float]] = defaultdict(list)
        self.failures: dict[str, list[str]] = defaultdict(list)
        self.rss: list[float] = []

    async def ask_alone(self) -> None:
        for case in self._cases:
            response = await self._client.post(case.route, json={**case.body, "cache": False})
            if response.status_code != 200:
                raise SystemExit(
                    f"alone on the server: {response.status_code} {response.text} for {case.body}"
                )
            case.answer = answer_of(case.route, response.json())

    async def run(self) -> None:
        self._end = time.monotonic() + self._seconds
        watch = asyncio.create_task(self._watch())
        await asyncio.gather(*(self._one_client(random.Random(i)) for i in range(self._num_clients)))
        await watch

    async def _watch(self) -> None:
        while time.monotonic() < self._end:
            try:
                self.rss.append((await self.metrics())[RSS])
            except httpx.HTTPError as error:
                self._failed("/metrics did not answer", repr(error))
            await asyncio.sleep(1)

    async def metrics(self) -> dict[str, float]:
        """The sum over its labels of each metric."""
        values: dict[str, float] = defaultdict(float)
        response = await self._client.get("/metrics")
        for family in text_string_to_metric_families(response.raise_for_status().text):
            for sample in family.samples:
                values[sample.name] += sample.value
        return values

    async def _one_client(self, rng: random.Random) -> None:
        while time.monotonic() < self._end and self.num_requests < MAX_REQUESTS:
            self.num_requests += 1
            case = rng.choice(self._cases)
            kind = "whole"
            if rng.random() < SHARE_STREAMING:
                kind = "streaming"
            body = {**case.body, "stream": kind == "streaming", "cache": rng.random() < SHARE_CACHED}
            draw = rng.random()
            start = time.perf_counter()
            try:
                if draw < SHARE_BAD:
                    kind = "bad body"
                    outcome = await self._ask_badly(rng, case, body)
                elif draw < SHARE_BAD + SHARE_LEAVING:
                    kind = f"{kind}, left"
                    outcome = await self._ask_and_leave(rng, case, body)
                else:
                    outcome = await self._ask(case, body)
            except Failure as failure:
                outcome, what = failure.args
                self._failed(f"{kind}: {outcome}", f"{case.route} {json.dumps(body)}: {what}")
            except Exception as error:  # one client's surprise is a result like any other
                outcome = type(error).__name__
                self._failed(f"{kind}: {outcome}", f"{case.route} {json.dumps(body)}: {error!r}")
            self.outcomes[kind, outcome] += 1
            if outcome == "equal":
                self.seconds_of[kind].append(time.perf_counter() - start)

    async def _ask(self, case: Case, body: dict[str, Any]) -> str:
        async with self._client.stream("POST", case.route, json=body) as response:
            if response.status_code == 429:
                wait_s = float(response.headers["retry-after"])
                await response.aread()
                await asyncio.sleep(min(wait_s, 1.0))
                return "429"
            if response.status_code == 408:
                return "408"
            if response.status_code != 200:
                raise Failure(str(response.status_code), (await response.aread()).decode())
            if not body["stream"]:
                await response.aread()
                answer = answer_of(case.route, response.json())
                is_equal, texts = answer == case.answer, texts_of(case.route, answer)
            else:
                stream = Stream(case.route)
                async for data in events(response):
                    stream.add(data)
                texts = stream.texts()
                is_equal = texts == case.texts
        if any(reason == "timeout" for _, reason in texts):
            if all(whole.startswith(text) for (text, _), (whole, _) in zip(texts, case.texts, strict=True)):
                return "timeout"
            is_equal = False
        if not is_equal:
            raise Failure("another answer", f"{texts} instead of {case.texts}")
        return "equal"

    async def _ask_badly(self, rng: random.Random, case: Case, body: dict[str, Any]) -> str:
        spoil, status = rng.choice(BAD)
        response = await self._client.post(
            case.route, content=spoil(body), headers={"Content-Type": "application/json"}
        )
        if response.status_code == 429:
            return "429"
        if response.status_code != status or "error" not in response.json():
            raise Failure(f"{response.status_code} instead of {status}", response.text)
        return str(status)

    async def _ask_and_leave(self, rng: random.Random, case: Case, body: dict[str, Any]) -> str:
        """After some events of a stream, or after some time at whatever is going on then."""
        num_events = rng.randrange(8) if body["stream"] and rng.random() < 0.5 else None
        try:
            await asyncio.wait_for(
                self._read_some(case, body, num_events), rng.uniform(0, 0.5) if num_events is None else None
            )
        except asyncio.TimeoutError:
            pass
        return "left"

    async def _read_some(self, case: Case, body: dict[str, Any], num_events: int | None) -> None:
        async with self._client.stream("POST", case.route, json=body) as response:
            if response.status_code >= 500:
                raise Failure(str(response.status_code), (await response.aread()).decode())
            if num_events is None:
                await response.aread()
            elif num_events > 0:
                async for _ in events(response):
                    num_events -= 1
                    if num_events == 0:
                        return

    async def check_idle(self, before: dict[str, float]) -> None:
        """All that ran has ended and every KV block is free again."""
        for _ in range(100):
            now = await self.metrics()
            if not any(now[name] for name in IDLE) and now[KV_USAGE] == before[KV_USAGE]:
                return
            await asyncio.sleep(0.1)
        self._failed("not idle at the end", str({name: now[name] for name in (*IDLE, KV_USAGE)}))

    def check_memory(self) -> None:
        before, after = self.memory()
        if self._seconds >= MIN_SECONDS_OF_MEMORY and after > before * (1 + MAX_GROWTH):
            self._failed("memory grew", f"{before / 2**20:.0f} MiB to {after / 2**20:.0f} MiB")

    def memory(self) -> tuple[float, float]:
        """Median resident bytes in the second and in the last quarter of the time."""
        quarter = max(1, len(self.rss) // 4)
        return statistics.median(self.rss[quarter : 2 * quarter] or self.rss), statistics.median(
            self.rss[-quarter:]
        )

    def _failed(self, name: str, what: str) -> None:
        self.failures[name].append(what)


async def events(response: httpx.Response) -> AsyncIterator[str]:
    async for line in response.aiter_lines():
        if line.startswith("data: "):
            yield line.removeprefix("data: ")
        elif line and not line.startswith(":"):
            raise Failure("not a server-sent event", line)


async def measure(url: str, num_clients: int, seconds: float) -> Load:
    limits = httpx.Limits(max_connections=num_clients + 1, max_keepalive_connections=num_clients + 1)
    async with httpx.AsyncClient(base_url=url, timeout=90, limits=limits, trust_env=False) as client:
        load = Load(client, make_cases(random.Random(0)), num_clients, seconds)
        before = await load.metrics()
        await load.ask_alone()
        await asyncio.wait_for(load.run(), seconds + 120)
        await load.check_idle(before)
        load.check_memory()
        return load


def report(load: Load, num_clients: int, seconds: float) -> None:
    print(f"{num_clients} clients, {seconds:g} s, {load.num_requests} requests")
    print(f"{'request':18}{'outcome':24}{'count':>8}")
    for (kind, outcome), count in sorted(load.outcomes.items()):
        print(f"{kind:18}{outcome:24}{count:>8}")
    quantiles = {
        kind: [round(q, 3) for q in statistics.quantiles(values, n=100, method="inclusive")]
        for kind, values in load.seconds_of.items()
        if len(values) > 1
    }
    for kind, values in sorted(quantiles.items()):
        print(f"{kind}: {values[49]} s (half), {values[94]} s (95 of 100), {values[98]} s (99 of 100)")
    before, after = load.memory()
    rss_mib = [round(before / 2**20, 1), round(after / 2**20, 1)]
    print(f"resident memory: {rss_mib[0]} MiB in the second quarter, {rss_mib[1]} MiB in the last")
    for name, examples in load.failures.items():
        print(f"FAILED {len(examples)} times: {name}, such as {examples[0][:500]}")
    result = {
        "clients": num_clients,
        "seconds": seconds,
        "requests": load.num_requests,
        "outcomes": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(load.outcomes.items())},
        "p50_s": {kind: values[49] for kind, values in quantiles.items()},
        "p99_s": {kind: values[98] for kind, values in quantiles.items()},
        "rss_mib": [round(rss / 2**20) for rss in load.rss[:: max(1, len(load.rss) // 12)]],
        "failures": {name: len(examples) for name, examples in load.failures.items()},
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--url", help="a server that runs already, and has nothing else to do")
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--clients", type=int, default=200, choices=range(1, 1001), metavar="1..1000")
    parser.add_argument("--seconds", type=int, default=120, choices=range(1, 601), metavar="1..600")
    args = parser.parse_args()

    def run(url: str) -> Load:
        load = asyncio.run(measure(url, args.clients, args.seconds))
        report(load, args.clients, args.seconds)
        return load

    if args.url:
        load = run(args.url)
    else:
        with own_server(args.model) as url:
            load = run(url)
    sys.exit(1 if load.failures else 0)


if __name__ == "__main__":
    main()
