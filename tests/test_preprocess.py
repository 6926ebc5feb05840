"""Preprocessing: what each step does, that no plan changes it, and that a run tells of it."""

from __future__ import annotations

import json
from functools import partial

import dask.array as da
import numpy as np
import pytest
import spatialdata as sd
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage
from skimage.data import camera
from skimage.exposure import equalize_adapthist
from skimage.filters import median
from skimage.morphology import disk, white_tophat
from spatialdata.models import Image2DModel, Image3DModel

from spatialdata_segment import (
    EqualizeHistogram,
    ExpandNuclei,
    Function,
    Step,
    SubtractBackground,
    ThresholdNuclei,
    Workflow,
    label_image,
    plan,
    preview,
    segment,
)
from spatialdata_segment._table import read_metadata
from spatialdata_segment.config import as_workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.engine import preprocess
from spatialdata_segment.engine.preprocess import Preprocessing
from spatialdata_segment.engine.whole import read_source
from spatialdata_segment.errors import InputError, MethodError, ScratchError, ShardError
from spatialdata_segment.testing import Tissue

SHAPE = (150, 210)
TISSUE = Tissue(SHAPE, seed=3, cell_diameter=20)
OUTER = {"lower_quantile_normalization": 0.01, "upper_quantile_normalization": 0.99, "median_filter_size": 2}
NUCLEI = ThresholdNuclei(min_distance=4)


