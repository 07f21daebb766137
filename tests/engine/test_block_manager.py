from __future__ import annotations

from pocketlm.engine.block_manager import BlockManager
from pocketlm.engine.sequence import Sequence
from pocketlm.sampling import SamplingParams

BLOCK_SIZE = 4


def make_manager(num_blocks: int, *, prefix_caching: bool = True) -> BlockManager:
    return BlockManager(num_blocks, BLOCK_SIZE, prefix_caching)


def make_sequence(token_ids: list[int]) -> Sequence:
    return Sequence(0, token_ids, SamplingParams(), seed=0, max_new_tokens=100)


def admit(manager: BlockManager, seq: Sequence) -> bool:
    cached = manager.find_cached(seq)
    return manager.admit(seq, cached, seq.num_tokens - len(cached) * BLOCK_SIZE)


def compute(manager: BlockManager, token_ids: list[int]) -> Sequence:
    """A sequence with all its tokens admitted and computed."""
    seq = make_sequence(token_ids)
    assert admit(manager, seq)
    manager.commit(seq, seq.num_pending_tokens)
    return seq


def test_a_sequence_gets_the_blocks_its_tokens_need() -> None:
    manager = make_manager(5)
    seq = make_sequence(list(range(5)))
    assert admit(manager, seq)
    assert len(set(seq.block_table)) == 2
    assert manager.num_free_blocks == 3


def test_grow_takes_a_block_only_when_the_last_one_is_full() -> None:
    manager = make_manager(5)
    seq = compute(manager, list(range(7)))
    seq.append(7)
    assert manager.grow(seq, 1)
    assert len(seq.block_table) == 2
    manager.commit(seq, 1)
    seq.append(8)
    assert manager.grow(seq, 1)
    assert len(seq.block_table) == 3


def test_grow_twice_for_the_same_tokens_takes_nothing_more() -> None:
    manager = make_manager(5)
    seq = make_sequence(list(range(8)))
    assert manager.admit(seq, [], 8)
    assert manager.grow(seq, 8)
    assert len(seq.block_table) == 2


def test_too_few_blocks_change_nothing() -> None:
    manager = make_manager(3)
    first = compute(manager, list(range(8)))
    second = make_sequence(list(range(100, 108)))
    assert not admit(manager, second)
    assert second.block_table == []
    first.token_ids += range(8)
    assert not manager.grow(first, 8)
    assert len(first.block_table) == 2
    assert manager.num_free_blocks == 1
    manager.check_integrity([first])


def test_free_gives_all_blocks_back() -> None:
    manager = make_manager(3)
    seq = compute(manager, list(range(12)))
    assert manager.num_free_blocks == 0
    manager.free(seq)
    assert manager.num_free_blocks == 3
    assert (seq.block_table, seq.num_computed_tokens) == ([], 0)
    manager.check_integrity([])


def test_sequences_that_begin_alike_share_full_blocks() -> None:
    manager = make_manager(10)
    first = compute(manager, [1, 2, 3, 4, 5, 6, 7, 8, 9])
    second = compute(manager, [1, 2, 3, 4, 5, 6, 7, 8, 10, 11])
    assert second.num_cached_tokens == 8
    assert second.block_table[:2] == first.block_table[:2]
    assert second.block_table[2] != first.block_table[2]
    manager.check_integrity([first, second])


def test_shared_blocks_live_until_the_last_user_is_gone() -> None:
    manager = make_manager(10)
    first, second = compute(manager, list(range(9))), compute(manager, list(range(9)))
    manager.free(first)
    manager.check_integrity([second])
    assert manager.num_free_blocks == 7
    manager.free(second)
    assert manager.num_free_blocks == 10


def test_the_blocks_of_a_finished_sequence_are_found_again() -> None:
    manager = make_manager(10)
    manager.free(compute(manager, list(range(9))))
    assert compute(manager, list(range(9))).num_cached_tokens == 8


def test_at_least_one_token_is_left_to_compute() -> None:
    manager = make_manager(10)
    manager.free(compute(manager, list(range(8))))
    assert compute(manager, list(range(8))).num_cached_tokens == 4


