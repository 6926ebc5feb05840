"""Cells grown over the membrane stain: the contract, any shard plan, each parameter, and accuracy."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy import ndimage

from spatialdata_segment.config import Workflow, get_workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.statistics import Histogram
from spatialdata_segment.methods.base import ImageInfo, Seeds, View
from spatialdata_segment.methods.function import Function
from spatialdata_segment.methods.threshold import ThresholdNuclei
from spatialdata_segment.methods.watershed import SeededWatershed
from spatialdata_segment.testing import MethodTests, Tissue, match_scores
from spatialdata_segment.testing.strategies import tissue_images
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

SMALL = SeededWatershed(contrast_radius=4, sigma=0.5, max_distance=12)
STOPS = SeededWatershed.scportrait(erosion=1, dilation=2)
OTSU = SeededWatershed(threshold=None, erosion=1, dilation=3, contrast_radius=0, sigma=0, ridge=None)
BOTH = SeededWatershed(threshold=0.1, sigma=0, contrast_radius=3, erosion=1, dilation=2, ridge=0.05, max_distance=7.5)


def connected(image):
    return ndimage.label(image[1])[0]


DRAWN = Function(function=connected, context_px=0)
"""Nuclei drawn on the second channel: the first is then free for the membrane."""


class TestSeededWatershed(MethodTests):
    method = SMALL


class TestThatStops(MethodTests):
    method = STOPS


class TestWithOtsu(MethodTests):
    method = OTSU


class TestIn3D(MethodTests):
    n_plans = 1
    method = SeededWatershed(contrast_radius=2, sigma=0.5, max_distance=5)
    ndim = 3
    nucleus = ThresholdNuclei(min_distance=4, sigma=0.5)


few = settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip

methods = st.sampled_from([
    SMALL, STOPS, OTSU, BOTH, SeededWatershed(contrast_radius=2, sigma=0, max_distance=None),
    SeededWatershed(contrast_radius=0, sigma=0, ridge=0.0, max_distance=20),
    SeededWatershed(threshold=0.3, contrast_radius=0, sigma=0, ridge=None, max_distance=None, background="stops"),
])  # fmt: skip


def _agree(data, image, method, nucleus, folder, most):
    shape = image.shape[1:]
    image.flags.writeable = False
    core = [data.draw(st.integers(max(1, -(-n // most)), n + 3)) for n in shape]
    first = [data.draw(st.integers(0, c)) for c in core]
    context = method.context(ImageInfo(shape, image.dtype))
    halo = [c + data.draw(st.sampled_from([0, 0, 1, 5, 30])) for c in context]
    whole = tile(image, method, whole_plan(shape), folder / "whole", nucleus=nucleus)
    parts = tile(image, method, make_plan(shape, core, halo, first), folder / "parts", nucleus=nucleus)
    assert np.array_equal(whole.labels, parts.labels)
    assert np.array_equal(whole.anchors, parts.anchors)
    for count in ("twins", "adopted", "contested_px", "covered"):
        assert parts.mask.evidence[count] == 0
    return whole


@few
@given(data=st.data(), image=tissue_images(min_side=3, max_side=64), method=methods)
def test_any_plan_gives_the_same_cells(data, image, method, tmp_path_factory):
    """Of tissue, saturated, of few levels, flat and black; nuclei by the nuclear stain, growth over the other."""
    both = np.stack([image[1], image[0] > np.quantile(image[0], 0.75)])
    _agree(data, both, method, DRAWN, tmp_path_factory.mktemp("scratch"), 4)


@settings(few, max_examples=10)
@given(data=st.data(), image=tissue_images(3, min_side=8, max_side=32))
def test_any_plan_gives_the_same_cells_in_3d(data, image, tmp_path_factory):
    method = data.draw(st.sampled_from([
        BOTH, SeededWatershed(contrast_radius=1, sigma=0, max_distance=6), SeededWatershed.scportrait(dilation=2),
    ]))  # fmt: skip
    both = np.stack([image[1], image[0] > np.quantile(image[0], 0.7)])
    _agree(data, both, method, DRAWN, tmp_path_factory.mktemp("scratch"), 2)


@few
@given(
    data=st.data(), seed=st.integers(0, 2**16), levels=st.sampled_from([1, 2, 3, 256]), method=methods,
    share=st.sampled_from([0.002, 0.01, 0.05]),
)  # fmt: skip
def test_ties_in_8_bits(data, seed, levels, method, share, tmp_path_factory):
    """Blocks of few levels, flat and saturated, with nuclei of a pixel or a few."""
    rng = np.random.default_rng(seed)
    membrane = np.kron(rng.integers(0, levels, (7, 8)), np.ones((7, 7), int)) * 255 // max(levels - 1, 1)
    both = np.stack([membrane, rng.random(membrane.shape) < share]).astype(np.uint8)
    _agree(data, both, method, DRAWN, tmp_path_factory.mktemp("scratch"), 4)


def _decoded(method, membrane, nuclei, box=None):
    """Cells over the whole image, or a window of it, from given nuclei, 1..n in their order."""
    image = Box.whole(membrane.shape)
    box = box or image
    window, info = Window(box, box, image), ImageInfo(membrane.shape, membrane.dtype)
    statistics = {s: Histogram.of(membrane).compute(s) for s in method.statistics(info)}
    ids, labels = np.unique(np.append(nuclei[box.slices], 0), return_inverse=True)
    labels = labels[:-1].reshape(box.shape).astype(np.int32)
    seeds = Seeds(labels, np.zeros((len(ids) - 1, membrane.ndim), np.int64))
    pixels = membrane[None][(slice(None), *box.slices)]
    maps = method.stored(method.predict(pixels, View(window, info, statistics)))
    decoded = method.decode(maps, View(window, info, statistics, seeds))
    if window.is_whole:
        assert decoded.complete.all()
        assert decoded.labels.min() >= 0
        return decoded.labels, labels
    return np.where(decoded.labels > 0, ids[decoded.labels], decoded.labels), ids[1:][decoded.complete]


@settings(few, max_examples=300)
@given(
    data=st.data(), seed=st.integers(0, 2**16), levels=st.sampled_from([1, 2, 3, 256]), method=methods,
    share=st.sampled_from([0.0005, 0.002, 0.01, 0.05]), block=st.sampled_from([1, 3, 6]),
)  # fmt: skip
def test_what_a_window_is_sure_of_holds_in_the_whole(data, seed, levels, method, share, block):
    """Every pixel that is not left open, and every object that is called complete."""
    rng = np.random.default_rng(seed)
    membrane = np.kron(rng.integers(0, levels, (60 // block, 72 // block)), np.ones((block, block), int))
    membrane = (membrane * 255 // max(levels - 1, 1)).astype(np.uint8)
    nuclei = ndimage.label(ndimage.binary_dilation(rng.random(membrane.shape) < share))[0]
    whole, _ = _decoded(method, membrane, nuclei)
    ends = [sorted(data.draw(st.lists(st.sampled_from([0, 5, n // 4, n - 9, n]), min_size=2, max_size=2, unique=True)))
            for n in membrane.shape]  # fmt: skip
    box = Box(*(tuple(e[k] for e in ends) for k in (0, 1)))
    if box == Box.whole(membrane.shape):
        return
    labels, complete = _decoded(method, membrane, nuclei, box)
    sure = labels >= 0
    assert np.array_equal(labels[sure], whole[box.slices][sure])
    for label in complete:
        assert (labels == label).sum() in (0, (whole == label).sum())


@pytest.fixture(scope="module")
def tissue():
    block = Tissue((160, 176), seed=5).block(Box.whole((160, 176)))
    for array in block:
        array.flags.writeable = False
    return block


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.2}, {"threshold": None}, {"lower_quantile_normalization": 0.3},
        {"upper_quantile_normalization": 0.7}, {"sigma": 0.0}, {"contrast_radius": 5}, {"contrast_radius": 0},
        {"min_clip": 0.0}, {"max_clip": 0.6}, {"ridge": 0.6}, {"ridge": None}, {"background": "stops"},
        {"max_distance": 4.0}, {"max_distance": None, "ridge": None}, {"threshold": 0.2, "erosion": 2},
        {"threshold": 0.2, "dilation": 2}, {"threshold": 0.2, "erosion": 2, "dilation": 7},
    ],
    ids=str,
)  # fmt: skip
def test_every_parameter_acts(tissue, change):
    before = {k: v for k, v in change.items() if k == "threshold" and len(change) > 1}
    one, other = SeededWatershed(**before), SeededWatershed(**change)
    labels = [_decoded(m, tissue.image[1], tissue.nuclei)[0] for m in (one, other)]
    assert not np.array_equal(*labels)


@pytest.mark.parametrize("method", [SeededWatershed(), SMALL, STOPS, OTSU, BOTH], ids=["default", *"1234"])
@pytest.mark.parametrize("nuclei", ["true", "noise"])
def test_each_nucleus_lies_in_its_own_cell(tissue, method, nuclei):
    """On background too; also nuclei in pieces, and of a pixel."""
    seeds = tissue.nuclei
    if nuclei == "noise":
        rng = np.random.default_rng(3)
        seeds = np.where(rng.random(seeds.shape) < 0.02, rng.integers(1, 60, seeds.shape), 0)
    cells, labels = _decoded(method, tissue.image[1], seeds)
    assert np.array_equal(cells[labels > 0], labels[labels > 0])


def test_a_nucleus_in_the_dark_is_its_own_cell():
    membrane = np.zeros((40, 40), np.uint16)
    membrane[:20] = 1000
    nuclei = np.zeros((40, 40), np.int32)
    nuclei[8:12, 8:12], nuclei[30:33, 30:33] = 1, 2
    method = SeededWatershed.scportrait(threshold=0.5, erosion=0, dilation=0)
    cells, _ = _decoded(method, membrane, nuclei)
    assert (cells == 2).sum() == 9
    assert (cells[:20] == 1).all()


def test_cells_meet_on_the_membrane():
    """Two nuclei at unequal distances from a bright line: the line is the border, not the middle."""
    membrane = np.full((21, 41), 100, np.uint16)
    membrane[:, 25:28] = 1000
    nuclei = np.zeros(membrane.shape, np.int32)
    nuclei[8:13, 8:13], nuclei[8:13, 33:38] = 1, 2
    cells, _ = _decoded(SeededWatershed(sigma=0, contrast_radius=0, max_distance=None), membrane, nuclei)
    assert (cells[:, :25] == 1).all()
    assert (cells[:, 28:] == 2).all()


def test_what_lies_behind_a_ridge_is_background():
    membrane = np.full((41, 41), 100, np.uint16)
    away = np.hypot(*(np.indices(membrane.shape) - 20))
    membrane[(away > 11) & (away < 15)] = 1000
    nuclei = (away < 4).astype(np.int32)
    plain = SeededWatershed(sigma=0, contrast_radius=0, max_distance=None)
    cells, _ = _decoded(plain, membrane, nuclei)
    assert (cells[away <= 11] == 1).all()
    assert not cells[away >= 15].any()
    assert _decoded(plain.model_copy(update={"ridge": None}), membrane, nuclei)[0].all()


def test_erosion_and_dilation_act_on_the_foreground():
    membrane = np.zeros((60, 60), np.uint16)
    away = np.hypot(*(np.indices(membrane.shape) - 30))
    membrane[away <= 15] = 1000
    nuclei = (away <= 5).astype(np.int32)
    base = SeededWatershed.scportrait(threshold=0.5, erosion=0, dilation=0)

    def cell(**change):
        return _decoded(base.model_copy(update=change), membrane, nuclei)[0] > 0

    assert np.array_equal(cell(), away <= 15)
    assert cell(erosion=4).sum() < cell().sum() < cell(dilation=4).sum()
    assert away[cell(dilation=4)].max() == pytest.approx(19, abs=0.5)
    assert away[cell(erosion=4)].max() == pytest.approx(11, abs=0.5)


@pytest.mark.parametrize("unit", ["px", "um"])
def test_max_distance(unit):
    """A disc around the nucleus where nothing else stops it, in px or µm."""
    nuclei = np.zeros((31, 31), np.int32)
    nuclei[15, 15] = 1
    method = SeededWatershed(ridge=None, max_distance=5 if unit == "px" else 2.5, unit=unit, background="stops")
    box, membrane = Box.whole((31, 31)), np.full((1, 31, 31), 7, np.uint8)
    view = View(Window(box, box, box), ImageInfo((31, 31), membrane.dtype, (0.5, 0.5)),
                dict.fromkeys(method.statistics(ImageInfo((31, 31), membrane.dtype)), 7.0),
                Seeds(nuclei, np.array([[15, 15]])))  # fmt: skip
    cells = method.decode(method.predict(membrane, view), view).labels
    assert np.array_equal(cells > 0, np.hypot(*(np.indices((31, 31)) - 15)) <= 5)


def test_cells_at_the_border_stay(tissue, tmp_path):
    image = np.stack([tissue.image[1], tissue.nuclei > 0])
    image.flags.writeable = False
    cells = tile(image, SeededWatershed(), whole_plan(image.shape[1:]), tmp_path, nucleus=DRAWN).labels
    for side in (cells[0], cells[-1], cells[:, 0], cells[:, -1]):
        assert (side > 0).mean() > 0.5


def test_scportrait_has_the_documented_values():
    method = SeededWatershed.scportrait()
    assert (method.threshold, method.erosion, method.dilation, method.min_clip, method.max_clip) == (0.05, 2, 7, 0, 0.2)
    assert (method.lower_quantile_normalization, method.upper_quantile_normalization) == (0.01, 0.99)
    assert SeededWatershed.scportrait(dilation=3).dilation == 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"threshold": 1.5}, {"threshold": -0.1}, {"min_clip": 0.5, "max_clip": 0.5}, {"min_clip": 0.3, "max_clip": 0.2},
        {"lower_quantile_normalization": 0.99}, {"upper_quantile_normalization": 1.1}, {"erosion": -1},
        {"dilation": 1.5}, {"sigma": -1}, {"contrast_radius": -1}, {"ridge": 2}, {"max_distance": 0},
        {"background": "both"}, {"unit": "mm"},
    ],
    ids=str,
)  # fmt: skip
def test_wrong_values_are_refused(wrong):
    with pytest.raises(ValidationError):
        SeededWatershed(**wrong)


def test_wga_is_registered():
    assert get_workflow("wga") == Workflow(nucleus=ThresholdNuclei(), cell=SeededWatershed())


@pytest.mark.parametrize(
    ("kind", "least"),
    [({}, 0.9), ({"multinucleated": 0.0}, 0.94), ({"density": 0.6}, 0.9), ({"cell_diameter": 40}, 0.9)],
)
def test_accuracy_with_true_nuclei(kind, least):
    """Touching cells, camera noise, uneven light."""
    shape = (768, 768)
    block = Tissue(shape, seed=7, **kind).block(Box.whole(shape))
    cells, _ = _decoded(SeededWatershed(), block.image[1], block.nuclei)
    assert match_scores(block.cells, cells, (0.7,)).f1[0] >= least


def test_a_membrane_stain_without_signal_is_told():
    method, image = SeededWatershed(), ImageInfo((9, 9), np.dtype("u2"))
    with pytest.warns(UserWarning, match="the membrane stain is 7 at both quantiles, "):
        method.adapted(image, dict.fromkeys(method.statistics(image), 7.0))
