"""What every engine is asked to do."""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import ascii_lowercase, ascii_uppercase

# Of checkpoint.py's vocabulary, those that are whole words: text of them has the same ids again.
WORDS = [f" {a}{b}{c}" for a in ascii_lowercase for b in ascii_uppercase for c in ascii_lowercase]
FIRST_WORD_ID = 18508
WORD_IDS = range(FIRST_WORD_ID, FIRST_WORD_ID + len(WORDS))

TokenIds = list[int]


def text_of(prompt: TokenIds) -> str:
    return "".join(WORDS[token_id - FIRST_WORD_ID] for token_id in prompt)


@dataclass(frozen=True)
class Case:
    name: str
    num_streams: int
    num_prompt_tokens: int
    num_new_tokens: int
    over_http: bool = False

    @property
    def num_tokens(self) -> int:
        """That count: new ones, or those of the prompts where these are the work."""
        return self.num_streams * max(
            self.num_new_tokens, self.num_prompt_tokens * (self.num_new_tokens == 1)
        )

    def prompts(self, round_number: int) -> list[TokenIds]:
        """Equal for all engines in a round, and new in each, so that no prefix is known from before."""
        rng = random.Random(f"{self.name} {round_number}")
        return [rng.choices(WORD_IDS, k=self.num_prompt_tokens) for _ in range(self.num_streams)]


CASES = {
    case.name: case
    for case in (
        Case("1 stream", 1, 32, 64),
        Case("16 streams", 16, 32, 64),
        Case("64 streams", 64, 32, 64),
        Case("prefill", 4, 512, 1),
        Case("64 clients", 64, 32, 64, over_http=True),
    )
}
SANITY = Case("sanity", 1, 32, 16)  # the tokens of this are compared
