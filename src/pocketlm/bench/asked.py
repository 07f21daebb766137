"""Asked: one request as the client saw it."""

from __future__ import annotations

from dataclasses import dataclass, field


class AskFailed(Exception):
    """A request ended without its answer. `kind` is a short name of the reason, to be counted."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass
class Asked:
    """Times are those of the monotonic clock."""

    due_at: float  # when it was to be sent; with an arrival rate this may be before it was sent
    arrived_at: list[float] = field(default_factory=list)  # set by the target for each piece of the answer
    num_tokens: int = 0  # of the answer; set by the target
    num_prompt_tokens: int | None = None  # set by the target, if it knows
    ended_at: float | None = None  # set by the load when the answer is whole
    error: AskFailed | None = None  # set by the load

    @property
    def is_complete(self) -> bool:
        return self.ended_at is not None and self.error is None

    @property
    def ttft_s(self) -> float | None:
        """Time to the first token, from when the request was due."""
        return self.arrived_at[0] - self.due_at if self.arrived_at else None

    @property
    def e2e_s(self) -> float | None:
        """From when the request was due to the end of its answer."""
        return None if self.ended_at is None else self.ended_at - self.due_at

    @property
    def gaps_s(self) -> list[float]:
        """Between one piece of the answer and the next."""
        return [b - a for a, b in zip(self.arrived_at, self.arrived_at[1:], strict=False)]

    @property
    def mean_itl_s(self) -> float | None:
        """Mean time from one token to the next, however many of them came in one piece."""
        if self.num_tokens < 2 or not self.arrived_at:
            return None
        return (self.arrived_at[-1] - self.arrived_at[0]) / (self.num_tokens - 1)
