"""Target: what is put under load."""

from __future__ import annotations

from typing import Protocol

from pocketlm.bench.asked import Asked


class Target(Protocol):
    """A model that can be asked many times at once, from one event loop."""

    @property
    def name(self) -> str: ...

    async def ask(self, prompt: str, num_tokens: int, asked: Asked) -> None:
        """Have the prompt continued, and note in `asked` what arrives and when. AskFailed."""
