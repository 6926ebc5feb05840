"""The contract suite holds for what it was written for, and finds what breaks the contract."""

from typing import ClassVar

import numpy as np
import pytest
from scipy import ndimage

from spatialdata_segment import ExpandNuclei, Function, ThresholdNuclei, register_method
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.methods.base import Decoded, Method
from spatialdata_segment.testing.dummies import DummyDiscs, DummyNetwork, DummyVolume
from spatialdata_segment.testing.methods import MethodTests
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan

for dummy in (DummyNetwork, DummyVolume, DummyDiscs):
    register_method(dummy)


def blobs(image):
    smooth = ndimage.gaussian_filter(image[0].astype(np.float32), 1)
    return ndimage.label(ndimage.binary_opening(smooth > 3000, iterations=2))[0]


class TestThresholdNuclei(MethodTests):
    method = ThresholdNuclei(threshold="otsu", min_distance=4)


class TestThresholdNucleiIn3D(MethodTests):
    method = ThresholdNuclei(threshold="otsu", min_distance=4)
    ndim = 3


class TestExpandNuclei(MethodTests):
    method = ExpandNuclei(distance=5.5)


class TestExpandNucleiIn3D(MethodTests):
    method = ExpandNuclei(distance=3)
    ndim = 3


class TestFunction(MethodTests):
    method = Function(function=blobs, context_px=8, version="1")
    in_configurations = False


class TestNetwork(MethodTests):
    method = DummyNetwork(tile=16)


class TestNetworkComponents(MethodTests):
    method = DummyNetwork(tile=16, decoder="components")


class TestVolume(MethodTests):
    method = DummyVolume()
    ndim = 3


class TestDiscs(MethodTests):
    method = DummyDiscs(threshold=500)


# what breaks the contract is found


class _Blobs(Method):
    """Connected bright pixels; the parts below break one rule each."""

    name: ClassVar[str] = "broken"

    def context(self, image):
        return (1,) * image.ndim

    def predict(self, image, view):
        return (image[:1] > 2000).astype(np.float32)

    def decode(self, maps, view):
        return Decoded(ndimage.label(maps[0])[0])


class _BlockStatistics(_Blobs):
    def predict(self, image, view):
        return (image[:1] > image.mean()).astype(np.float32)


class _WritesInput(_Blobs):
    def predict(self, image, view):
        image[image < 5] = 0
        return super().predict(image, view)


class _TooLittleContext(_Blobs):
    def predict(self, image, view):
        return (ndimage.uniform_filter(image[:1].astype(np.float32), (0, 9, 9)) > 2000).astype(np.float32)


class _CallsEverythingComplete(_Blobs):
    def decode(self, maps, view):
        labels, n = ndimage.label(maps[0])
        return Decoded(labels, complete=np.ones(n, bool))


class _DropsBorder(_Blobs):
    def decode(self, maps, view):
        from skimage.segmentation import clear_border

        return Decoded(clear_border(ndimage.label(maps[0])[0]))


class _TooFewAnchors(_Blobs):
    def decode(self, maps, view):
        labels, n = ndimage.label(maps[0])
        return Decoded(labels, np.zeros((max(n - 1, 0), 2), int))


class _Random(_Blobs):
    def predict(self, image, view):
        return np.random.default_rng().random((1, *image.shape[1:])).astype(np.float32)


@pytest.mark.parametrize(
    ("broken", "test"),
    [
        (_BlockStatistics, "test_maps_of_a_window_are_those_of_the_image"),
        (_BlockStatistics, "test_tiling_invariance"),
        (_WritesInput, "test_input_is_not_modified"),
        (_TooLittleContext, "test_maps_of_a_window_are_those_of_the_image"),
        (_CallsEverythingComplete, "test_complete_objects_are_those_of_the_image"),
        (_CallsEverythingComplete, "test_tiling_invariance"),
        (_DropsBorder, "test_objects_at_the_border_are_kept"),
        (_TooFewAnchors, "test_labels_keep_the_contract"),
        (_Random, "test_deterministic"),
        (_Blobs, "test_round_trip_through_json"),
    ],
)
def test_suite_finds_what_is_broken(broken, test, tmp_path):
    suite = type("Suite", (MethodTests,), {"method": broken()})()
    image = MethodTests.image.__wrapped__(suite)
    check = getattr(suite, test)
    names = check.__code__.co_varnames[1 : check.__code__.co_argcount]
    with pytest.raises((AssertionError, ValueError)):
        check(**{n: {"image": image, "tmp_path": tmp_path}[n] for n in names})


def test_tile_is_the_identity_for_known_labels(tmp_path):
    image = np.zeros((1, 20, 30), np.uint8)
    image[0, 2:9, 3:20], image[0, 12:14, 5:30] = 1, 1
    found = tile(image, Function(function=_label, context_px=0), make_plan((20, 30), (7, 11), (1, 1)), tmp_path)
    assert np.array_equal(found.labels, ndimage.label(image[0])[0])


def test_plan_with_a_small_first_core():
    plan = make_plan((10, 7), (4, 9), (1, 2), first=(3, 0))
    assert plan.chunks == ((3, 4, 3), (7,))
    assert whole_plan((10, 7)).core(0) == Box.whole((10, 7))


def _label(image):
    return ndimage.label(image[0])[0]
