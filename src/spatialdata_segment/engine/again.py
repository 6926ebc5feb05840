"""What a window showed, and a second, farther look at what it did not show whole.

Only the surroundings of the objects in question are looked at again, in patches that grow until they show
all. Where these would cover most of the window, the whole of it runs again with a larger halo.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy import ndimage

from spatialdata_segment.core.boxes import Box
from spatialdata_segment.core.matching import Reason
from spatialdata_segment.core.plan import Window
from spatialdata_segment.core.shards import Labels, ShardObjects, ShardResult, dense, pick
from spatialdata_segment.errors import MethodError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from spatialdata_segment.methods.base import Decoded

_MANY = 256


@dataclass(frozen=True)
class Seen:
    """The labels of one window, and what is certain about them.

    Attributes
    ----------
    window
        Where.
    labels
        int32, 1..n the objects, 0 background, -1 something that the window does not show.
    objects
        Of the window.
    complete
        ``(n,)`` bool: the object is what the whole image would give.
    """

    window: Window
    labels: NDArray[np.int32]
    objects: ShardObjects
    complete: NDArray[np.bool_]

    @classmethod
    def of(cls, decoded: Decoded, window: Window, context: tuple[int, ...]) -> Self:
        """Hold what a method decoded to its contract, and measure it."""
        labels, anchors, complete, reason = _checked(decoded, window)
        objects = ShardObjects.of(labels, anchors, window, reason)
        if complete is None:
            complete = window.clearance(objects.bbox) > max(context)
        return cls(window, labels, replace(objects, owned=objects.owned & (objects.area > 0)), complete)

    @property
    def is_resolved(self) -> bool:
        """Whether all that the core holds is seen whole."""
        if self.window.is_whole:
            return True
        in_core = self.labels[self.window.core.within(self.window.box)]
        return not self.doubtful.any() and not bool((in_core < 0).any())

    @property
    def doubtful(self) -> NDArray[np.bool_]:
        """Objects that the core holds, or owns, and the window does not show whole."""
        return (self.objects.touches | self.objects.owned) & ~self.complete

    def unresolved(self) -> NDArray[np.bool_]:
        """Mark the core's pixels that belong to something not seen whole."""
        doubtful = np.concatenate([[True, False], ~self.complete])
        return pick(self.labels[self.window.core.within(self.window.box)], doubtful)

    def result(self, index: int) -> ShardResult:
        """Return the shard's result."""
        labels = self.labels if self.labels.min(initial=0) == 0 else np.maximum(self.labels, 0)
        return ShardResult(index, self.window, Labels(self.window.box, labels), self.objects)


def look_again(seen: Seen, halo: tuple[int, ...], context: tuple[int, ...], look: Callable[[Window], Seen]) -> Seen:
    """Return what is seen when everything in the core is seen whole.

    Parameters
    ----------
    seen
        The first look.
    halo
        How far beyond an object to look at first; it doubles as long as that does not suffice.
    context
        Of the method.
    look
        Predicts and decodes a window.
    """
    reach = tuple(max(h, 2 * c, 16) for h, c in zip(halo, context, strict=True))
    while not seen.is_resolved:
        window = seen.window
        wider = Window(window.box.grow(reach, window.image), window.core, window.image)
        boxes = _patches(seen, reach, max(context))
        if boxes is None or 2 * sum(b.size for b in boxes) > wider.box.size:
            seen = look(wider)
            reach = tuple(2 * r for r in reach)
        else:
            unresolved = seen.unresolved()
            seen = _merged(seen, [_patch(seen, unresolved, b, reach, context, look) for b in boxes], unresolved)
    return seen