def blur(image: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(image, (0,) * (image.ndim - 2) + (1, 1), radius=2)


def less_its_mean(image: np.ndarray) -> np.ndarray:
    """Not local: it shows the blocks."""
    return np.maximum(image - image.mean(), 0)


STEPS = {
    "background": SubtractBackground(radius=6),
    "equalize": EqualizeHistogram(tile_px=16, clip_limit=0.1),
    "blur": Step(function=blur, context_px=2),
    "mean": Step(function=less_its_mean, context_px=5),
}
FLOWS = {
    "outer": {},
    "one bound": {"lower_quantile_normalization": None},
    "median": {"lower_quantile_normalization": None, "upper_quantile_normalization": None},
    "lists": {"lower_quantile_normalization": [0.01, 0.2], "upper_quantile_normalization": [0.99, 1]},
    "local": {"preprocess": [STEPS["background"], STEPS["blur"]]},
    "every step": {"preprocess": list(STEPS.values())},
    "not local": {"preprocess": [STEPS["mean"], STEPS["background"]]},
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(preprocess, "BLOCK", {2: (64, 64), 3: (4, 32, 32)})


def labels_of(sdata: sd.SpatialData, key: str, mask: str = "nucleus") -> np.ndarray:
    return sdata.labels[f"{key}_{mask}_labels"].to_numpy()


# --- what they do -----------------------------------------------------------------------------------------


def applied(image: np.ndarray, chunks: int = 37, **flow) -> np.ndarray:
    """Return what a method gets of every channel."""
    before = Workflow(cell=len, **flow).preprocessing({"cell": tuple(range(len(image)))})["cell"]
    source = da.from_array(image, chunks=(1, *(chunks,) * (image.ndim - 1)))
    levels = {}
    for s in before.statistics():
        q = {"minimum": 0, "maximum": 1}.get(s.kind, s.value)
        levels[s] = float(np.quantile(image[s.channel], q))
    changed = before.apply(source, levels)
    out = changed.compute(scheduler="synchronous")
    assert out.dtype == changed.dtype == before.dtype(image.dtype)
    assert before.least() is None or out.min() >= before.least()
    return out


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "uint32"])
def test_normalised_then_filtered_as_scportrait_does(dtype):
    image = (TISSUE.image().compute()[:2] // (256 if dtype == "uint8" else 2)).astype(dtype)
    low, high = ([0.01, 0.001], [0.99, 0.97])
    found = applied(image, lower_quantile_normalization=low, upper_quantile_normalization=high, median_filter_size=3)
    assert found.dtype == np.float32
    for channel, pixels, a, b in zip(found, image, low, high, strict=True):
        bottom, top = np.quantile(pixels, [a, b])
        normalised = np.clip((pixels - bottom) / (top - bottom), 0, 1)
        np.testing.assert_allclose(channel, median(normalised, disk(3)), atol=1e-6)


def test_one_bound_is_enough():
    image = TISSUE.image().compute()[:1]
    least, most, half = int(image.min()), int(image.max()), np.quantile(image, 0.5)
    upper, lower = applied(image, upper_quantile_normalization=0.5), applied(image, lower_quantile_normalization=0.5)
    np.testing.assert_allclose(upper, np.clip((image - least) / (half - least), 0, 1), atol=1e-6)
    np.testing.assert_allclose(lower, np.clip((image - half) / (most - half), 0, 1), atol=1e-6)


def test_a_flat_channel_is_0_and_what_lies_above_1():
    image = np.full((1, 70, 80), 7, np.uint8)
    image[0, 3, 4] = 9
    found = applied(image, lower_quantile_normalization=0.1, upper_quantile_normalization=0.9)
    np.testing.assert_array_equal(found, image > 7)


def test_background_is_the_opening():
    image = TISSUE.image().compute()[:2]
    found = applied(image, preprocess=[SubtractBackground(radius=6)])
    assert found.dtype == image.dtype
    inner = (slice(12, -12),) * 2  # scikit-image pads otherwise
    for channel, pixels in zip(found, image, strict=True):
        np.testing.assert_array_equal(channel[inner], white_tophat(pixels, np.ones((13, 13)))[inner])
    whole = SubtractBackground(radius=6).apply(image)
    np.testing.assert_array_equal(found, whole)
    assert applied(image > 900, preprocess=[SubtractBackground(radius=6)]).dtype == np.uint8


def test_equalized_nearly_as_scikit_image_does():
    image = camera()[None, 100:356, 100:356]
    normalised = (image - image.min()) / np.ptp(image)
    found = applied(image, upper_quantile_normalization=1.0, preprocess=[EqualizeHistogram(tile_px=32)])
    assert np.corrcoef(found[0].ravel(), equalize_adapthist(normalised[0], 32).ravel())[0, 1] > 0.98
    np.testing.assert_array_equal(
        found, EqualizeHistogram(tile_px=32).apply(applied(image, upper_quantile_normalization=1.0))
    )


def test_empty_tiles_are_not_stretched():
    image = np.zeros((1, 130, 130), np.float32)
    image[0, :20, :20] = 1
    image += np.random.default_rng(0).random(image.shape, np.float32) * 0.01
    found = applied(image, upper_quantile_normalization=1.0, preprocess=[EqualizeHistogram(tile_px=16)])
    assert found[0, 64:, 64:].max() < 0.2


def test_a_step_gets_its_context_and_nothing_to_write_to():
    image = np.arange(2 * 150 * 150, dtype=np.int32).reshape(2, 150, 150)
    shapes = []

    def note(block):
        shapes.append(block.shape)
        with pytest.raises(ValueError, match="read-only"):
            block[0] = 0
        return block

    found = applied(image, preprocess=[Step(function=note, context_px=3)])
    np.testing.assert_array_equal(found, image.astype(np.float32))
    assert found.dtype == np.float32
    assert set(shapes) == {(2, y, x) for y in (67, 70, 25) for x in (67, 70, 25)}


def test_order_of_the_steps():
    image = np.full((1, 9, 9), 3.0, np.float32)
    steps = [Step(function=lambda a: a + 1), Step(function=lambda a: a * 2)]
    assert applied(image, preprocess=steps)[0, 0, 0] == 8
    assert applied(image, preprocess=steps[::-1])[0, 0, 0] == 7


def test_volumes_plane_by_plane():
    volume = Tissue((6, 70, 80), seed=2, cell_diameter=20).image().compute()[:1]
    found = applied(volume, 5, median_filter_size=2, preprocess=[SubtractBackground(radius=4)])
    for plane, pixels in zip(found[0], volume[0], strict=True):
        expected = SubtractBackground(radius=4).apply(median(pixels, disk(2))[None])[0]
        np.testing.assert_array_equal(plane, expected)
    assert applied(volume, 5, preprocess=[Step(function=blur, context_px=2)]).shape == volume.shape


# --- the same for every plan ------------------------------------------------------------------------------


@pytest.mark.parametrize("flow", FLOWS.values(), ids=list(FLOWS))
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(draw=st.data())
def test_a_box_is_read_as_the_whole_is_computed(flow, draw):
    image = TISSUE.image().compute()[:2]
    before = Workflow(cell=len, **OUTER | flow).preprocessing({"cell": (0, 1)})["cell"]
    levels = {s: 100.0 + 4000 * s.value + 9000 * (s.kind == "maximum") for s in before.statistics()}
    source = da.from_array(image, chunks=(1, 50, 70))
    whole = before.apply(source, levels).compute(scheduler="synchronous")
    reader = before.reader(partial(read_source, source), SHAPE, levels)
    start = [draw.draw(st.integers(0, n - 1)) for n in SHAPE]
    stop = [draw.draw(st.integers(a + 1, n)) for a, n in zip(start, SHAPE, strict=True)]
    box = Box(tuple(start), tuple(stop))
    found = reader.read(box)
    assert found.dtype == whole.dtype
    np.testing.assert_array_equal(found, whole[:, *box.slices])


@pytest.mark.parametrize(
    ("name", "backed"), [*((name, False) for name in FLOWS), ("outer", True), ("every step", True)]
)
def test_the_labels_are_those_of_any_plan(name, backed, tmp_path):
    flow = FLOWS[name]
    sdata = TISSUE.to_spatialdata(64)
    if backed:
        sd.SpatialData(images={"image": sdata["image"]}).write(tmp_path / "store.zarr")
        sdata = sd.read_zarr(tmp_path / "store.zarr")
    membrane = ThresholdNuclei(min_distance=4, channels=(1,))
    flow = Workflow(nucleus=NUCLEI, cell=membrane, match_masks=False, **OUTER | flow)
    if isinstance(
        flow.lower_quantile_normalization, tuple
    ):  # a method's own channels have the roles of its default ones
        flow = flow.model_copy(update={"cell": Function(function=both, context_px=2, version="1")})
    for key, side in {"whole": 400, "parts": 97 if backed else 60}.items():
        segment(sdata, "image", flow, key_added=key, shard_size=side**2, progress=False, n_jobs=2, shapes=False)
        for mask in ("nucleus", "cell"):
            np.testing.assert_array_equal(labels_of(sdata, key, mask), labels_of(sdata, "whole", mask))
        assert read_metadata(sdata[f"{key}_table"])["statistics"] == read_metadata(sdata["whole_table"])["statistics"]
    assert labels_of(sdata, "whole").max() > 5


def both(image: np.ndarray) -> np.ndarray:
    return ndimage.label(ndimage.binary_opening(image[:2].sum(axis=0) > 0.9, iterations=2))[0]


def test_a_larger_look_gets_the_same_pixels():
    """Objects far larger than the halo run again, in boxes of their own."""
    image = np.full((1, *SHAPE), 50, np.uint16)
    image[0, 20:130, 30:40] = image[0, 20:30, 30:190] = 9000
    image += np.random.default_rng(0).integers(0, 500, image.shape).astype(np.uint16)
    steps = [STEPS["background"], STEPS["equalize"], STEPS["mean"]]
    method = Function(function=lambda a: ndimage.label(a[0] > 0.3)[0], context_px=0)
    flow = Workflow(cell=method, **OUTER | {"preprocess": steps})
    whole, parts = (label_image(image, flow, shard_size=n, overlap_px=4).compute() for n in (10**6, 30 * 30))
    np.testing.assert_array_equal(whole, parts)
    assert np.bincount(np.unique(whole, return_inverse=True)[1].ravel())[1:].max() > 500


# --- in the verbs -----------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_changed_pixels_and_are_told():
    sdata = TISSUE.to_spatialdata(64)
    flow = Workflow(nucleus=NUCLEI, cell=ExpandNuclei(distance=3), **OUTER)
    segment(sdata, "image", flow, progress=False)
    told = read_metadata(sdata["segmentation_table"])
    image = TISSUE.image().compute()[0]
    low, high = np.quantile(image, [0.01, 0.99])
    assert told["statistics"]["nucleus"]["raw_channel0_quantile_0.01"] == low
    assert told["statistics"]["nucleus"]["raw_channel0_quantile_0.99"] == high
    assert all(0 <= v <= 1 for k, v in told["statistics"]["nucleus"].items() if not k.startswith("raw") and "otsu" in k)
    assert told["statistics"]["cell"] == {}
    assert told["workflow"]["median_filter_size"] == 2


def test_preview_and_plan():
    sdata = TISSUE.to_spatialdata(64)
    flow = Workflow(nucleus=NUCLEI, **OUTER, preprocess=[STEPS["background"]])
    planned = [plan(sdata, "image", f).masks["nucleus"].bytes_per_shard for f in (Workflow(nucleus=NUCLEI), flow)]
    assert planned[0] < planned[1]  # float32 of uint16
    segment(sdata, "image", flow, progress=False)
    seen = preview(sdata, "image", flow)
    np.testing.assert_array_equal(labels_of(seen, "segmentation"), labels_of(sdata, "segmentation"))
    part = preview(sdata, "image", flow, size=100, center=(100, 70))
    assert (
        0.8
        < (labels_of(part, "segmentation") > 0).sum() / (labels_of(sdata, "segmentation")[20:120, 50:150] > 0).sum()
        < 1.25
    )


def test_label_image_of_a_workflow():
    image = TISSUE.image()
    flow = Workflow(nucleus=NUCLEI, **OUTER, preprocess=[STEPS["background"]])
    sdata = TISSUE.to_spatialdata(64)
    segment(sdata, "image", flow, progress=False)
    lazy = label_image(image, flow, shard_size=60 * 60)
    labels = lazy.compute()
    np.testing.assert_array_equal(
        np.searchsorted(np.unique(np.append(labels, 0)), labels), labels_of(sdata, "segmentation")
    )
    np.testing.assert_array_equal(lazy[40:90, 50:130].compute(), labels[40:90, 50:130])
    with pytest.raises(InputError, match="use segment"):
        label_image(image, flow.model_copy(update={"cell": ExpandNuclei()}))


# --- resume -----------------------------------------------------------------------------------------------


class Breaks:
    """Counts its calls, and fails where it is told to."""

    def __init__(self) -> None:
        self.calls, self.broken = 0, True

    def __call__(self, image: np.ndarray) -> np.ndarray:
        self.calls += 1
        if self.broken and self.calls > 3:
            raise RuntimeError("no more")
        return ndimage.label(image[0] > 0.5)[0]


@pytest.mark.parametrize(("version", "again"), [("1", 9), (None, 12)])
def test_resume(version, again, tmp_path):
    TISSUE.to_spatialdata(64).write(tmp_path / "store.zarr")
    sdata = sd.read_zarr(tmp_path / "store.zarr")
    function = Breaks()
    step = Step(function=blur, context_px=2, version=version)
    flow = Workflow(cell=Function(function=function, context_px=0, version="1"), **OUTER, preprocess=[step])
    options = {"shard_size": 53 * 53, "progress": False, "n_jobs": 1}
    with pytest.raises(ShardError, match="no more"):
        segment(sdata, "image", flow, **options)
    function.broken, function.calls = False, 0
    segment(sdata, "image", flow, **options)
    assert function.calls >= again
    assert (function.calls < 12) == (version is not None)


def test_a_scratch_of_other_steps_is_refused(tmp_path):
    sdata = TISSUE.to_spatialdata(64)
    function = Breaks()
    method = Function(function=function, context_px=0, version="1")
    options = {"shard_size": 53 * 53, "progress": False, "n_jobs": 1, "scratch": tmp_path / "scratch"}
    with pytest.raises(ShardError):
        segment(sdata, "image", Workflow(cell=method, preprocess=[SubtractBackground(radius=4)]), **options)
    with pytest.raises(ScratchError, match=r"belongs to another run; different: parameters\.workflow\.preprocess"):
        segment(sdata, "image", Workflow(cell=method, preprocess=[SubtractBackground(radius=5)]), **options)


def test_fingerprint_differs_with_every_parameter():
    every = [
        {}, *({k: v} for k, v in OUTER.items()), {"upper_quantile_normalization": [0.99]}, {"median_filter_size": 3},
        {"preprocess": [SubtractBackground(radius=4)]}, {"preprocess": [SubtractBackground(radius=5)]},
        {"preprocess": [SubtractBackground(radius=4), Step(function=blur)]}, {"preprocess": [Step(function=blur)]},
        {"preprocess": [Step(function=less_its_mean)]}, {"preprocess": [Step(function=blur, context_px=2)]},
        {"preprocess": [Step(function=blur, version="2")]},
        {"upper_quantile_normalization": 1, "preprocess": [EqualizeHistogram()]},
        {"upper_quantile_normalization": 1, "preprocess": [EqualizeHistogram(clip_limit=0.2)]},
    ]  # fmt: skip
    prints = {json.dumps(Workflow(nucleus=NUCLEI, **flow).fingerprint(), sort_keys=True) for flow in every}
    assert len(prints) == len(every)


# --- values -----------------------------------------------------------------------------------------------


def test_round_trip():
    steps = [SubtractBackground(radius=9), EqualizeHistogram(tile_px=64)]
    flow = Workflow(nucleus=NUCLEI, **OUTER | {"lower_quantile_normalization": [0.01]}, preprocess=steps)
    assert Workflow(**flow.model_dump()) == flow
    assert Workflow(**json.loads(flow.model_dump_json())) == flow
    plain = {"nucleus": "threshold-nuclei", "preprocess": [{"name": "subtract-background", "radius": 3}]}
    assert as_workflow(plain).preprocess == (SubtractBackground(radius=3),)


@pytest.mark.parametrize(
    ("flow", "message"),
    [
        ({"lower_quantile_normalization": 1.2}, "less than or equal to 1"),
        ({"lower_quantile_normalization": 0.9, "upper_quantile_normalization": 0.1}, "0.9 is not below .*0.1"),
        ({"lower_quantile_normalization": 1}, "is not below"),
        ({"lower_quantile_normalization": [0.1, 0.2], "upper_quantile_normalization": [0.9] * 3}, "differ in length"),
        ({"upper_quantile_normalization": []}, "differ in length"),
        ({"median_filter_size": 0}, "greater than or equal to 1"),
        ({"median_filter_size": 2.5}, "valid integer"),
        ({"preprocess": [EqualizeHistogram()]}, "give upper_quantile_normalization"),
        ({"preprocess": [{"name": "blur"}]}, "'subtract-background', 'equalize-histogram', 'step'"),
        ({"preprocess": [{"name": "subtract-background"}]}, "Field required"),
        ({"preprocess": [{"name": "subtract-background", "radius": 0}]}, "greater than or equal to 1"),
        ({"preprocess": [{"name": "equalize-histogram", "tile_px": 100}]}, "16, 32, 64"),
    ],
)
def test_values_that_cannot_be(flow, message):
    with pytest.raises(ValidationError, match=message):
        Workflow(nucleus=NUCLEI, **flow)


def test_quantiles_go_with_the_channels():
    flow = Workflow(nucleus=NUCLEI, upper_quantile_normalization=[0.9, 0.8, 0.7])
    with pytest.raises(InputError, match=r"3 quantiles for normalization are given, and the workflow reads 1 channel "):
        plan(TISSUE.to_spatialdata(64), "image", flow)
    pair = Workflow(nucleus=NUCLEI, cell=len, upper_quantile_normalization=[0.9, 0.8])
    roles = {"nucleus": (0,), "cell": (1, 0)}
    found = pair.preprocessing(roles)
    assert found["nucleus"].quantiles == ((0, 0.9),)
    assert found["cell"].quantiles == ((0, 0.8), (0, 0.9))
    assert not Preprocessing()
    assert found["cell"]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda a: a[:, 1:], "returned shape"),
        (lambda a: a.astype(complex), "dtype complex128, expected numbers"),
        (lambda a: a * np.nan, "returned NaN or infinite"),
        (lambda a: 1 / 0, "failed with ZeroDivisionError"),
    ],
)
def test_steps_that_break_the_contract(function, message):
    flow = Workflow(nucleus=ThresholdNuclei(), preprocess=[Step(function=function)])
    with pytest.raises((MethodError, ShardError), match=message):
        segment(TISSUE.to_spatialdata(64), "image", flow, progress=False)


def test_nan_is_told():
    image = np.zeros((1, 90, 90), np.float32)
    image[0, 3, 3] = np.nan
    sdata = sd.SpatialData(images={"image": Image2DModel.parse(image, dims=("c", "y", "x"))})
    with pytest.raises((InputError, ShardError), match="NaN"):
        segment(sdata, "image", Workflow(cell=both, median_filter_size=3), progress=False)


def test_a_volume_end_to_end():
    volume = Tissue((8, 60, 70), seed=2, cell_diameter=20).image().compute()[:1]
    sdata = sd.SpatialData(images={"image": Image3DModel.parse(volume, dims=("c", "z", "y", "x"))})
    flow = Workflow(nucleus=ThresholdNuclei(min_distance=4), **OUTER, preprocess=[STEPS["background"], STEPS["mean"]])
    for key, size in {"whole": 10**6, "parts": 8000}.items():
        segment(sdata, "image", flow, key_added=key, shard_size=size, progress=False, shapes=False)
    np.testing.assert_array_equal(labels_of(sdata, "parts"), labels_of(sdata, "whole"))
