from __future__ import annotations

import dask
import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spatialdata_segment._masks import (
    filter_label_array,
    match_label_arrays,
    measure_intensities,
    measure_objects,
)
from spatialdata_segment.core.matching import Rules, SizeFilter
from spatialdata_segment.errors import InputError

pytestmark = pytest.mark.filterwarnings("error::dask.array.core.PerformanceWarning")


def locked(values, dtype=np.int64):
    array = np.array(values, dtype)
    array.flags.writeable = False
    return array


def scene(seed, shape=(40, 50)):
    """Cells with none to two nuclei, sparse ids up to 2**63 - 1, cut by the border of the image."""
    rng = np.random.default_rng(seed)
    nuclei, cells = np.zeros((2, *shape), np.int64)
    grid = np.indices(shape)
    ids = rng.choice(2**62, (25, 3), replace=False) + 2**62
    for cell, *parts in ids:
        centre = rng.integers(0, shape)
        cells[((grid - centre[:, None, None]) ** 2).sum(0) <= rng.integers(4, 40)] = cell
        for nucleus in parts[: rng.integers(0, 3)]:
            at = centre + rng.integers(-3, 4, 2)
            nuclei[((grid - at[:, None, None]) ** 2).sum(0) <= rng.integers(1, 6)] = nucleus
    return locked(nuclei), locked(cells)


def test_a_pair_by_hand():
    nuclei = locked([[0, 7, 0, 0, 0], [0, 7, 0, 2, 0]], np.int32)
    cells = locked([[9, 9, 0, 0, 0], [9, 9, 0, 0, 5]], np.uint64)
    out = match_label_arrays(da.from_array(nuclei, chunks=(1, 2)), cells, Rules())
    assert out.nuclei.dtype == out.cells.dtype == np.uint32
    assert out.nuclei.chunks == out.cells.chunks == ((1, 1), (2, 2, 1))
    assert out.nuclei.compute().tolist() == [[0, 1, 0, 0, 0], [0, 1, 0, 0, 0]]
    assert out.cells.compute().tolist() == [[1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    assert out.resolution.nucleus.reasons.tolist() == ["unmatched", ""]
    assert out.nucleus_objects.anchor.tolist() == [[1, 3], [0, 1]]


def test_filter_by_hand():
    labels = locked([[4, 4, 0, 3], [0, 0, 0, 0], [8, 8, 8, 0]])
    out = filter_label_array(labels, Rules(cell_size=SizeFilter(min_size=2)))
    assert out.labels.compute().tolist() == [[1, 1, 0, 0], [0] * 4, [2, 2, 2, 0]]
    assert out.fate.reasons.tolist() == ["too_small", "", ""]
    assert out.objects.area.tolist() == [1, 2, 3]
    nucleus = filter_label_array(labels, Rules(nucleus_size=SizeFilter(max_size=2)), kind="nucleus")
    assert nucleus.labels.compute().tolist() == [[1, 1, 0, 2], [0] * 4, [0] * 4]


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    chunks=st.tuples(st.integers(6, 60), st.integers(6, 60)),
    multinucleated=st.sampled_from(["drop", "keep"]),
    unmatched=st.sampled_from(["drop", "keep"]),
)
def test_the_chunks_do_not_matter(seed, chunks, multinucleated, unmatched):
    nuclei, cells = scene(seed)
    rules = Rules(
        threshold=0.7,
        multinucleated=multinucleated,
        unmatched=unmatched,
        nucleus_size=SizeFilter(min_size=4),
        cell_size=SizeFilter(confidence_interval=0.95),
    )
    whole = match_label_arrays(nuclei, cells, rules)
    cut = match_label_arrays(da.from_array(nuclei, chunks=chunks), da.from_array(cells, chunks=chunks[::-1]), rules)
    for a, b in ((whole.nuclei, cut.nuclei), (whole.cells, cut.cells)):
        np.testing.assert_array_equal(a.compute(), b.compute())
    for a, b in ((whole.nucleus_objects, cut.nucleus_objects), (whole.cell_objects, cut.cell_objects)):
        for name in a.__dataclass_fields__:
            assert getattr(a, name).tobytes() == getattr(b, name).tobytes()
    for name in whole.resolution.cell.__dataclass_fields__:
        assert getattr(whole.resolution.cell, name).tobytes() == getattr(cut.resolution.cell, name).tobytes()

    nuclei_out, cells_out = whole.nuclei.compute(), whole.cells.compute()
    for picture, before, objects, fate in (
        (nuclei_out, nuclei, whole.nucleus_objects, whole.resolution.nucleus),
        (cells_out, cells, whole.cell_objects, whole.resolution.cell),
    ):
        lut = dict(zip(objects.ids, fate.final_id, strict=True)) | {0: 0}
        assert (picture == np.vectorize(lut.get)(before)).all()
        assert (before[tuple(objects.anchor.T)] == objects.ids).all()


def test_serial_and_threads_agree():
    nuclei, cells = scene(3)
    first = da.from_array(nuclei, chunks=15)

    def run(scheduler):
        with dask.config.set(scheduler=scheduler):
            out = match_label_arrays(first, cells, Rules(threshold=0.7))
            return [x.compute().tobytes() for x in (out.nuclei, out.cells)]

    assert run("synchronous") == run("threads")


def test_intensities_do_not_depend_on_the_chunks():
    _, cells = scene(4)
    image = locked(np.random.default_rng(0).normal(0, 3, (2, *cells.shape)), np.float32)
    whole = measure_intensities(cells, image)
    cut = measure_intensities(da.from_array(cells, chunks=9), da.from_array(image, chunks=(1, 20, 7)))
    assert whole.mean().tobytes() == cut.mean().tobytes()
    expected = [image[:, cells == i].mean(1) for i in whole.ids]
    np.testing.assert_allclose(whole.mean(), expected, atol=1e-5)
    with pytest.raises(InputError, match="grid"):
        measure_intensities(cells, image[:, 1:])


def test_three_axes_and_no_objects():
    volume = np.zeros((4, 5, 6), np.uint8)
    assert len(measure_objects(volume)) == 0
    out = match_label_arrays(volume, volume, Rules())
    assert out.resolution.n_ids == 0
    assert not out.cells.compute().any()
    volume[1:3, 2, 3:] = 200
    objects = measure_objects(da.from_array(volume, chunks=(2, 2, 4)))
    assert objects.anchor.tolist() == [[1, 2, 4]]
    out = match_label_arrays(volume, da.from_array(volume, chunks=2), Rules())
    assert (out.cells.compute() == (volume > 0)).all()


def test_what_cannot_be_matched_is_an_error():
    labels = locked([[1, 0]])
    with pytest.raises(InputError, match="same pixels"):
        match_label_arrays(labels, labels[:, :1], Rules())
    with pytest.raises(InputError, match="integers"):
        match_label_arrays(labels.astype(float), labels, Rules())
    with pytest.raises(InputError, match="label -1"):
        match_label_arrays(-labels, labels, Rules())
    with pytest.raises(InputError, match="kind"):
        filter_label_array(labels, Rules(), kind="tissue")
    with pytest.raises(InputError, match="pixel size"):
        filter_label_array(labels, Rules(cell_size=SizeFilter(3, unit="um2")))
