"""Synthetic tissue: the same pixels whatever the crop, and a truth that fits the picture."""

from __future__ import annotations

import subprocess
import sys
import zlib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.errors import InputError
from spatialdata_segment.testing import Tissue, strategies
from spatialdata_segment.testing._tissue_kernel import MAX_NUCLEI

PLAIN = Tissue((256, 300), seed=3)


def whole(tissue):
    return tissue.block(Box.whole(tissue.shape))


def ids(labels):
    return np.unique(labels[labels > 0])


def touches(labels):
    """Tell whether two objects share the edge or the corner of a pixel."""
    high = ndimage.maximum_filter(labels, 3)
    low = -ndimage.maximum_filter(-np.where(labels > 0, labels, 2**31).astype(np.int64), 3)
    return bool(((labels > 0) & (high != low)).any())


@pytest.mark.parametrize("tissue", [Tissue((700, 1100), seed=5), Tissue((40, 90, 150), seed=5, anisotropy=2.5)])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_crop_holds_the_bits_of_the_whole(tissue, data):
    start = tuple(data.draw(st.integers(0, n - 1)) for n in tissue.shape)
    stop = tuple(data.draw(st.integers(a + 1, min(n, a + 200))) for a, n in zip(start, tissue.shape, strict=True))
    crop, full = tissue.block(Box(start, stop)), _WHOLE.setdefault(tissue, whole(tissue))
    for part, all_ in zip(crop, full, strict=True):
        np.testing.assert_array_equal(part, all_[(..., *Box(start, stop).slices)])


_WHOLE: dict = {}


@pytest.mark.parametrize("chunks", [128, (100, 300), ((56, 200), (1, 299))])
def test_lazy_arrays_are_the_blocks(chunks):
    block = whole(PLAIN)
    for lazy, known in zip((PLAIN.image(chunks), PLAIN.nuclei(chunks), PLAIN.cells(chunks)), block, strict=True):
        assert (lazy.shape, lazy.dtype) == (known.shape, known.dtype)
        np.testing.assert_array_equal(lazy.compute(), known)
    np.testing.assert_array_equal(PLAIN.image(chunks)[:, 7:50, 200:].compute(), block.image[:, 7:50, 200:])


def test_the_same_in_another_process():
    code = (
        "import zlib; from spatialdata_segment.testing import Tissue;"
        "from spatialdata_segment.core.boxes import Box; shape = (256, 300);"
        "print(zlib.crc32(b''.join(a.tobytes() for a in Tissue(shape, seed=3).block(Box.whole(shape)))))"
    )
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert int(out) == zlib.crc32(b"".join(a.tobytes() for a in whole(PLAIN)))


def test_shape_only_cuts():
    np.testing.assert_array_equal(whole(replace(PLAIN, shape=(512, 400))).image[:, :256, :300], whole(PLAIN).image)


def test_far_from_the_origin():
    tissue = Tissue((2_000_000, 2_000_000), multinucleated=0)
    box = Box((1_999_700, 1_999_700), (2_000_000, 2_000_000))
    block, part = tissue.block(box), tissue.block(box.grow((-50, -50), box))
    assert block.cells.dtype == np.uint64
    np.testing.assert_array_equal(block.image[:, 50:-50, 50:-50], part.image)
    assert 150 < len(ids(block.cells)) < 270


@pytest.mark.parametrize("shape", [(400, 400), (24, 120, 120)])
def test_truth_is_consistent(shape):
    tissue = Tissue(shape, seed=1, multinucleated=0.3)
    block = whole(tissue)
    inside = block.nuclei > 0
    np.testing.assert_array_equal(tissue.cell_of(block.nuclei)[inside], block.cells[inside])
    assert set(tissue.cell_of(ids(block.nuclei))) <= set(ids(block.cells))
    image = block.image.astype(float)
    assert image[0][inside].mean() > 5 * image[0][~inside].mean()
    rim = (block.cells > 0) & (ndimage.minimum_filter(block.cells, 3) != ndimage.maximum_filter(block.cells, 3))
    assert image[1][rim].mean() > 1.8 * image[1][(block.cells > 0) & ~rim].mean()


def test_objects_are_in_one_piece():
    block = whole(replace(PLAIN, shape=(1000, 1000), multinucleated=0.2))
    box = np.ones((3, 3))
    for labels in (block.cells, block.nuclei):
        index = np.searchsorted(ids(labels), labels) + 1
        places = ndimage.find_objects(np.where(labels > 0, index, 0).astype(int))
        pieces = [ndimage.label(index[place] * (labels[place] > 0) == k + 1, box)[1] for k, place in enumerate(places)]
        assert np.mean(np.array(pieces) == 1) > 0.999


def test_defaults_are_crowded():
    block = whole(replace(PLAIN, shape=(1024, 1024)))
    assert 400 < 1024**2 / len(ids(block.cells)) < 600
    assert (block.cells > 0).mean() > 0.8
    assert touches(block.cells)


