"""Plan: what will be sent to each model, and what is asked of the answers."""

from __future__ import annotations

from dataclasses import dataclass

from pocketlm.bench.figures import SLO
from pocketlm.bench.load import Level


@dataclass(frozen=True)
class Plan:
    levels: tuple[Level, ...]
    num_words: int  # of each prompt
    num_tokens: int  # of each answer
    num_warmup: int  # requests before the first level
    slo: SLO | None
    seed: int  # of the prompts and the moments of arrival

    def described(self) -> list[str]:
        """In sentences, for whoever pays for it."""
        sent = ", ".join(f"{level.num_requests} with {level}" for level in self.levels)
        lines = [
            f"requests to each model: {self.num_warmup} to warm up, then {sent}",
            f"each has a prompt of {self.num_words} words and takes up to {self.num_tokens} new tokens; "
            f"at most {self.levels[0].max_seconds:g} s for each level; seed {self.seed}",
        ]
        if self.slo is not None:
            targets = (("TTFT", self.slo.ttft_ms), ("mean ITL", self.slo.itl_ms))
            shown = " and ".join(f"{name} of {ms:g} ms" for name, ms in targets if ms is not None)
            lines.append(f"goodput counts answers with at most a {shown}")
        return lines
