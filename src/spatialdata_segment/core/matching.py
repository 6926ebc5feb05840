"""The fate of every object: size filters, matching of nuclei and cells, final ids. Pure and vectorised.

The order, as in scPortrait: the size filters judge every whole object first, matching takes place among
those that pass, ids are given last. So a speck inside a cell, too small to count, does not make the cell
multinucleated. Three rules keep pairs exact while matching is on, whatever ``unmatched`` says:

- a nucleus whose cell was refused falls with it (``partner_dropped``);
- a cell of whose nuclei none passed falls with them (``partner_dropped``);
- a cell with two nuclei or more falls together with all of them (``multinucleated``), unless those are kept.

Every object has exactly one fate: kept, or dropped for one reason. Memory and time are O(objects).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from spatialdata_segment.core.jit import kernel
from spatialdata_segment.core.measure import locate
from spatialdata_segment.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from spatialdata_segment.core.measure import Pairs
    from spatialdata_segment.core.objects import Objects

    Ints = NDArray[np.int64]
    Codes = NDArray[np.uint8]

Unit = Literal["px", "um2", "um3"]
Rest = Literal["drop", "keep"]


class Reason(IntEnum):
    """Why an object was dropped; stored as codes of one byte."""

    KEPT = 0
    TOO_SMALL = 1
    TOO_LARGE = 2
    UNMATCHED = 3
    MULTINUCLEATED = 4
    PARTNER_DROPPED = 5
    OUTSIDE_REGION = 6
    COVERED = 7
    CONTACT = 8
    FLOW_ERROR = 9
    REPLACED = 10

    @property
    def text(self) -> str:
        """The name in ``drop_reason`` of the candidates table; empty for what was kept."""
        return {Reason.KEPT: "", Reason.CONTACT: "low_contact"}.get(self, self.name.lower())


REASONS = tuple(reason.text for reason in Reason)
"""Texts of the reasons, by code."""


@dataclass(frozen=True)
class SizeFilter:
    """Which areas (volumes) are kept: bounds, both inclusive, or an interval of the log-areas.

    Attributes
    ----------
    min_size, max_size
        The smallest and the largest area to keep, in ``unit``. One is enough.
    confidence_interval
        In place of bounds: the share, between 0 and 1, of a normal distribution that is kept around the mean
        of the log-areas of the whole image, cut alike at both ends (scPortrait's default filter). With fewer
        than two objects, or all of one area, all are kept.
    unit
        ``"px"``, or ``"um2"`` (2D) and ``"um3"`` (3D), which need the pixel size.

    Raises
    ------
    InputError
        With no bound at all, bounds and an interval at once, or values that select nothing.
    """

    min_size: float | None = None
    max_size: float | None = None
    confidence_interval: float | None = None
    unit: Unit = "px"

    def __post_init__(self) -> None:
        low, high, share = self.min_size, self.max_size, self.confidence_interval
        bounded = low is not None or high is not None
        if not bounded and share is None:
            raise InputError("size filter without a bound: give min_size, max_size or confidence_interval")
        if bounded and share is not None:
            raise InputError("size filter with bounds and a confidence_interval: give one of them")
        for name, bound in (("min_size", low), ("max_size", high)):
            if bound is not None and not bound >= 0:
                raise InputError(f"{name}={bound}: expected a number of at least 0")
        if low is not None and high is not None and low > high:
            raise InputError(f"min_size={low} is above max_size={high}: nothing would be kept")
        if share is not None and not 0 < share < 1:
            raise InputError(f"confidence_interval={share}: expected a number between 0 and 1, such as 0.95")
        if self.unit not in ("px", "um2", "um3"):
            raise InputError(f"unit={self.unit!r}: expected 'px', 'um2' or 'um3'")

    def judge(self, area: Ints, pixel_area: float | None = None) -> Codes:
        """Return the code of a :class:`Reason` for each area in pixels; 0 where it is kept.

        ``pixel_area`` is that of one pixel in µm² (of one voxel in µm³); needed for those units.
        """
        scale = 1.0
        if self.unit != "px":
            if pixel_area is None:
                raise InputError(f"a size filter in {self.unit} needs the pixel size: give pixel_size, or unit='px'")
            scale = pixel_area
        value = area * scale
        low, high = self._bounds(value)
        code = np.zeros(len(area), np.uint8)
        code[value < low] = Reason.TOO_SMALL
        code[value > high] = Reason.TOO_LARGE
        return code

    def _bounds(self, value: NDArray[np.floating]) -> tuple[float, float]:
        if self.confidence_interval is None:
            return self.min_size or 0.0, np.inf if self.max_size is None else self.max_size
        if len(value) < 2 or value.min() == value.max():
            return 0.0, np.inf
        logs = np.log(np.sort(value))  # sorted: the same sums for any order of the objects
        reach = NormalDist().inv_cdf(0.5 + self.confidence_interval / 2) * logs.std()
        return float(np.exp(logs.mean() - reach)), float(np.exp(logs.mean() + reach))


@dataclass(frozen=True)
class Rules:
    """What decides which objects are kept.

    Attributes
    ----------
    match_masks
        With two masks, keep matching pairs and give them one id.
    threshold
        The share of a nucleus' pixels that its cell must hold, above 0 and up to 1, inclusive.
    multinucleated
        ``"keep"`` keeps cells of two nuclei and more; all of them get the cell's id.
    unmatched
        ``"keep"`` keeps nuclei without cell and cells without nucleus, each with an id of its own.
    nucleus_size, cell_size
        Size filters, None for none.
    pixel_area
        Of one pixel in µm² (voxel in µm³), for size filters in these units.
    """

    match_masks: bool = True
    threshold: float = 0.95
    multinucleated: Rest = "drop"
    unmatched: Rest = "drop"
    nucleus_size: SizeFilter | None = None
    cell_size: SizeFilter | None = None
    pixel_area: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise InputError(f"matching threshold {self.threshold}: expected above 0 and up to 1, like 0.95")
        for name in ("multinucleated", "unmatched"):
            if getattr(self, name) not in ("drop", "keep"):
                raise InputError(f"{name}={getattr(self, name)!r}: expected 'drop' or 'keep'")


@dataclass(frozen=True)
class Fate:
    """What became of each object of one mask, in order of its ids.

    Attributes
    ----------
    ids
        ``(n,)`` int64: the candidate's id.
    final_id
        ``(n,)`` int64: its id in the result, 0 if it was dropped (or no ids are given yet).
    drop_reason
        ``(n,)`` uint8: code of a :class:`Reason`.
    match
        ``(n,)`` int64: candidate id of the partner, 0 for none. Of a nucleus: the cell that holds enough of
        it, also when either was dropped. Of a cell: its nucleus, the lowest id of several.
    overlap_fraction
        ``(n,)`` float64. Of a nucleus: the share of its pixels inside its matched, else its best cell (ties
        to the lower id). Of a cell: the share of its nuclei's pixels inside it, NaN without a nucleus.
    n_nuclei, nucleus_area
        ``(n,)`` int64: nuclei of a cell, and their pixels, those dropped by themselves left out. Of a
        nucleus: 1 and its own area. In a mask that is alone, like ``match``, 0.
    """

    ids: Ints
    final_id: Ints
    drop_reason: Codes
    match: Ints
    overlap_fraction: NDArray[np.float64]
    n_nuclei: Ints
    nucleus_area: Ints

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def is_kept(self) -> NDArray[np.bool_]:
        """Which objects are in the result."""
        kept: NDArray[np.bool_] = self.drop_reason == Reason.KEPT
        return kept

    @property
    def reasons(self) -> NDArray[np.str_]:
        """The reasons as text, empty for what was kept."""
        return np.array(REASONS)[self.drop_reason]

    @property
    def mapping(self) -> tuple[Ints, Ints]:
        """The kept candidates' ids, ascending, and their final ids."""
        kept = self.is_kept
        return (self.ids, self.final_id) if kept.all() else (self.ids[kept], self.final_id[kept])


class Matching(NamedTuple):
    """The fates of both masks, before final ids."""

    nucleus: Fate
    cell: Fate


@dataclass(frozen=True)
class Resolution:
    """The fates of both masks (None for a mask that there is not), and the largest final id."""

    nucleus: Fate | None
    cell: Fate | None
    n_ids: int

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Type of the final labels: uint32, uint64 beyond."""
        return np.dtype(np.uint32 if self.n_ids < 2**32 else np.uint64)


def match(
    nuclei: Objects,
    cells: Objects,
    pairs: Pairs,
    *,
    threshold: float = 0.95,
    multinucleated: Rest = "drop",
    unmatched: Rest = "drop",
    nucleus_reason: Codes | None = None,
    cell_reason: Codes | None = None,
) -> Matching:
    """Match nuclei to the cells that hold them.

    A nucleus belongs to the cell that holds at least ``threshold`` of its pixels; of several (a threshold of
    0.5 or less) to the one that holds most, ties to the lower id, cells already refused last.

    Parameters
    ----------
    nuclei, cells
        All whole objects of the two masks.
    pairs
        Pixels that nuclei (``a``) and cells (``b``) share.
    threshold, multinucleated, unmatched
        See :class:`Rules`.
    nucleus_reason, cell_reason
        Codes of the :class:`Reason` for which objects are refused already; None for no object.
    """
    rules = Rules(threshold=threshold, multinucleated=multinucleated, unmatched=unmatched)
    nucleus, cell = _partners(
        nuclei, cells, pairs, threshold, _codes(nuclei, nucleus_reason), _codes(cells, cell_reason)
    )
    return _drop_unpaired(nucleus, cell, rules)


def assign_ids(
    nuclei: Objects | None,
    cells: Objects | None,
    nucleus: Fate | None,
    cell: Fate | None,
    *,
    linked: bool = True,
) -> Resolution:
    """Give ids to what is kept: 1..N in raster order of the anchors (ties: cells first, then the lower id).

    Parameters
    ----------
    nuclei, cells
        The objects; their anchors give the order.
    nucleus, cell
        Their fates.
    linked
        One numbering for both masks, in which a nucleus takes the id of its cell and what has no partner
        stands at its own anchor. Else each mask is numbered by itself.
    """
    if nuclei is None or cells is None or nucleus is None or cell is None or not linked:
        nucleus, cell = _number(nucleus, nuclei), _number(cell, cells)
        largest = max((int(f.is_kept.sum()) for f in (nucleus, cell) if f is not None), default=0)
        return Resolution(nucleus, cell, largest)
    at, found = locate(cell.ids, nucleus.match)
    alone = nucleus.is_kept & ~found
    anchors = np.concatenate([cells.anchor[cell.is_kept], nuclei.anchor[alone]])
    rank = _ranks(anchors)
    cell_id, nucleus_id = np.zeros(len(cell), np.int64), np.zeros(len(nucleus), np.int64)
    n_cells = int(cell.is_kept.sum())
    cell_id[cell.is_kept] = rank[:n_cells]
    nucleus_id[alone] = rank[n_cells:]
    paired = nucleus.is_kept & found
    nucleus_id[paired] = cell_id[at[paired]]
    return Resolution(replace(nucleus, final_id=nucleus_id), replace(cell, final_id=cell_id), len(rank))


def resolve(
    nuclei: Objects | None,
    cells: Objects | None,
    pairs: Pairs | None,
    rules: Rules,
    *,
    nucleus_reason: Codes | None = None,
    cell_reason: Codes | None = None,
) -> Resolution:
    """Decide the fate of every object: refusals at hand, size filters, matching, ids, in this order.

    Parameters
    ----------
    nuclei, cells
        All whole objects of each mask; None for a mask that there is not.
    pairs
        Pixels that nuclei (``a``) and cells (``b``) share; needed with two masks.
    rules
        What decides.
    nucleus_reason, cell_reason
        Codes of the :class:`Reason` for which objects are refused already (outside the region, say); these
        are not part of an interval of log-areas. None for no object.

    Raises
    ------
    InputError
        If pairs are missing, or name objects that are not there, or a size filter cannot act.
    """
    nucleus = _sized(nuclei, rules.nucleus_size, rules.pixel_area, nucleus_reason)
    cell = _sized(cells, rules.cell_size, rules.pixel_area, cell_reason)
    if nuclei is None or cells is None or nucleus is None or cell is None:
        return assign_ids(nuclei, cells, _lone(nuclei, nucleus), _lone(cells, cell))
    if pairs is None:
        raise InputError("two masks without the counts of the pixels that they share: give pairs")
    matching = Matching(*_partners(nuclei, cells, pairs, rules.threshold, nucleus, cell))
    if rules.match_masks:
        matching = _drop_unpaired(*matching, rules)
    return assign_ids(nuclei, cells, *matching, linked=rules.match_masks)


def _codes(objects: Objects, reason: Codes | None) -> Codes:
    if reason is None:
        return np.zeros(len(objects), np.uint8)
    if reason.shape != (len(objects),):
        raise InputError(f"{reason.shape} reasons for {len(objects)} objects: expected one each")
    return reason.astype(np.uint8)


def _sized(
    objects: Objects | None, size: SizeFilter | None, pixel_area: float | None, reason: Codes | None
) -> Codes | None:
    if objects is None:
        return None
    code = _codes(objects, reason)
    if size is not None:
        if size.unit != "px" and size.unit != f"um{objects.ndim}":
            raise InputError(f"size filter in {size.unit} for a {objects.ndim}D mask: expected um{objects.ndim} or px")
        free = code == Reason.KEPT
        code[free] = size.judge(objects.area[free], pixel_area)
    return code


def _lone(objects: Objects | None, code: Codes | None) -> Fate | None:
    if objects is None or code is None:
        return None
    zeros, none = (np.broadcast_to(value, len(objects)) for value in (np.int64(0), np.nan))
    return Fate(objects.ids, zeros, code, zeros, none, zeros, zeros)


def _partners(
    nuclei: Objects, cells: Objects, pairs: Pairs, threshold: float, nucleus_code: Codes, cell_code: Codes
) -> tuple[Fate, Fate]:
    """Find each nucleus' cell and sum the nuclei of each cell; drops nothing."""
    both = (pairs.a > 0) & (pairs.b > 0)
    a, n_found = locate(nuclei.ids, pairs.a[both])
    b, c_found = locate(cells.ids, pairs.b[both])
    if not (n_found.all() and c_found.all()):
        raise InputError("pairs name objects that are not in the masks: measure both on the same labels")
    count = pairs.count[both]
    share = count / nuclei.area[a]
    rank = np.where(share >= threshold, np.where(cell_code[b] == Reason.KEPT, 0, 1), 2)
    order = np.lexsort((b, -count, rank, a))
    order = order[np.r_[True, np.diff(a[order]) != 0][: len(order)]]
    overlap = np.zeros(len(nuclei))
    overlap[a[order]] = share[order]
    held = order[rank[order] < 2]
    held = held[np.argsort(a[held])]
    n, c, inside = a[held], b[held], count[held]
    partner = np.zeros(len(nuclei), np.int64)
    partner[n] = cells.ids[c]

    counts = nucleus_code[n] == Reason.KEPT
    n_nuclei, area, within = (np.zeros(len(cells), np.int64) for _ in range(3))
    np.add.at(n_nuclei, c[counts], 1)
    np.add.at(area, c[counts], nuclei.area[n[counts]])
    np.add.at(within, c[counts], inside[counts])
    cell_partner = np.zeros(len(cells), np.int64)
    for group in (~counts, counts):  # backwards: the lowest id is written last
        cell_partner[c[group][::-1]] = nuclei.ids[n[group][::-1]]
    fraction = np.full(len(cells), np.nan)
    np.divide(within, area, out=fraction, where=n_nuclei > 0)
    no_nucleus_id, no_cell_id = np.zeros(len(nuclei), np.int64), np.zeros(len(cells), np.int64)
    return (
        Fate(nuclei.ids, no_nucleus_id, nucleus_code, partner, overlap, no_nucleus_id + 1, nuclei.area),
        Fate(cells.ids, no_cell_id, cell_code, cell_partner, fraction, n_nuclei, area),
    )


def _drop_unpaired(nucleus: Fate, cell: Fate, rules: Rules) -> Matching:
    ncode, ccode = nucleus.drop_reason.copy(), cell.drop_reason.copy()
    free = ccode == Reason.KEPT
    if rules.multinucleated == "drop":
        ccode[free & (cell.n_nuclei > 1)] = Reason.MULTINUCLEATED
    empty = free & (cell.n_nuclei == 0)
    ccode[empty & (cell.match > 0)] = Reason.PARTNER_DROPPED
    if rules.unmatched == "drop":
        ccode[empty & (cell.match == 0)] = Reason.UNMATCHED

    at, found = locate(cell.ids, nucleus.match)
    fate = np.zeros(len(nucleus), np.uint8)
    fate[found] = ccode[at[found]]
    free = ncode == Reason.KEPT
    ncode[free & (fate == Reason.MULTINUCLEATED)] = Reason.MULTINUCLEATED
    ncode[free & (fate != Reason.KEPT) & (fate != Reason.MULTINUCLEATED)] = Reason.PARTNER_DROPPED
    if rules.unmatched == "drop":
        ncode[free & ~found] = Reason.UNMATCHED
    return Matching(replace(nucleus, drop_reason=ncode), replace(cell, drop_reason=ccode))


def _ranks(anchors: Ints) -> Ints:
    """Return the places, from 1, of the anchors ``(n, ndim)`` in raster order; ties keep their order."""
    if _in_order(anchors):
        return np.arange(1, len(anchors) + 1)
    rank = np.empty(len(anchors), np.int64)
    rank[np.lexsort(anchors.T[::-1])] = np.arange(1, len(anchors) + 1)
    return rank


@kernel
def _in_order(anchors: Any) -> Any:
    for i in range(1, len(anchors)):
        for axis in range(anchors.shape[1]):
            if anchors[i, axis] > anchors[i - 1, axis]:
                break
            if anchors[i, axis] < anchors[i - 1, axis]:
                return False
    return True


def _number(fate: Fate | None, objects: Objects | None) -> Fate | None:
    if fate is None or objects is None:
        return None
    kept = fate.is_kept
    if kept.all():
        ranks = _ranks(objects.anchor)
        return replace(fate, final_id=fate.ids if np.array_equal(fate.ids, ranks) else ranks)
    final = np.zeros(len(fate), np.int64)
    if _in_order(objects.anchor):
        np.cumsum(kept, out=final)
        final *= kept
    else:
        final[kept] = _ranks(objects.anchor[kept])
    return replace(fate, final_id=final)
