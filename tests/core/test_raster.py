"""Rings in flat arrays, and which of them meet which block."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import MultiPolygon, Polygon, box

from spatialdata_segment.core.raster import Hits, Rings

HOLED = Polygon(box(0, 0, 9, 9).exterior, [box(1, 1, 3, 3).exterior, box(5, 5, 6, 6).exterior])
SHAPES = np.array([box(0, 0, 1, 1), None, HOLED, Polygon(), MultiPolygon([HOLED, box(20, 0, 21.5, 3)])], object)


def test_rings_are_those_of_the_geometries_in_any_batches():
    for size in (1, 2, 5):
        rings = Rings.of(SHAPES[k : k + size] for k in range(0, len(SHAPES), size))
        lines = shapely.get_rings(shapely.get_parts(SHAPES))
        assert np.array_equal(rings.points, shapely.get_coordinates(lines))
        assert rings.ring_stop.tolist() == np.cumsum(shapely.get_num_coordinates(lines)).tolist()
        assert rings.stop.tolist() == [1, 1, 4, 4, 8]
        assert np.array_equal(rings.bounds, shapely.bounds(SHAPES), equal_nan=True)
    assert len(Rings.of([])) == 0


def test_coordinates_are_kept_exactly_in_as_few_bytes_as_do():
    whole, third = np.array([box(0, 0, 2**24, 1.5)]), np.array([box(0, 0, 1 / 3, 1)])
    assert Rings.of([whole]).points.dtype == np.float32
    assert Rings.of([np.array([box(0, 0, 2**24 + 1, 1)])]).points.dtype == np.float64
    for parts in ([whole, third], [third, whole]):
        rings = Rings.of(parts)
        assert rings.points.dtype == np.float64
        assert np.array_equal(rings.points, shapely.get_coordinates(np.concatenate(parts)))


@given(
    st.lists(st.tuples(*[st.floats(-5, 25, width=16)] * 4, st.integers(-1, 4)), max_size=8),
    *[st.lists(st.integers(1, 9), min_size=1, max_size=4) for _ in range(3)],
)
@settings(deadline=None, max_examples=60)
def test_a_block_has_every_geometry_of_which_it_may_hold_a_pixel(boxes, depth, rows, columns):
    bounds = np.array([(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d, _ in boxes]).reshape(-1, 4)
    z = np.array([b[-1] for b in boxes], np.int64)
    for planes, chunks in ((None, (rows, columns)), (z, (depth, rows, columns))):
        hits = Hits.of(bounds, chunks, planes)
        edges = [np.cumsum((0, *c)) for c in ((1,), *chunks)[-3:]]
        for block, (k, i, j) in enumerate(np.ndindex(*(len(e) - 1 for e in edges))):
            (z0, z1), (y0, y1), (x0, x1) = (e[n : n + 2] for e, n in zip(edges, (k, i, j), strict=True))
            found = hits.within(block).tolist()
            assert found == sorted(set(found))
            for g, (left, top, right, bottom) in enumerate(bounds):
                inside = planes is None or z0 <= z[g] < z1
                holds = inside and any(left <= x + 0.5 <= right for x in range(x0, x1))
                if holds and any(top <= y + 0.5 <= bottom for y in range(y0, y1)) and left < right and top < bottom:
                    assert g in found
                if not inside or left >= x1 or right <= x0 or top >= y1 or bottom <= y0:
                    assert g not in found
