"""BlockManager: which block of the KV cache belongs to whom, and what the free ones still hold."""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter, OrderedDict
from collections.abc import Iterable

from pocketlm.engine.sequence import Sequence


class BlockManager:
    """Fixed-size blocks, counted by reference, with automatic prefix caching.

    A full block is known by a digest of its tokens and of all tokens before them. Sequences that
    begin alike share such blocks; nobody writes to a full block, so sharing needs no copies. A free
    block keeps its content and its digest until it is needed for something else:

        free   [ holds nothing known by a digest | freed long ago ... freed just now ]
                 taken first                                           taken last
    """

    def __init__(self, num_blocks: int, block_size: int, prefix_caching: bool) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.prefix_caching = prefix_caching
        self.prefix_cache_queries = 0  # tokens of the sequences admitted
        self.prefix_cache_hits = 0  # those of them that were found
        self._ref_counts = [0] * num_blocks
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self._digests: list[bytes | None] = [None] * num_blocks  # of the blocks in the prefix cache
        self._cached: dict[bytes, int] = {}  # the other way round: digest -> block

    @property
    def num_free_blocks(self) -> int:
        return len(self._free)

    def find_cached(self, seq: Sequence) -> list[int]:
        """The cached blocks that `seq` begins with, short of the first token whose logits are wanted."""
        blocks: list[int] = []
        if self.prefix_caching:
            for index in range(seq.first_wanted // self.block_size):
                block = self._cached.get(self._digest(seq, index))
                if block is None:
                    break
                blocks.append(block)
        return blocks

    def admit(self, seq: Sequence, cached: list[int], num_tokens: int) -> bool:
        """Give `seq` what find_cached found and room for `num_tokens` more, or nothing and False."""
        num_new = self._num_blocks_for(len(cached) * self.block_size + num_tokens) - len(cached)
        num_revived = sum(self._ref_counts[block] == 0 for block in cached)
        if num_new + num_revived > len(self._free):
            return False
        for block in cached:
            if self._ref_counts[block] == 0:
                del self._free[block]
            self._ref_counts[block] += 1
        seq.block_table = list(cached)
        seq.num_computed_tokens = seq.num_cached_tokens = len(cached) * self.block_size
        if self.prefix_caching:
            self.prefix_cache_queries += seq.num_tokens
            self.prefix_cache_hits += seq.num_cached_tokens
        return self.grow(seq, num_tokens)

    def grow(self, seq: Sequence, num_tokens: int) -> bool:
        """Make room for the next `num_tokens` tokens of `seq`, or change nothing and return False."""
        num_new = self._num_blocks_for(seq.num_computed_tokens + num_tokens) - len(seq.block_table)
        if num_new > len(self._free):
            return False
        for _ in range(num_new):
            seq.block_table.append(self._take_free_block())
        return True

    def commit(self, seq: Sequence, num_tokens: int) -> None:
        """The next `num_tokens` tokens of `seq` are computed: offer the blocks they filled to others."""
        first = seq.num_computed_tokens // self.block_size
        seq.num_computed_tokens += num_tokens
        if not self.prefix_caching:
            return
        for index in range(first, seq.num_computed_tokens // self.block_size):
            digest = self._digest(seq, index)
            if digest not in self._cached:  # else another sequence computed the same before
                block = seq.block_table[index]
                self._cached[digest] = block
                self._digests[block] = digest

    def free(self, seq: Sequence) -> None:
        """Take all blocks of `seq` back, the tail first: a head without its tail is still of use."""
        for block in reversed(seq.block_table):
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                self._free[block] = None
                if self._digests[block] is None:
                    self._free.move_to_end(block, last=False)
        seq.block_table = []
        seq.num_computed_tokens = seq.num_cached_tokens = 0

    def check_integrity(self, sequences: Iterable[Sequence]) -> None:
        """Assert that the books balance, given every sequence that has blocks; for tests."""
        uses = Counter(block for seq in sequences for block in seq.block_table)
        assert self._ref_counts == [uses[block] for block in range(self.num_blocks)]
        assert self._free.keys() == set(range(self.num_blocks)) - uses.keys()
        assert self._cached == {
            digest: block for block, digest in enumerate(self._digests) if digest is not None
        }

    def _num_blocks_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.block_size)

    def _take_free_block(self) -> int:
        block, _ = self._free.popitem(last=False)
        digest = self._digests[block]
        if digest is not None:
            del self._cached[digest]
            self._digests[block] = None
        self._ref_counts[block] = 1
        return block

    def _digest(self, seq: Sequence, index: int) -> bytes:
        """The digest of block `index` of `seq`, which chains those of all blocks before it.

        Cryptographic: whoever found a collision could read from another's prompt.
        """
        digests = seq.block_digests
        while len(digests) <= index:
            start = len(digests) * self.block_size
            token_ids = array("i", seq.token_ids[start : start + self.block_size])
            parent = digests[-1] if digests else b""
            digests.append(hashlib.blake2b(parent + token_ids.tobytes(), digest_size=32).digest())
        return digests[index]
