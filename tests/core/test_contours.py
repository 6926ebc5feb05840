"""Outlines: hand-drawn cases, and properties on noise, where diagonal contacts and islands abound."""

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely.geometry import MultiPolygon, Polygon, box

from spatialdata_segment.core.contours import Outlines, fill, merge, trace
from spatialdata_segment.errors import InputError


def draw(picture: str, dtype: str = "uint32") -> np.ndarray:
    """Return the labels of a picture of digits, one row a line, 0 or . = background."""
    rows = [[int(c) for c in line.strip().replace(".", "0")] for line in picture.split()]
    return locked(np.array(rows, dtype))


def locked(labels: np.ndarray) -> np.ndarray:
    labels.flags.writeable = False
    return labels


def exact(outlines: Outlines) -> list[tuple[int, bytes]]:
    return list(zip(outlines.ids.tolist(), shapely.to_wkb(outlines.geometry), strict=True))


def check(labels: np.ndarray, outlines: Outlines, offset: tuple[int, int] = (0, 0)) -> None:
    ids, area = np.unique(labels[labels > 0], return_counts=True)
    assert outlines.ids.tolist() == ids.tolist()
    assert outlines.ids.dtype == np.int64
    assert shapely.is_valid(outlines.geometry).all()
    assert shapely.area(outlines.geometry).tolist() == area.tolist()
    simplified = shapely.simplify(outlines.geometry, 0)
    rings = shapely.get_parts(outlines.geometry)
    assert np.array_equal(shapely.area(simplified), area)
    assert all(turns(r) for p in rings for r in (p.exterior, *p.interiors))
    assert all(p.exterior.is_ccw and not any(r.is_ccw for r in p.interiors) for p in rings)
    back = np.zeros_like(labels)
    fill(back, outlines.geometry, outlines.ids, offset)
    assert np.array_equal(back, labels)


def turns(ring: shapely.LinearRing) -> bool:
    """Tell whether every vertex is a corner between a horizontal and a vertical edge."""
    step = np.diff(shapely.get_coordinates(ring), axis=0)
    horizontal = step[:, 1] == 0
    return bool((horizontal != np.roll(horizontal, 1)).all() and (np.abs(step).sum(1) > 0).all())