def _patches(seen: Seen, reach: tuple[int, ...], context: int) -> list[Box] | None:
    """Boxes around what is not seen whole, joined where they meet; None where there are too many."""
    boxes = _around(seen.objects.bbox[seen.doubtful], seen.window, reach, context)
    hidden = seen.labels[seen.window.core.within(seen.window.box)] < 0
    if hidden.any():
        parts, _ = ndimage.label(hidden, np.ones((3,) * hidden.ndim))
        for found in ndimage.find_objects(parts):
            start = tuple(s.start + o for s, o in zip(found, seen.window.core.start, strict=True))
            stop = tuple(s.stop + o for s, o in zip(found, seen.window.core.start, strict=True))
            boxes.append(Box(start, stop).grow(reach, seen.window.image))
    if len(boxes) > _MANY:
        return None
    return _joined(boxes)


def _around(bbox: NDArray[np.int64], window: Window, reach: tuple[int, ...], context: int) -> list[Box]:
    """Boxes that should show the objects of ``bbox`` whole: ``reach`` farther where the window cut them.

    An object that the window does not cut anywhere is in doubt for another reason: ``reach`` on every side.
    """
    ndim, image = window.box.ndim, window.image
    cut = np.hstack(
        [
            (bbox[:, :ndim] - window.box.start <= context) & window.open_low,
            (window.box.stop - bbox[:, ndim:] <= context) & window.open_high,
        ]
    )
    cut |= ~cut.any(axis=1, keepdims=True)
    far = np.where(cut, np.tile(reach, 2), context + 1)
    low, high = bbox[:, :ndim] - far[:, :ndim], bbox[:, ndim:] + far[:, ndim:]
    pairs = zip(low.tolist(), high.tolist(), strict=True)
    return [Box(tuple(a), tuple(b)).intersect(image) for a, b in pairs]


def _joined(boxes: list[Box]) -> list[Box]:
    joined: list[Box] = []
    for box in boxes:
        while overlapping := [b for b in joined if b.intersect(box).size]:
            for other in overlapping:
                box = box.union(other)
                joined.remove(other)
        joined.append(box)
    return joined


def _patch(
    seen: Seen,
    unresolved: NDArray[np.bool_],
    box: Box,
    reach: tuple[int, ...],
    context: tuple[int, ...],
    look: Callable[[Window], Seen],
) -> Seen:
    """Look at a box, and at larger ones until each pixel in question is settled there."""
    core = seen.window.core
    while True:
        window = Window(box, box.intersect(core), seen.window.image)
        found = look(window)
        asked = unresolved[window.core.within(core)]
        settled = ~found.unresolved()
        sure = window.shrink(context).intersect(window.core)
        inside = np.zeros(asked.shape, bool)
        inside[sure.within(window.core)] = True
        settled &= inside | (found.labels[window.core.within(box)] > 0)
        if window.is_whole or settled[asked].all():
            return found
        cut = np.unique(found.labels[window.core.within(box)][asked & ~settled])
        wider = box
        for b in _around(found.objects.bbox[cut[cut > 0] - 1], window, reach, max(context)):
            wider = wider.union(b)
        box = wider if wider != box else box.grow(reach, window.image)
        reach = tuple(2 * r for r in reach)


