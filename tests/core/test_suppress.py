import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment.core.suppress import greedy

NO_EDGES = np.zeros((0, 2), int)


def slow(scores, anchors, edges):
    kept = set()
    for i in sorted(range(len(scores)), key=lambda i: (-scores[i], *anchors[i])):
        if not any({i, k} == set(e) for k in kept for e in edges):
            kept.add(i)
    return [i in kept for i in range(len(scores))]


@settings(deadline=None)
@given(st.data(), st.integers(1, 12))
def test_as_the_slow_one(data, n):
    scores = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)), float)
    anchors = np.array(data.draw(st.permutations([(i // 4, i % 4) for i in range(n)])))
    pair = st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)).filter(lambda p: p[0] != p[1])
    edges = np.array(data.draw(st.lists(pair, max_size=20)) if n > 1 else [], int).reshape(-1, 2)
    kept = greedy(scores, anchors, edges)
    assert kept.tolist() == slow(scores, anchors.tolist(), edges.tolist())
    order = np.array(data.draw(st.permutations(range(n))))
    moved = np.argsort(order)[edges]
    assert np.array_equal(greedy(scores[order], anchors[order], moved[::-1]), kept[order])


def test_a_chain_is_followed_to_its_end():
    n = 1001
    chain = np.column_stack([np.arange(n - 1), np.arange(1, n)])
    anchors = np.column_stack([np.zeros(n, int), np.arange(n)])
    assert np.array_equal(greedy(np.arange(n)[::-1], anchors, chain), np.arange(n) % 2 == 0)
    assert np.array_equal(greedy(np.zeros(n), anchors, chain), np.arange(n) % 2 == 0)


def test_nothing_and_nobody():
    assert greedy(np.zeros(0), np.zeros((0, 2), int), NO_EDGES).tolist() == []
    assert greedy(np.zeros(2), np.array([[0, 0], [0, 1]]), NO_EDGES).tolist() == [True, True]