@st.composite
def noise(draw_: st.DrawFn) -> np.ndarray:
    shape = draw_(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    factor = draw_(st.sampled_from([1, 7, 2**40]))
    n = draw_(st.integers(1, 3))
    return locked(draw_(arrays(np.int64, shape, elements=st.integers(0, n), fill=st.nothing())) * factor)


def test_pixels_10_to_19_have_the_bounds_10_to_20() -> None:
    labels = np.zeros((30, 40), np.uint16)
    labels[10:20, 15:35] = 3
    outlines = trace(locked(labels))
    assert outlines.ids.tolist() == [3]
    assert outlines.geometry[0].equals_exact(Polygon([(15, 10), (35, 10), (35, 20), (15, 20)]))
    assert trace(labels, (100, 1000)).geometry[0].bounds == (1015, 110, 1035, 120)


@pytest.mark.parametrize(
    ("picture", "expected"),
    [
        ("1. .1", MultiPolygon([box(0, 0, 1, 1), box(1, 1, 2, 2)])),
        (".1 1.", MultiPolygon([box(1, 0, 2, 1), box(0, 1, 1, 2)])),
        ("111 1.1 111", Polygon(box(0, 0, 3, 3).exterior, [box(1, 1, 2, 2).exterior])),
        (
            "11. 1.1 111",
            Polygon([(0, 0), (2, 0), (2, 1), (3, 1), (3, 3), (0, 3)], [box(1, 1, 2, 2).exterior]),
        ),
        (
            "1111 1.11 11.1 1111",
            Polygon(box(0, 0, 4, 4).exterior, [box(1, 1, 2, 2).exterior, box(2, 2, 3, 3).exterior]),
        ),
        (
            "11111 1...1 1.1.1 1...1 11111",
            MultiPolygon([Polygon(box(0, 0, 5, 5).exterior, [box(1, 1, 4, 4).exterior]), box(2, 2, 3, 3)]),
        ),
        (
            "1111 1..1 1.11 111.",
            Polygon(
                [(0, 0), (4, 0), (4, 3), (3, 3), (3, 4), (0, 4)],
                [[(1, 1), (3, 1), (3, 2), (2, 2), (2, 3), (1, 3)]],
            ),
        ),
    ],
    ids=["diagonal", "antidiagonal", "hole", "hole at a corner", "holes touch", "island", "pinched L"],
)
def test_hand_drawn(picture: str, expected: shapely.Geometry) -> None:
    labels = draw(picture)
    outlines = trace(labels)
    check(labels, outlines)
    assert outlines.geometry[0].normalize().equals_exact(expected.normalize())


def test_islands_of_islands_and_other_ids_in_the_holes() -> None:
    labels = draw(
        """
        1111111112
        1.......12
        1.11111.12
        1.1222111.
        1.1213111.
        1.1222111.
        1.111111.1
        1........1
        1111111111
        """
    )
    check(labels, trace(labels))
    assert [len(shapely.get_parts(g)) for g in trace(labels).geometry] == [2, 2, 1]


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", ">u2", ">u4", ">i8"])
def test_every_integer_dtype_gives_the_same(dtype: str) -> None:
    labels = draw("112 .12 3.3", dtype)
    assert exact(trace(labels)) == exact(trace(draw("112 .12 3.3")))
    assert exact(trace(labels[:, ::-1].T)) == exact(trace(np.ascontiguousarray(labels[:, ::-1].T)))


@pytest.mark.parametrize(("dtype", "value"), [("u4", 2**32 - 1), ("u8", 2**63 - 1), ("i8", 2**40), ("u1", 255)])
def test_large_ids(dtype: str, value: int) -> None:
    labels = np.zeros((2, 3), dtype)
    labels[0, 1] = value
    assert trace(locked(labels)).ids.tolist() == [value]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros((2, 2)), "float64"),
        (np.zeros((2, 2), bool), "bool"),
        (np.zeros((2, 2, 2), int), r"\(2, 2, 2\)"),
        (np.array([[0, -4]]), "-4"),
        (np.array([[0, 2**63]], np.uint64), "9223372036854775808"),
    ],
)
def test_refuses_what_are_not_labels(labels: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        trace(labels)


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (4, 4)])
def test_no_object(shape: tuple[int, int]) -> None:
    assert len(trace(np.zeros(shape, np.uint32))) == 0
    assert len(merge([trace(np.zeros(shape, np.uint32))])) == 0
    assert len(merge([])) == 0


@given(noise(), st.tuples(st.integers(0, 90), st.integers(0, 90)))
@settings(deadline=None, max_examples=300)
def test_valid_exact_and_back(labels: np.ndarray, offset: tuple[int, int]) -> None:
    check(labels, trace(labels, offset), offset)


@given(noise(), st.data())
@settings(deadline=None, max_examples=300)
def test_merge_is_the_trace_of_the_whole(labels: np.ndarray, data: st.DataObject) -> None:
    cuts = [sorted({0, n, *data.draw(st.lists(st.integers(0, n), max_size=4))}) for n in labels.shape]
    tiles = [
        trace(labels[y0:y1, x0:x1], (y0, x0))
        for y0, y1 in zip(cuts[0][:-1], cuts[0][1:], strict=True)
        for x0, x1 in zip(cuts[1][:-1], cuts[1][1:], strict=True)
    ]
    shuffled = data.draw(st.permutations(tiles))
    assert exact(merge(shuffled)) == exact(trace(labels))
    half = len(shuffled) // 2
    assert exact(merge([merge(shuffled[:half]), merge(shuffled[half:])])) == exact(trace(labels))


