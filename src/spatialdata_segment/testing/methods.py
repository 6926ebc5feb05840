"""The contract suite that third-party methods inherit; needs pytest.

    class TestMine(MethodTests):
        method = Mine(threshold=3)

runs every test below with that method. Where the small synthetic tissue does not suit it, override the
fixture ``image``.
"""

from __future__ import annotations

import pickle
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar

import dask.array as da
import numpy as np
import pytest
from pydantic import ValidationError

from spatialdata_segment.config import Workflow
from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.plan import Plan, Window
from spatialdata_segment.core.suppress import greedy
from spatialdata_segment.engine.executor import Executor
from spatialdata_segment.engine.whole import measure_image
from spatialdata_segment.methods.base import Decoded, ImageInfo, Method, Seeds, View
from spatialdata_segment.methods.threshold import ThresholdNuclei
from spatialdata_segment.testing.tiling import make_plan, tile, whole_plan
from spatialdata_segment.testing.tissue import Tissue

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_SHAPES = {2: (75, 91), 3: (15, 37, 41)}


class MethodTests:
    """Tests that every method must pass.

    Attributes
    ----------
    method
        The method under test, small enough for an image of about 80 x 90 pixels.
    nucleus
        Makes the seeds of a seeded method; it reads the same channel.
    ndim
        Spatial axes of the test image.
    in_configurations
        The method can be written to, and read from, a configuration.
    n_plans
        Random shard plans that are tried.
    """

    method: ClassVar[Method]
    nucleus: ClassVar[Method] = ThresholdNuclei(threshold="otsu", min_distance=4)
    ndim: ClassVar[int] = 2
    in_configurations: ClassVar[bool] = True
    n_plans: ClassVar[int] = 3

    @pytest.fixture
    def image(self) -> NDArray[Any]:
        """Return ``(c, [z], y, x)`` pixels, one half eight times as bright as the other."""
        tissue = Tissue(_SHAPES[self.ndim], seed=11, cell_diameter=16, density=0.8)
        pixels = tissue.block(Box.whole(tissue.shape)).image[: self.n_channels]
        pixels[..., : pixels.shape[-1] // 2] //= 8
        return _locked(pixels)

    @property
    def n_channels(self) -> int:
        """Channels that the method reads; two where it takes any number."""
        method = self.method
        if method.channels is not None:
            return len(method.channels)
        return 2 if method.default_channels is None else max(len(method.default_channels), int(method.seeded))

    # parameters

    def test_parameters_are_frozen(self) -> None:
        """A method does not change after it was made."""
        for name in type(self.method).model_fields:
            with pytest.raises(ValidationError, match="frozen"):
                setattr(self.method, name, getattr(self.method, name))

    def test_unknown_parameter_is_refused(self) -> None:
        """A misspelt parameter is no silent default."""
        with pytest.raises(ValidationError, match="Extra inputs"):
            type(self.method)(**{**dict(self.method), "no_such_parameter": 1})

    def test_round_trip_through_json(self) -> None:
        """A workflow's JSON gives an equal method back. The method must be registered under its name."""
        if not self.in_configurations:
            pytest.skip("in_configurations is False")
        both = {"nucleus": self.nucleus} if self.method.seeded else {}
        workflow = Workflow(cell=self.method, **both)
        assert Workflow.model_validate_json(workflow.model_dump_json()) == workflow
        assert Workflow(**workflow.model_dump()) == workflow

    def test_survives_pickling(self) -> None:
        """A method travels to the workers of a cluster, and decides the same results there."""
        copy = pickle.loads(pickle.dumps(self.method))
        assert copy == self.method
        assert copy.fingerprint() == self.method.fingerprint()

    def test_context_and_halo(self, image: NDArray[Any]) -> None:
        """Both are whole pixels, one per axis; the halo is no smaller than the context."""
        info = _info(image)
        method = _adapted(self.method, image)
        context, halo = method.context(info), method.halo(info)
        assert len(context) == len(halo) == info.ndim
        assert all(0 <= c <= h for c, h in zip(context, halo, strict=True))
        assert np.array([context, halo]).dtype.kind == "i"
        assert info.ndim in self.method.ndims

    # the two phases

    def test_maps_have_the_shape_of_the_window(self, image: NDArray[Any]) -> None:
        """`predict` returns ``(k, [z], y, x)``, finite in the stored precision."""
        for window in _windows(image, (0,) * self.ndim):
            maps = self._maps(image, window)
            if self.method.sparse:
                assert maps.ndim == 1
                assert window.box.holds(maps["point"]).all()
                assert len(np.unique(maps["point"], axis=0)) == len(maps)
                boxes = _adapted(self.method, image).extents(maps, _info(image))
                assert boxes.shape == (len(maps), 2 * self.ndim)
                assert (boxes[:, : self.ndim] < boxes[:, self.ndim :]).all()
                continue
            assert maps.shape[1:] == _adapted(self.method, image).maps_box(_info(image), window.box).shape
            stored = self.method.stored(maps)
            assert stored.dtype.kind not in "fc" or np.isfinite(stored).all()

    def test_input_is_not_modified(self, image: NDArray[Any]) -> None:
        """Neither phase writes into what it is given: all arrays are locked."""
        before = image.copy()
        self._decode(image, _whole(image))
        assert np.array_equal(image, before)

    def test_deterministic(self, image: NDArray[Any]) -> None:
        """The same window gives the same bits again."""
        window = _windows(image, self._context(image))[0]
        first, again = self._maps(image, window), self._maps(image, window)
        assert first.tobytes() == again.tobytes()
        a, b = self._decode(image, window), self._decode(image, window)
        assert np.array_equal(a.labels, b.labels)
        assert (a.anchors is None) == (b.anchors is None)
        if a.anchors is not None and b.anchors is not None:
            assert np.array_equal(a.anchors, b.anchors)

    def test_maps_of_a_window_are_those_of_the_image(self, image: NDArray[Any]) -> None:
        """Inside `Method.map_context` the maps do not tell the window: no statistics of the block, no tiles of it."""
        if not self.method.maps_are_local:
            pytest.skip("maps_are_local is False")
        info, method = _info(image), _adapted(self.method, image)
        whole = self.method.stored(self._maps(image, _whole(image)))
        context = method.map_context(info)
        for window in _windows(image, context):
            part = self.method.stored(self._maps(image, window))
            inner, seen = method.maps_box(info, window.shrink(context)), method.maps_box(info, window.box)
            if self.method.sparse:
                assert part[inner.holds(part["point"])].tobytes() == whole[inner.holds(whole["point"])].tobytes()
                continue
            every = slice(None)
            assert np.array_equal(part[(every, *inner.within(seen))], whole[(every, *inner.slices)])

    def test_maps_of_any_box_can_be_had(self, image: NDArray[Any]) -> None:
        """`Method.maps_window` holds the box that it is asked for, and no window within does."""
        info, method = _info(image), _adapted(self.method, image)
        every = method.maps_box(info, Box.whole(info.shape))
        assert every.start == (0,) * self.ndim
        rng = np.random.default_rng(8)
        for _ in range(20):
            ends = [sorted(rng.choice(n + 1, 2, replace=False).tolist()) for n in every.stop]
            box = Box(tuple(a for a, _ in ends), tuple(b for _, b in ends))
            window = method.maps_window(info, box)
            assert window.intersect(Box.whole(info.shape)) == window
            assert box.intersect(method.maps_box(info, window)) == box
            for axis in range(self.ndim):
                less = Box(tuple(a + (k == axis) for k, a in enumerate(window.start)), window.stop)
                assert less.size == 0 or box.intersect(method.maps_box(info, less)) != box

    def test_labels_keep_the_contract(self, image: NDArray[Any]) -> None:
        """Labels are integers from -1; each has an anchor and a flag; each anchor is a pixel of the image."""
        for window in [_whole(image), *_windows(image, self._context(image))]:
            decoded = self._decode(image, window)
            labels = np.asarray(decoded.labels)
            assert labels.shape == window.box.shape
            assert labels.dtype.kind in "ui"
            assert labels.min() >= (0 if window.is_whole else -1)
            n = int(labels.max())
            if decoded.anchors is not None:
                assert decoded.anchors.shape == (len(decoded.anchors), self.ndim)
                assert len(decoded.anchors) >= n
                assert window.image.holds(decoded.anchors + np.array(window.box.start)).all()
            if decoded.complete is not None:
                assert decoded.complete.dtype == bool
                assert len(decoded.complete) >= n
                assert not window.is_whole or decoded.complete[np.unique(labels[labels > 0]) - 1].all()

    def test_complete_objects_are_those_of_the_image(self, image: NDArray[Any]) -> None:
        """What a window calls complete has the pixels and the anchor that the whole image gives."""
        whole = self._decode(image, _whole(image))
        for window in _windows(image, self._context(image)):
            part = self._decode(image, window)
            if part.complete is None:
                continue
            truth = whole.labels[window.box.slices]
            for label in np.unique(part.labels[part.labels > 0]):
                if not part.complete[label - 1]:
                    continue
                (same,) = np.unique(truth[part.labels == label])
                assert same > 0
                assert np.array_equal(truth == same, part.labels == label)
                assert (whole.labels == same).sum() == (part.labels == label).sum()
                if part.anchors is not None and whole.anchors is not None:
                    assert np.array_equal(part.anchors[label - 1] + window.box.start, whole.anchors[same - 1])

    # through the engine

    def test_finds_objects(self, image: NDArray[Any], tmp_path: Path) -> None:
        """The test image shows the method something: without objects the other tests say nothing."""
        assert len(self._tile(image, whole_plan(image.shape[1:]), tmp_path).anchors) > 1

    def test_tiling_invariance(self, image: NDArray[Any], tmp_path: Path) -> None:
        """Random shard plans, the least halo among them, give the labels of one shard."""
        whole = self._tile(image, whole_plan(image.shape[1:]), tmp_path / "whole")
        rng = np.random.default_rng(5)
        for k in range(self.n_plans):
            plan = _random_plan(rng, image.shape[1:], self._context(image), least=k == 0)
            assert self._tile(image, plan, tmp_path / str(k)).same_as(whole), plan

    def test_two_phases_are_one(self, image: NDArray[Any], tmp_path: Path) -> None:
        """Maps that were kept, in blocks of their own, give the labels of a run in one, without the image."""
        if not self.method.maps_are_local:
            pytest.skip("maps_are_local is False")
        shape, context = image.shape[1:], self._context(image)
        whole = self._tile(image, whole_plan(shape), tmp_path / "whole")
        plan = _random_plan(np.random.default_rng(9), shape, context, least=False)
        nucleus = self.nucleus if self.method.seeded else None
        apart = tile(image, self.method, plan, tmp_path / "apart", nucleus=nucleus, two_phases=True)
        assert apart.same_as(whole)

    def test_results_of_another_image_are_not_taken(self, image: NDArray[Any], tmp_path: Path) -> None:
        """A scratch folder with the shards of other pixels does not lead astray."""
        plan = make_plan(image.shape[1:], [ceil(n / 2) for n in image.shape[1:]], self._context(image))
        self._tile(_locked(image[..., ::-1].copy()), plan, tmp_path / "a")
        assert self._tile(image, plan, tmp_path / "a").same_as(self._tile(image, plan, tmp_path / "b"))

    def test_resumed_run_is_the_same(self, image: NDArray[Any], tmp_path: Path) -> None:
        """Where half of the shards were lost, only these run again, and the result is the same."""
        plan = make_plan(image.shape[1:], [ceil(n / 2) for n in image.shape[1:]], self._context(image))
        first = self._tile(image, plan, tmp_path, resume=True)
        for path in sorted((tmp_path / "cell" / "shards").rglob("*.shard"))[::2]:
            path.unlink()
        again = self._tile(image, plan, tmp_path, resume=True)
        assert again.same_as(first)
        assert again.mask.evidence["computed"] == len(plan) // 2

    def test_empty_image(self, image: NDArray[Any], tmp_path: Path) -> None:
        """Nothing but zeros holds no object, and is no error."""
        black = _locked(np.zeros_like(image))
        plan = make_plan(image.shape[1:], [ceil(n / 2) for n in image.shape[1:]], self._context(image))
        found = self._tile(black, plan, tmp_path)
        assert not found.labels.any()
        assert len(found.anchors) == 0

    def test_thin_images(self, image: NDArray[Any], tmp_path: Path) -> None:
        """Images of one pixel along an axis, and of one pixel at all, are images."""
        rng = np.random.default_rng(6)
        for k in range(self.ndim + 1):
            shape = tuple(1 if k in (axis, self.ndim) else n for axis, n in enumerate(image.shape[1:]))
            thin = _locked(image[(slice(None), *(slice(n) for n in shape))].copy())
            whole = self._tile(thin, whole_plan(shape), tmp_path / f"whole{k}")
            plan = _random_plan(rng, shape, self._context(thin), least=False)
            assert self._tile(thin, plan, tmp_path / str(k)).same_as(whole)

    def test_objects_at_the_border_are_kept(self, image: NDArray[Any], tmp_path: Path) -> None:
        """An image that begins in the middle of an object still holds that object, up to the edge."""
        found = self._tile(image, whole_plan(image.shape[1:]), tmp_path / "all")
        largest = int(np.bincount(found.labels[found.labels > 0]).argmax())
        middle = int(np.median(np.nonzero(found.labels == largest)[0]))
        cut = _locked(image[:, middle:].copy())
        edge = self._tile(cut, whole_plan(cut.shape[1:]), tmp_path / "cut").labels
        assert (edge[0] > 0)[(found.labels == largest)[middle]].any()

    # helpers

    def _context(self, image: NDArray[Any]) -> tuple[int, ...]:
        return _adapted(self.method, image).context(_info(image))

    def _tile(self, image: NDArray[Any], plan: Plan, folder: Path, *, resume: bool = False) -> Any:
        nucleus = self.nucleus if self.method.seeded else None
        return tile(image, self.method, plan, folder, nucleus=nucleus, resume=resume)

    def _maps(self, image: NDArray[Any], window: Window) -> NDArray[Any]:
        pixels = image[: 0 if self.method.default_channels == () else None]
        method = _adapted(self.method, image)
        model = method.load("cpu")
        parts = lambda box: _locked(pixels[(slice(None), *box.slices)])  # noqa: E731
        view = View(window, _info(image), _statistics(self.method, image), model=model, read=parts)
        if method.reads_parts:
            return np.asarray(method.predict(np.zeros((len(pixels), *(0,) * self.ndim), pixels.dtype), view))
        read = window.box.grow(method.reach(_info(image)), window.image)
        return np.asarray(method.predict(_locked(pixels[(slice(None), *read.slices)].copy()), view))

    def _decode(self, image: NDArray[Any], window: Window) -> Decoded:
        """Decode a window alone: the maps in their stored precision, no image."""
        maps = _locked(self.method.stored(self._all_maps(image, window)))
        seeds = self._seeds(image)(window) if self.method.seeded or self.method.proposes else None
        view = View(window, _info(image), _statistics(self.method, image), seeds, tally=self._tallies(image))
        return _adapted(self.method, image).decode(maps, view)

    def _tallies(self, image: NDArray[Any]) -> Callable[[Box], NDArray[np.int32]] | None:
        """Return what reads the counts of a box, from those of the whole image."""
        if not self.method.tallies:
            return None
        maps, method = _locked(self.method.stored(self._maps(image, _whole(image)))), _adapted(self.method, image)
        counts = method.tally(maps, View(_whole(image), _info(image), _statistics(self.method, image)))
        assert counts is not None
        return lambda box: counts[box.slices]

    def _all_maps(self, image: NDArray[Any], window: Window) -> NDArray[Any]:
        """Return the maps of a window as `Method.decode` gets them: of points all whose extents meet it."""
        if not self.method.sparse:
            return self._maps(image, window)
        maps, box = self._maps(image, _whole(image)), window.box
        boxes = _adapted(self.method, image).extents(maps, _info(image))
        return maps[((boxes[:, : self.ndim] < box.stop) & (boxes[:, self.ndim :] > box.start)).all(axis=1)]

    def _seeds(self, image: NDArray[Any]) -> Callable[[Window], Seeds]:
        """Return the seeds of any window, from the whole image."""
        whole = _whole(image)
        view = View(whole, _info(image), _statistics(self.nucleus, image))
        if self.method.proposes:
            maps = self.method.stored(self._maps(image, whole))
            method = _adapted(self.method, image)
            found = method.propose(_locked(maps), View(whole, _info(image), _statistics(self.method, image)))
            kept = np.asarray(found.anchors)[greedy(found.scores, found.anchors, found.edges)]
            if self.method.sparse:
                return lambda w: Seeds(None, kept - np.array(w.box.start))
            return lambda w: Seeds(None, kept[w.box.holds(kept)] - np.array(w.box.start))
        nucleus = _adapted(self.nucleus, image)
        nuclei = nucleus.decode(nucleus.stored(nucleus.predict(image, view)), view)
        assert nuclei.anchors is not None
        anchors = np.asarray(nuclei.anchors)

        def seeds(window: Window) -> Seeds:
            part = nuclei.labels[window.box.slices]
            ids, dense = np.unique(np.append(part, 0), return_inverse=True)
            labels = dense[:-1].reshape(part.shape).astype(np.int32)
            return Seeds(_locked(labels), anchors[ids[1:] - 1] - np.array(window.box.start))

        return seeds


def _info(image: NDArray[Any]) -> ImageInfo:
    return ImageInfo(image.shape[1:], image.dtype, n_channels=len(image))


def _whole(image: NDArray[Any]) -> Window:
    box = Box.whole(image.shape[1:])
    return Window(box, box, box)


def _windows(image: NDArray[Any], context: tuple[int, ...]) -> list[Window]:
    """Return a window in the middle, one at the first corner, one at the last."""
    whole = Box.whole(image.shape[1:])
    thirds = [
        tuple((n * a // 5, max(n * b // 5, n * a // 5 + 1)) for n in whole.stop) for a, b in ((2, 3), (0, 2), (3, 5))
    ]
    cores = [Box(tuple(a for a, _ in t), tuple(b for _, b in t)) for t in thirds]
    return [Window(core.grow(tuple(c + 3 for c in context), whole), core, whole) for core in cores]


def _random_plan(rng: np.random.Generator, shape: tuple[int, ...], context: tuple[int, ...], *, least: bool) -> Plan:
    """Return a plan of at most three cores along an axis, with odd sizes and a small first core."""
    core = [int(rng.integers(max(1, -(-n // 3)), n + 1)) for n in shape]
    halo = context if least else tuple(c + int(rng.integers(0, 12)) for c in context)
    return make_plan(shape, core, halo, first=[int(rng.integers(1, c + 1)) for c in core])


def _statistics(method: Method, image: NDArray[Any]) -> dict[Any, float]:
    info = _info(image)
    plan, source = make_plan(info.shape, info.shape, (0,) * info.ndim), da.from_array(image, chunks=-1)
    return measure_image(source, method.statistics(info), plan, Executor(1), "statistics")


def _adapted(method: Method, image: NDArray[Any]) -> Method:
    return method.adapted(_info(image), _statistics(method, image))


def _locked(array: NDArray[Any]) -> NDArray[Any]:
    array.flags.writeable = False
    return array