def test_a_block_is_known_by_all_tokens_before_it() -> None:
    manager = make_manager(10)
    manager.free(compute(manager, [1, 1, 1, 1, 5, 6, 7, 8, 9]))
    assert compute(manager, [2, 2, 2, 2, 5, 6, 7, 8, 9]).num_cached_tokens == 0


def test_token_ids_are_not_run_together_in_the_digest() -> None:
    manager = make_manager(10)
    manager.free(compute(manager, [1, 256, 0, 0, 9]))
    assert compute(manager, [257, 0, 0, 0, 9]).num_cached_tokens == 0


def test_blocks_that_are_not_computed_are_not_shared() -> None:
    manager = make_manager(10)
    first = make_sequence(list(range(9)))
    assert admit(manager, first)
    manager.commit(first, 5)
    second = make_sequence(list(range(9)))
    assert admit(manager, second)
    assert second.num_cached_tokens == 4


def test_output_tokens_are_cached_as_well() -> None:
    manager = make_manager(10)
    seq = compute(manager, [0, 1, 2])
    for token_id in (3, 4):
        seq.append(token_id)
        assert manager.grow(seq, 1)
        manager.commit(seq, 1)
    manager.free(seq)
    assert compute(manager, [0, 1, 2, 3, 9]).num_cached_tokens == 4


def test_the_first_to_compute_a_block_keeps_the_digest() -> None:
    manager = make_manager(10)
    first, second = make_sequence(list(range(9))), make_sequence(list(range(9)))
    assert admit(manager, first)
    assert admit(manager, second)
    manager.commit(first, 9)
    manager.commit(second, 9)
    manager.check_integrity([first, second])
    assert manager.find_cached(make_sequence(list(range(9)))) == first.block_table[:2]


def test_a_reused_block_is_forgotten() -> None:
    manager = make_manager(2)
    manager.free(compute(manager, list(range(8))))
    manager.free(compute(manager, list(range(100, 108))))
    assert manager.find_cached(make_sequence(list(range(8)))) == []
    manager.check_integrity([])


def test_the_tail_is_evicted_before_the_head() -> None:
    manager = make_manager(4)
    manager.free(compute(manager, list(range(16))))
    manager.free(compute(manager, [100, 101]))
    assert len(manager.find_cached(make_sequence(list(range(17))))) == 3


def test_the_least_recently_used_is_evicted_first() -> None:
    manager = make_manager(4)
    old, new = list(range(5)), list(range(100, 105))
    manager.free(compute(manager, old))
    manager.free(compute(manager, new))
    manager.free(compute(manager, old))  # used once more
    manager.free(compute(manager, list(range(200, 212))))
    assert len(manager.find_cached(make_sequence(old))) == 1
    assert manager.find_cached(make_sequence(new)) == []


def test_blocks_that_hold_nothing_are_taken_before_cached_ones() -> None:
    manager = make_manager(3)
    manager.free(compute(manager, list(range(8))))
    manager.free(compute(manager, [100, 101]))
    manager.free(compute(manager, [100, 101]))
    assert len(manager.find_cached(make_sequence(list(range(9))))) == 2


def test_a_free_cached_block_cannot_be_promised_twice() -> None:
    manager = make_manager(3)
    manager.free(compute(manager, list(range(8))))
    seq = make_sequence([*range(8), *range(100, 108)])
    cached = manager.find_cached(seq)
    assert len(cached) == 2
    assert not manager.admit(seq, cached, 8)  # one free block holds nothing, two are the cached ones
    assert manager.admit(seq, cached, 4)
    manager.check_integrity([seq])


def test_hits_are_counted_in_tokens_and_only_on_admission() -> None:
    manager = make_manager(4)
    running = compute(manager, list(range(9)))
    assert not admit(manager, make_sequence([*range(8), *range(100, 108)]))
    assert (manager.prefix_cache_queries, manager.prefix_cache_hits) == (9, 0)
    compute(manager, [*range(8), 100])
    assert (manager.prefix_cache_queries, manager.prefix_cache_hits) == (18, 8)
    manager.free(running)


def test_without_prefix_caching_nothing_is_shared_or_counted() -> None:
    manager = make_manager(10, prefix_caching=False)
    manager.free(compute(manager, list(range(9))))
    assert compute(manager, list(range(9))).num_cached_tokens == 0
    assert (manager.prefix_cache_queries, manager.prefix_cache_hits) == (0, 0)
