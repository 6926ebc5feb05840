"""Label images as TIFF and for the GUI of Cellpose, read by other readers."""

from __future__ import annotations

import tracemalloc

import dask.array as da
import numpy as np
import pytest
import skimage.io
import tifffile
import xarray as xr
from spatialdata.models import Labels2DModel

from spatialdata_segment import labels_to_polygons, polygons_to_labels
from spatialdata_segment.errors import InputError
from spatialdata_segment.formats import _cellpose, _tiff, write_label_tiff, write_seg_npy


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    image = np.kron(np.random.default_rng(0).permutation(42).reshape(6, 7), np.ones((30, 20), np.int32))
    image.flags.writeable = False
    return image


@pytest.mark.parametrize(
    ("kind", "written"), [("uint8", "uint32"), ("int32", "uint32"), ("int64", "uint64"), ("uint64", "uint64")]
)
@pytest.mark.parametrize("planes", [0, 5])
@pytest.mark.parametrize("chunks", [None, 50, 17, -1])
def test_tiff(tmp_path, labels, kind, written, planes, chunks, monkeypatch):
    monkeypatch.setattr(_tiff, "_TILE", 64)
    image = (np.stack([labels, labels * 0, labels * 2, labels, labels]) if planes else labels).astype(kind)
    given = image if chunks is None else da.from_array(image, chunks=chunks)
    write_label_tiff(tmp_path / "a.tiff", given, pixel_size=0.5)
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert file.series[0].axes == ("ZYX" if planes else "YX")
        assert file.is_ome == (written == "uint32")
        assert file.pages[0].is_tiled
        assert ('PhysicalSizeX="0.5"' in (file.ome_metadata or "")) == file.is_ome
        assert file.pages[0].tags["XResolution"].value == (20000, 1)
    for found in (tifffile.imread(tmp_path / "a.tiff"), skimage.io.imread(tmp_path / "a.tiff")):
        assert found.dtype == written
        assert np.array_equal(found, image)


def test_tiff_of_other_axes_and_blocks_read_once(tmp_path, labels):
    seen = []

    def load(block: np.ndarray) -> np.ndarray:
        seen.append(block.shape)
        return block

    lazy = da.from_array(labels.T, chunks=(70, 100)).map_blocks(load, dtype=labels.dtype, meta=labels[:0, :0])
    write_label_tiff(tmp_path / "a.tiff", xr.DataArray(lazy, dims=("x", "y")))
    assert np.array_equal(tifffile.imread(tmp_path / "a.tiff"), labels)
    assert sorted(seen) == [(70, 80), (70, 80), (70, 100), (70, 100)]


def test_tiff_beyond_four_gigabytes(tmp_path, labels, monkeypatch):
    monkeypatch.setattr(_tiff, "_CLASSIC", labels.size * 4 - 1)
    write_label_tiff(tmp_path / "a.tiff", labels)
    with tifffile.TiffFile(tmp_path / "a.tiff") as file:
        assert file.is_bigtiff
        assert np.array_equal(file.asarray(), labels)


@pytest.mark.parametrize("planes", [0, 3])
def test_seg_npy(tmp_path, labels, planes):
    image = np.stack([labels, labels * 0, labels]) if planes else labels
    given = np.where(image > 0, image * 1000, 0)
    write_seg_npy(tmp_path / "cell_seg.npy", given, image_path=tmp_path / "cell.png", channels=[2, 3])
    found = np.load(tmp_path / "cell_seg.npy", allow_pickle=True).item()
    assert found["masks"].dtype == np.uint16
    assert np.array_equal(found["masks"], image)
    assert np.array_equal(found["cell_id"][found["masks"][found["masks"] > 0] - 1], given[given > 0])
    outlines = found["outlines"]
    assert set(np.unique(outlines)) == set(np.unique(image))
    # of touching squares of 30 x 20 px the rim
    assert np.count_nonzero(outlines == 1) == (2 * 30 + 2 * 18) * (2 if planes else 1)
    assert found["filename"] == str(tmp_path / "cell.png")
    assert found["chan_choose"] == [2, 3]
    assert len(found["ismanual"]) == 41
    assert found["diameter"] == pytest.approx(2 * np.sqrt(600 / np.pi))