def test_large_noise_is_valid_and_exact() -> None:
    labels = locked((np.random.default_rng(0).random((400, 500)) < 0.6).astype(np.uint16))
    outlines = trace(labels)
    assert shapely.is_valid(outlines.geometry[0])
    back = np.zeros_like(labels)
    fill(back, outlines.geometry, outlines.ids)
    assert np.array_equal(back, labels)


def filled(
    geometries: list[shapely.Geometry | None], shape: tuple[int, int], at: tuple[int, int] = (0, 0)
) -> np.ndarray:
    out = np.zeros(shape, np.uint32)
    fill(out, np.array(geometries, object), np.arange(1, len(geometries) + 1), at)
    return out


@given(
    st.lists(
        st.lists(st.tuples(*[st.floats(-4, 16, width=16)] * 2), min_size=3, max_size=7),
        min_size=1,
        max_size=4,
    ),
    st.integers(0, 12),
    st.integers(0, 12),
)
@settings(deadline=None, max_examples=150)
def test_fill_takes_the_pixels_whose_centres_lie_inside(rings: list, y: int, x: int) -> None:
    polygons = [p for p in map(Polygon, rings) if p.is_valid]
    whole = filled(polygons, (12, 12))
    centres = shapely.points(*np.meshgrid(np.arange(12) + 0.5, np.arange(12) + 0.5))
    expected = np.zeros((12, 12), int)
    unclear = np.zeros((12, 12), bool)
    for i, p in reversed(list(enumerate(polygons, 1))):
        expected[shapely.contains(p, centres)] = i
        unclear |= shapely.distance(p.boundary, centres) < 1e-9
    assert np.array_equal(whole[~unclear], expected[~unclear])
    corners = [(slice(a, b), slice(c, d)) for a, b in ((0, y), (y, 12)) for c, d in ((0, x), (x, 12))]
    for rows, columns in corners:
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        assert np.array_equal(filled(polygons, shape, (rows.start, columns.start)), whole[rows, columns])


def test_fill_rules() -> None:
    first, second = box(0, 0, 2.5, 1), box(2.5, 0, 4, 1)
    assert filled([first, second], (1, 4)).tolist() == [[1, 1, 2, 2]]  # a centre on an edge: the right one
    assert filled([box(0, 0, 3, 1), box(1, 0, 4, 1)], (1, 4)).tolist() == [[1, 1, 1, 2]]  # the first wins
    assert filled([None, Polygon(), box(0, 0, 1, 1)], (1, 2)).tolist() == [[3, 0]]
    ring = Polygon(box(0, 0, 3, 3).exterior, [box(1, 1, 2, 2).exterior])
    assert filled([MultiPolygon([ring, box(4, 0, 5, 1)])], (3, 5)).tolist() == [
        [1, 1, 1, 0, 1],
        [1, 0, 1, 0, 0],
        [1, 1, 1, 0, 0],
    ]
    assert filled([box(-1e300, -1e300, 1e300, 1e300)], (2, 2)).tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize("teeth", [3, 4, 5, 8, 9, 40])
def test_fill_of_a_comb_that_cuts_its_rows_many_times(teeth: int) -> None:
    x = np.arange(teeth) * 4.0
    upper = np.stack((x, x + 1, x + 3, x + 4), axis=-1).ravel()
    comb = Polygon([*zip(upper, np.tile([0, 6, 6, 0], teeth), strict=True), (x[-1] + 4, 9), (0, 9)])
    beside = box(-2, 0, 4 * teeth + 2, 9)
    columns, rows = np.meshgrid(np.arange(4 * teeth) + 0.5, np.arange(9) + 0.5)
    expected = np.where(shapely.contains_xy(comb, columns, rows), 1, 2)
    assert np.array_equal(filled([comb, beside], (9, 4 * teeth)), expected)


def test_fill_leaves_what_is_drawn() -> None:
    out = np.array([[0, 9, 0]], np.int64)
    fill(out, np.array([box(0, 0, 3, 1)], object), np.array([2**40]))
    assert out.tolist() == [[2**40, 9, 2**40]]