def test_cell_diameter():
    for diameter in (8, 20, 60):
        tissue = replace(PLAIN, shape=(800, 800), cell_diameter=diameter, density=1, touching=1)
        area = np.median(np.bincount(np.unique(whole(tissue).cells, return_inverse=True)[1].ravel())[1:])
        assert np.sqrt(4 * area / np.pi) == pytest.approx(diameter, rel=0.12)


def test_density_and_touching():
    count = [len(ids(whole(replace(PLAIN, density=d)).cells)) for d in (0, 0.3, 0.6, 1)]
    assert count[0] == 0
    assert count[1] / count[3] == pytest.approx(0.3, abs=0.15)
    assert count == sorted(count)
    assert not touches(whole(replace(PLAIN, touching=0)).cells)
    assert touches(whole(replace(PLAIN, touching=1)).cells)


def test_nuclei_per_cell():
    def several(**change):
        block = whole(replace(PLAIN, shape=(600, 600), **change))
        found = np.unique(PLAIN.cell_of(ids(block.nuclei)), return_counts=True)[1]
        return (found > 1).mean() if len(found) else -1, len(found) / len(ids(block.cells))

    assert several(multinucleated=0)[0] == 0
    assert several(multinucleated=0.5)[0] == pytest.approx(0.5, abs=0.1)
    assert several(multinucleated=1)[0] > 0.9
    assert several(multinucleated=0)[1] > 0.95
    assert several(anucleate=0.4)[1] == pytest.approx(0.6, abs=0.1)
    assert several(anucleate=1)[1] == 0


def test_light_noise_debris_blur_and_seed():
    base = replace(PLAIN, noise=0, debris=0, uneven_light=0)
    clean = whole(base)
    outside = clean.cells == 0
    assert np.ptp(whole(replace(base, density=0)).image[0]) < 600
    assert np.std(whole(replace(base, noise=1)).image.astype(float) - clean.image) > 20
    assert (whole(replace(base, debris=0.3)).image[0][outside].max()) > 2 * clean.image[0][outside].max()
    dark = whole(replace(base, uneven_light=0.8)).image.astype(float) / clean.image
    assert dark.max() <= 1
    assert dark.min() < 0.8
    sharp, soft = (np.abs(np.diff(whole(replace(base, blur=b)).image[0].astype(float))).max() for b in (0.6, 4))
    assert sharp > 1.3 * soft
    for change in ({"debris": 0.3}, {"noise": 2.0}, {"uneven_light": 0.9}):
        np.testing.assert_array_equal(whole(replace(base, **change)).cells, clean.cells)
    assert (whole(replace(base, seed=4)).cells != clean.cells).any()


def test_anisotropy_squeezes_z():
    def depth(anisotropy):
        tissue = Tissue((60, 80, 80), anisotropy=anisotropy, cell_diameter=16, touching=1, density=1)
        cells = whole(tissue).cells
        places = ndimage.find_objects(np.unique(cells, return_inverse=True)[1].reshape(cells.shape))
        return np.mean([p[0].stop - p[0].start for p in places if p and 20 < p[0].start < 40])

    assert depth(1) / depth(3) == pytest.approx(3, rel=0.35)


def test_to_spatialdata():
    sdata = replace(PLAIN, shape=(512, 600)).to_spatialdata(256, scale_factors=[2], truth=True)
    assert list(sdata["image"]["scale0"]["image"].c.values) == ["DAPI", "WGA"]
    assert sdata["image"]["scale1"]["image"].shape == (2, 256, 300)
    assert sdata["truth_cells"].shape == (512, 600)
    volume = Tissue((20, 64, 64), channels=("nuclei",)).to_spatialdata(32)
    assert volume["image"].dims == ("c", "z", "y", "x")
    assert volume["image"].data.chunksize == (1, 20, 32, 32)


def test_wrong_parameters_are_named():
    for change in (
        {"shape": (4,)}, {"density": 1.2}, {"cell_diameter": 2}, {"channels": ("a", "a")},
        {"noise": float("nan")},
    ):  # fmt: skip
        with pytest.raises(InputError, match=next(iter(change)).split("_")[0]):
            Tissue(**change)
    with pytest.raises(InputError, match="inside the image"):
        PLAIN.block(Box((0, 0), (257, 10)))


@settings(max_examples=30, deadline=None)
@given(
    tissue=strategies.tissues(),
    image=strategies.tissue_images(3, max_side=24),
    labels=strategies.label_images(),
)
def test_strategies(tissue, image, labels):
    block = whole(tissue)
    assert len(ids(block.nuclei)) <= MAX_NUCLEI * len(ids(block.cells))
    assert (image.ndim, image.dtype) == (4, np.uint16)
    assert (labels.ndim, labels.dtype) == (2, np.uint64)


@settings(max_examples=20, deadline=None)
@given(shape=strategies.image_shapes(3), shard=strategies.shard_shapes(3), halo=strategies.halos(3))
def test_shape_strategies(shape, shard, halo):
    assert len(shape) == len(shard) == len(halo) == 3
    assert min(shape + shard) >= 1
    assert min(halo) >= 0


def test_import_needs_no_test_packages():
    code = "import sys, spatialdata_segment.testing; print({'hypothesis', 'pytest', 'numba'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "set()"
