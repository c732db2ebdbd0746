"""The memo: bounded in bytes, the oldest entries forgotten first, answers always complete."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from fuse.memo import ENTRY_BYTES, Memo


class Counted:
    """Makes texts of numbers, and remembers which numbers it was asked for."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def __call__(self, keys: list[int]) -> Sequence[str]:
        self.made += keys
        return [str(key) * 10 for key in keys]


def memo_of(entries: int) -> Memo[int, str]:
    """A memo with room for so many entries of 100 bytes."""
    return Memo(lambda key, value: 100, max_bytes=entries * (100 + ENTRY_BYTES))


def test_values_are_made_once_and_all_new_ones_together() -> None:
    memo, make = memo_of(10), Counted()
    assert memo.look_up([1, 2, 1], make) == ["1" * 10, "2" * 10, "1" * 10]
    assert memo.look_up([2, 3], make) == ["2" * 10, "3" * 10]
    assert make.made == [1, 2, 3]
    assert 3 in memo and memo[3] == "3" * 10 and len(memo) == 3


def test_the_oldest_entries_are_forgotten_first() -> None:
    memo, make = memo_of(3), Counted()
    memo.look_up([1, 2, 3], make)
    memo.look_up([1, 4], make)
    assert [key in memo for key in (1, 2, 3, 4)] == [False, True, True, True]


def test_a_look_up_larger_than_the_bound_is_still_answered() -> None:
    memo, make = memo_of(2), Counted()
    memo.look_up([100, 101], make)
    keys = list(range(20))
    assert memo.look_up([*keys, 100], make) == [str(key) * 10 for key in [*keys, 100]]
    assert len(memo) == 2 and memo.num_bytes == 2 * (100 + ENTRY_BYTES)


def test_an_entry_larger_than_the_bound_is_answered_and_not_kept() -> None:
    memo: Memo[int, str] = Memo(lambda key, value: len(value), max_bytes=ENTRY_BYTES + 50)
    assert memo.look_up([1], lambda keys: ["x" * 1000]) == ["x" * 1000]
    assert len(memo) == 0 and memo.num_bytes == 0


def test_clear_forgets_everything() -> None:
    memo, make = memo_of(5), Counted()
    memo.look_up([1, 2], make)
    memo.clear()
    assert len(memo) == 0 and memo.num_bytes == 0 and 1 not in memo
    assert memo.look_up([1], make) == ["1" * 10] and make.made == [1, 2, 1]


def test_a_replaced_value_is_counted_by_its_own_size() -> None:
    memo: Memo[int, str] = Memo(lambda key, value: len(value))
    memo[1] = "x" * 10
    memo[1] = "x" * 500
    assert memo.num_bytes == ENTRY_BYTES + 500 and memo[1] == "x" * 500
    memo.clear()
    memo[1] = "x"
    assert memo.num_bytes == ENTRY_BYTES + 1


@given(st.lists(st.lists(st.integers(0, 9), max_size=12)), st.integers(0, 6))
def test_every_answer_is_right_and_the_bound_is_kept(asked: list[list[int]], room: int) -> None:
    memo = memo_of(room)
    for keys in asked:
        assert memo.look_up(keys, Counted()) == [str(key) * 10 for key in keys]
        assert len(memo) <= room
        assert memo.num_bytes == len(memo) * (100 + ENTRY_BYTES)