def _merged(seen: Seen, patches: list[Seen], unresolved: NDArray[np.bool_]) -> Seen:
    """Put the objects of the patches in the place of those that were not seen whole."""
    core, box = seen.window.core, seen.window.box
    chosen = [_asked_for(p, unresolved, core) for p in patches]
    ndim = box.ndim
    for patch, which in zip(patches, chosen, strict=True):
        for b in patch.objects.bbox[which].tolist():
            box = box.union(Box(tuple(b[:ndim]), tuple(b[ndim:])))
    stays = seen.complete  # what is cut at the window's edge would hide the whole objects
    numbers = np.zeros(len(stays) + 2, np.int32)
    numbers[2:][stays] = np.arange(1, int(stays.sum()) + 1)
    canvas = np.zeros(box.shape, np.int32)
    canvas[seen.window.box.within(box)] = pick(seen.labels, numbers)
    parts, complete = [seen.objects.take(stays)], [seen.complete[stays]]
    known = {tuple(a) for a in seen.objects.anchor[stays & seen.objects.owned].tolist()}
    count, overlap = int(stays.sum()), False
    for patch, which in zip(patches, chosen, strict=True):
        fresh = [i for i in which.tolist() if tuple(patch.objects.anchor[i].tolist()) not in known]
        known |= {tuple(patch.objects.anchor[i].tolist()) for i in fresh}
        numbers = np.zeros(len(patch.objects) + 2, np.int32)
        numbers[2:][fresh] = np.arange(count + 1, count + len(fresh) + 1)
        count += len(fresh)
        common = patch.window.box.intersect(box)
        part = canvas[common.within(box)]
        new = pick(patch.labels[common.within(patch.window.box)], numbers)
        overlap |= bool(((new > 0) & (part > 0)).any())
        np.copyto(part, new, where=part == 0)
        parts.append(patch.objects.take(np.array(fresh, np.int64)))
        complete.append(patch.complete[fresh])
    window = Window(box, core, seen.window.image)
    objects = ShardObjects.concatenate(parts)
    if overlap:  # some have lost pixels
        objects = ShardObjects.of(canvas, objects.anchor, window, objects.reason)
        objects = replace(objects, owned=objects.owned & (objects.area > 0))
    return Seen(window, canvas, objects, np.concatenate(complete))


def _asked_for(patch: Seen, unresolved: NDArray[np.bool_], core: Box) -> NDArray[np.int64]:
    """Return the positions of a patch's whole objects that hold a pixel in question, or an anchor alone."""
    asked = unresolved[patch.window.core.within(core)]
    labels = np.unique(patch.labels[patch.window.core.within(patch.window.box)][asked])
    wanted = patch.objects.owned & ~patch.objects.touches
    wanted[labels[labels > 0] - 1] = True
    return np.flatnonzero(wanted & patch.complete)


def _checked(
    decoded: Decoded, window: Window
) -> tuple[NDArray[np.int32], NDArray[np.int64] | None, NDArray[np.bool_] | None, NDArray[np.uint8]]:
    """Hold the labels to the contract; number them 1..n without gaps, what is said of them along with them."""
    labels = np.asarray(decoded.labels)
    if labels.shape != window.box.shape or labels.dtype.kind not in "ui":
        raise MethodError(
            f"decode returned labels of shape {labels.shape} and dtype {labels.dtype}, expected integers of "
            f"shape {window.box.shape}"
        )
    numbered, values = dense(labels)
    at = values.astype(np.int64) - 1
    complete = None if decoded.complete is None else decoded.complete[at]
    if decoded.anchors is None:
        return numbered, None, complete, _reasons(decoded, at)
    n = len(decoded.anchors)
    if len(values) and int(values[-1]) > n:
        raise MethodError(f"decode returned the label {int(values[-1])} but only {n} anchors")
    anchors = np.asarray(decoded.anchors, np.int64)[at] + np.array(window.box.start)
    return numbered, anchors, complete, _reasons(decoded, at)


def _reasons(decoded: Decoded, at: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return the codes of the objects at the positions ``at``."""
    if decoded.reasons is None:
        return np.zeros(len(at), np.uint8)
    reasons = np.asarray(decoded.reasons)
    least = int(at.max(initial=-1)) + 1 if decoded.anchors is None else len(decoded.anchors)
    if reasons.ndim != 1 or len(reasons) < least or reasons.dtype.kind not in "ui":
        raise MethodError(
            f"decode returned reasons of shape {reasons.shape} and dtype {reasons.dtype}, expected {least} codes, "
            "integers, one an object"
        )
    if len(reasons) and not 0 <= reasons.min() <= reasons.max() < len(Reason):
        known = ", ".join(f"{r.value} ({r.name})" for r in Reason)
        raise MethodError(f"decode returned reasons {reasons.min()} to {reasons.max()}, expected codes of {known}")
    return reasons[at].astype(np.uint8)
