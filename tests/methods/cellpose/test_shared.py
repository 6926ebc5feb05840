"""Tiles that several windows ask for: computed once, kept within bounds, never waited for in a circle."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier, Event
from typing import TYPE_CHECKING

import numpy as np
import pytest

from spatialdata_segment.methods.cellpose.shared import SharedTiles

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from spatialdata_segment.methods.cellpose.shared import Result


def result(value: float) -> Result:
    return np.full(10, value, np.float32), np.full(1, value, np.float32)


class Computer:
    """Computes a key's own number, and counts how often."""

    def __init__(self, keys: Sequence[int], computed: Counter[int]) -> None:
        self.keys, self.computed = keys, computed

    def __call__(self, which: Sequence[int]) -> Iterator[tuple[int, Result]]:
        for at in which:
            self.computed[self.keys[at]] += 1
            yield at, result(self.keys[at])


def values(shared: SharedTiles, keys: Sequence[int], computed: Counter[int]) -> list[float]:
    found = dict(shared.take(keys, Computer(keys, computed)))
    return [float(found[at][0][0]) for at in range(len(keys))]


def test_a_key_is_computed_once() -> None:
    shared, computed = SharedTiles(), Counter[int]()
    assert values(shared, [1, 2, 3], computed) == [1, 2, 3]
    assert values(shared, [3, 4, 1], computed) == [3, 4, 1]
    assert computed == {1: 1, 2: 1, 3: 1, 4: 1}


def test_what_nobody_else_asks_for_is_not_kept() -> None:
    shared, computed = SharedTiles(), Counter[int]()
    for _ in range(2):
        found = dict(shared.take([None, 2, None, 4], Computer([1, 2, 3, 4], computed)))
        assert [float(found[at][0][0]) for at in range(4)] == [1, 2, 3, 4]
    assert computed == {1: 2, 2: 1, 3: 2, 4: 1}


def test_the_oldest_are_dropped() -> None:
    shared, computed = SharedTiles(kept_bytes=3 * 44), Counter[int]()
    values(shared, [1, 2, 3], computed)
    values(shared, [1], computed)  # used again: 2 is the oldest now
    values(shared, [4], computed)
    assert values(shared, [1, 3, 4], computed) == [1, 3, 4]
    assert computed[2] == 1
    values(shared, [2], computed)
    assert computed == {1: 1, 2: 2, 3: 1, 4: 1}


def test_what_failed_is_computed_by_who_waits_for_it() -> None:
    shared, computed = SharedTiles(), Counter[int]()
    claimed, go_on = Event(), Event()

    def fails(which: Sequence[int]) -> Iterator[tuple[int, Result]]:
        claimed.set()
        go_on.wait(10)
        raise OSError("out of memory")
        yield 0, result(0)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(lambda: dict(shared.take([1, 2], fails)))
        assert claimed.wait(10)
        second = pool.submit(values, shared, [2, 3], computed)
        go_on.set()
        with pytest.raises(OSError, match="out of memory"):
            first.result(10)
        assert second.result(10) == [2, 3]
    assert values(shared, [1], computed) == [1]


def test_an_iteration_that_is_left_early_lets_others_go_on() -> None:
    shared, computed = SharedTiles(), Counter[int]()
    found = shared.take([1, 2], Computer([1, 2], computed))
    next(found)
    found.close()  # type: ignore[attr-defined]
    assert values(shared, [2, 1], computed) == [2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_threads_agree_whatever_they_ask_for(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared, computed = SharedTiles(kept_bytes=8 * 44), Counter[int]()
    wanted = [rng.permutation(12)[: rng.integers(1, 12)].tolist() for _ in range(24)]
    barrier = Barrier(4)

    def run(part: list[list[int]]) -> list[list[float]]:
        barrier.wait(10)
        return [values(shared, keys, computed) for keys in part]

    with ThreadPoolExecutor(4) as pool:
        parts = [wanted[k::4] for k in range(4)]
        for part, found in zip(parts, pool.map(run, parts, timeout=60), strict=True):
            assert found == part
