"""Boxes read straight from disk, against the array they are of."""

import numpy as np
import pytest
import zarr

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine.stored import Stored

PIXELS = np.random.default_rng(0).integers(0, 2**16, (4, 6, 37, 41), dtype=np.uint16)


@pytest.mark.parametrize("channels", [(0, 1, 2, 3), (2,), (1, 2), (3, 0), (0, 2), (1, 1), ()])
@pytest.mark.parametrize("box", [Box((0, 0, 0), (6, 37, 41)), Box((2, 5, 11), (3, 30, 40))], ids=str)
@pytest.mark.parametrize("shards", [None, (2, 6, 32, 32)])
def test_channels_of_a_box(tmp_path, channels, box, shards):
    array = zarr.create_array(tmp_path / "a.zarr", shape=PIXELS.shape, dtype="u2", chunks=(1, 3, 16, 16), shards=shards)
    array[:] = PIXELS
    found = Stored(zarr.open_array(tmp_path / "a.zarr", mode="r"), channels).read(box)
    np.testing.assert_array_equal(found, PIXELS[(list(channels), *box.slices)])
    assert found.dtype == PIXELS.dtype


@pytest.mark.parametrize(
    ("chunks", "shards", "fits"),
    [
        ((1, 16, 16), None, True),
        ((1, 64, 100), None, True),
        ((1, 16, 24), None, False),
        ((1, 16, 16), (1, 48, 48), False),
    ],
)
def test_fits(tmp_path, chunks, shards, fits):
    array = zarr.create_array(tmp_path / "a.zarr", shape=(2, 64, 100), dtype="u1", chunks=chunks, shards=shards)
    assert Stored(array, (0,)).fits((32, 32)) is fits
