"""Pieces of a TIFF: read as they are written, those of strips decoded once, for images and for labels."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import sleep

import dask
import numpy as np
import pytest
import tifffile
import tifffile.zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment import read_image
from spatialdata_segment._images.lazy import Kept, Pixels, lazy_array
from spatialdata_segment.formats import read_labels


class Counted:
    """An array that says what was asked of it."""

    def __init__(self, array, pause=0.0):
        self.array, self.pause, self.seen = array, pause, []
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim

    def __getitem__(self, key):
        self.seen.append(key)
        sleep(self.pause)
        return self.array[key]


@st.composite
def windows(draw):
    """Return an array, the sides of its blocks, and indices into it."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    array = np.arange(np.prod(shape)).reshape(shape)

    def index(n):
        return st.integers(-n, n - 1) | st.slices(n).filter(lambda s: s.step in (None, 1))

    keys = draw(st.lists(st.tuples(*map(index, shape)), min_size=1, max_size=8))
    return array, [draw(st.integers(1, n)) for n in shape], keys


@given(windows(), st.sampled_from([0, 100, 10_000]))
@settings(max_examples=150, deadline=None)
def test_a_window_is_that_of_the_array(case, room):
    array, blocks, keys = case
    counted = Counted(array)
    kept = Kept(Pixels(counted, "a.tif"), blocks, room)
    for key in keys:
        assert np.array_equal(kept[key], array[key])
    held = [f.result().nbytes for f in kept._known.values()]
    assert sum(held) <= room or len(held) <= 1
    if room > array.nbytes:
        assert len(counted.seen) == len({str(k) for k in counted.seen})


def test_what_is_returned_is_no_part_of_what_is_kept():
    kept = Kept(Pixels(np.arange(12).reshape(3, 4), "a.tif"), (3, 4))
    kept[0:3, 0:4][:] = 9
    assert kept[1:2, 0:4].tolist() == [[4, 5, 6, 7]]


def test_threads_wait_for_the_first():
    counted = Counted(np.arange(100).reshape(10, 10), pause=0.1)
    kept = Kept(Pixels(counted, "a.tif"), (10, 10))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda i: kept[i : i + 3, 0:10], range(4)))
    assert all(np.array_equal(f, counted.array[i : i + 3]) for i, f in enumerate(found))
    assert len(counted.seen) == 1


def test_a_block_that_failed_is_tried_again():
    class Once(Counted):
        def __getitem__(self, key):
            if not self.seen:
                self.seen.append(key)
                raise OSError("gone")
            return super().__getitem__(key)

    kept = Kept(Pixels(Once(np.arange(4)), "a.tif"), (4,))
    with pytest.raises(ValueError, match=r"a\.tif cannot be decoded"):
        kept[0:4]
    assert kept[1:3].tolist() == [1, 2]


@pytest.fixture
def decoded(monkeypatch):
    """Return the names of the pieces of TIFFs that are decoded."""
    found = []
    get = tifffile.zarr.ZarrTiffStore.get

    async def counting(self, key, *args, **options):
        if key[0].isdigit():
            found.append(key)
        return await get(self, key, *args, **options)

    monkeypatch.setattr(tifffile.zarr.ZarrTiffStore, "get", counting)
    return found


PIXELS = np.random.default_rng(0).integers(0, 60_000, (2, 700, 300), dtype=np.uint16)
PIECES = {
    "one strip": ({"rowsperstrip": 700}, 2),
    "strips": ({"rowsperstrip": 100}, 14),
    "one tile": ({"tile": (704, 304)}, 2),
}


@pytest.mark.parametrize("name", PIECES)
@pytest.mark.parametrize("reader", ["image", "labels"])
def test_strips_are_decoded_once(tmp_path, decoded, name, reader):
    options, n_pieces = PIECES[name]
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression="zlib", photometric="minisblack", **options)
    lazy = read_image(tmp_path / "a.tif")[0].data if reader == "image" else read_labels(tmp_path / "a.tif")
    for optimize in (True, False):
        with dask.config.set({"optimization.fuse.active": optimize}):
            for y in range(0, 700, 90):
                part = np.s_[:, y : y + 90, 20:210]
                assert np.array_equal(lazy[part].compute(optimize_graph=optimize), PIXELS[part])
                assert np.array_equal(lazy[1, y].compute(optimize_graph=optimize), PIXELS[1, y])
    assert len(decoded) == len(set(decoded)) == n_pieces


def test_tiles_are_not_kept(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, compression="zlib", photometric="minisblack", tile=(64, 64))
    for lazy in (read_image(tmp_path / "a.tif")[0].data, read_labels(tmp_path / "a.tif")):
        assert lazy.chunksize == (1, 512, 300)
        assert not any(isinstance(v, Kept) for v in lazy.__dask_graph__().values())


def test_blocks_are_read_when_they_are_asked_for():
    for keeps in (False, True):
        counted = Counted(np.arange(1000))
        lazy = lazy_array(counted, (100,), "a.tif", keeps=keeps)
        assert lazy[250:420].sum().compute() == np.arange(250, 420).sum()
        assert len([key for (key,) in counted.seen if key.stop]) == 3  # of nothing dask asks for the type
