"""Points are read by what their objects may fill, wherever they lie and however few."""

import numpy as np
import pytest

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.points import read_points, write_index, write_points

DTYPE = np.dtype([("point", "<i4", (2,)), ("prob", "<f4"), ("dist", "<f4", (40,))])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Two blocks, side by side, the first of more rows than one tile of an entry holds."""
    folder, rng, blocks = tmp_path_factory.mktemp("points"), np.random.default_rng(0), []
    for k, n in enumerate((40_000, 500)):
        points = np.zeros(n, DTYPE)
        flat = np.sort(rng.choice(400 * 200, n, replace=False))
        points["point"] = np.column_stack(np.divmod(flat, 200))
        points["point"][:, 1] += 200 * k
        points["prob"], points["dist"] = rng.random(n), rng.random((n, 40))
        reach = rng.integers(1, 5, (n, 1))
        boxes = np.concatenate([points["point"] - reach, points["point"] + reach], axis=1)
        write_points(folder, k, points, boxes)
        blocks.append((points, boxes))
    write_index(folder, range(2))
    return folder, *(np.concatenate(part) for part in zip(*blocks, strict=True))


@pytest.mark.parametrize(
    "box",
    [(0, 0, 400, 400), (390, 0, 400, 210), (0, 196, 400, 203), (17, 33, 18, 34), (0, 250, 9, 260), (-9, -9, 0, 0)],
)
def test_as_the_slow_way(written, box):
    folder, points, boxes = written
    low, high = np.array(box[:2]), np.array(box[2:])
    expected = points[np.all((boxes[:, :2] < high) & (boxes[:, 2:] > low), axis=1)]
    assert np.array_equal(read_points(folder, Box(box[:2], box[2:]), DTYPE), expected)