def test_seg_npy_holds_what_the_gui_reads(tmp_path, labels):
    """As ``_load_seg`` of Cellpose reads it: ids without gaps, flows that say that there are none, an image."""
    (tmp_path / "cell.ome.tif").touch()
    write_seg_npy(tmp_path / "cell.ome_seg.npy", labels * 3)
    found = np.load(tmp_path / "cell.ome_seg.npy", allow_pickle=True).item()
    assert len(np.unique(found["masks"])) == found["masks"].max() + 1 == len(found["ismanual"]) + 1
    assert found["flows"] == [[], [], [], [], [[]]]
    assert found["filename"] == str(tmp_path / "cell.ome.tif")


@pytest.mark.parametrize("band", [1, 50, 1 << 20])
def test_seg_npy_in_bands_is_that_of_the_whole(tmp_path, labels, band, monkeypatch):
    image = np.stack([labels, np.roll(labels, 7, axis=1)]) * 5
    expected = np.searchsorted(np.unique(image), image)
    monkeypatch.setattr(_cellpose, "_BAND", band * labels.shape[1])
    write_seg_npy(tmp_path / "a_seg.npy", da.from_array(image, chunks=(1, 40, 30)))
    found = np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()
    assert np.array_equal(found["masks"], expected)
    inner = np.pad(expected, ((0, 0), (1, 1), (1, 1)))
    sides = [np.roll(inner, step, axis)[:, 1:-1, 1:-1] != expected for step in (1, -1) for axis in (1, 2)]
    assert np.array_equal(found["outlines"], expected * np.any(sides, axis=0))


def test_seg_npy_reads_labels_once_and_holds_eight_bytes_a_pixel(tmp_path, labels, monkeypatch):
    seen = []

    def load(block: np.ndarray) -> np.ndarray:
        seen.append(block.shape)
        return block

    monkeypatch.setattr(_cellpose, "_BAND", 1 << 16)
    image = np.kron(labels, np.ones((8, 8))).astype(np.uint32)
    lazy = da.from_array(image, chunks=512, name=False).map_blocks(load, dtype=image.dtype, meta=image[:0, :0])
    write_seg_npy(tmp_path / "a_seg.npy", image[:600, :600])  # kernels are compiled
    tracemalloc.start()
    write_seg_npy(tmp_path / "a_seg.npy", lazy)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * image.size
    assert len(seen) == lazy.npartitions


def test_seg_npy_of_no_and_of_all_pixels(tmp_path):
    write_seg_npy(tmp_path / "a_seg.npy", np.zeros((4, 5), np.uint8), diameter=12)
    found = np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()
    assert (found["masks"].max(), len(found["ismanual"]), found["diameter"]) == (0, 0, 12)
    assert found["filename"] == str(tmp_path / "a")
    write_seg_npy(tmp_path / "a_seg.npy", np.full((4, 5), 9))
    assert (np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()["masks"] == 1).all()


@pytest.mark.parametrize("write", [write_label_tiff, write_seg_npy])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 4)), "float64"),
        (np.zeros(4, int), r"\(4,\)"),
        (np.full((4, 4), -3), "-3"),
        (xr.DataArray(np.zeros((2, 4, 4), int), dims=("c", "y", "x")), "'c', 'y', 'x'"),
    ],
)
def test_what_are_no_labels(tmp_path, write, bad, message):
    with pytest.raises(InputError, match=message):
        write(tmp_path / "a_seg.npy", bad)
    assert not list(tmp_path.iterdir())


def test_several_scales(tmp_path, labels):
    element = Labels2DModel.parse(labels, dims=("y", "x"), scale_factors=[2])
    write_label_tiff(tmp_path / "a.tiff", element)
    assert np.array_equal(tifffile.imread(tmp_path / "a.tiff"), labels)
    write_seg_npy(tmp_path / "a_seg.npy", element)
    assert np.array_equal(np.load(tmp_path / "a_seg.npy", allow_pickle=True).item()["masks"], labels)
    frame = labels_to_polygons(element, progress=False)
    assert np.array_equal(polygons_to_labels(frame, labels.shape), labels)


def test_bad_options(tmp_path, labels):
    with pytest.raises(InputError, match="pixel_size=0"):
        write_label_tiff(tmp_path / "a.tiff", labels, pixel_size=0)
    with pytest.raises(InputError, match="channels"):
        write_seg_npy(tmp_path / "a_seg.npy", labels, channels=[4])
    assert not list(tmp_path.iterdir())
