"""Kept cells that plain rules call into question: their stain is that of the ground, or their nucleus a speck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from spatialdata_segment._report.facts import PLURAL
from spatialdata_segment._table import INSTANCE_KEY
from spatialdata_segment.pl._numbers import intensities_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pandas as pd
    from numpy.typing import NDArray

    from spatialdata_segment._results import Result

_FAINT = 0.1
"""A cell is of the ground where it rises above it by less than this share of what the median cell does."""
_SPECK = 0.2
"""A nucleus is a speck below this share of the median one, and of the median share of nuclei in their cells."""
_ENOUGH = 10
"""Cells of which a median says what is usual."""


@dataclass(frozen=True)
class Doubt:
    """The cells that one rule calls into question.

    Attributes
    ----------
    why
        The rule, in two words or three.
    remark
        What to say of them together.
    ids
        Of the main mask, the largest object first.
    what
        What to say of each.
    """

    why: str
    remark: str
    ids: tuple[int, ...]
    what: tuple[str, ...]


def doubts(result: Result, ground: Mapping[str, float]) -> list[Doubt]:
    """Return the cells in question, by rule; empty where none is, or the rules do not apply.

    Parameters
    ----------
    result
        With its table.
    ground
        Channel -> its intensity outside of all objects.
    """
    obs = result.table.obs
    if len(obs) < _ENOUGH:
        return []
    found = (_faint(result, ground), _specks(obs))
    return [doubt for doubt in found if doubt is not None]


def _faint(result: Result, ground: Mapping[str, float]) -> Doubt | None:
    """Return the cells that are as dark as the ground in every channel of which their mask was made."""
    table = result.table
    measured = [str(c) for c in table.var_names]
    used = [str(c) for c in result.metadata.get("channels", {}).get(result.main, ())]
    if "log1p" in table.uns:  # X is no intensity any more
        return None
    if not used or any(c not in measured or c not in ground for c in used):
        return None
    means = np.column_stack([intensities_of(result, c) for c in used])
    usual, dark = np.median(means, axis=0), np.array([ground[c] for c in used])
    if not (usual > dark).all():
        return None
    which = ((means - dark) < _FAINT * (usual - dark)).all(axis=1)
    at = _largest_first(table.obs, which)
    said = tuple(
        "; ".join(
            f"mean {c} {means[i, k]:,.4g}, ground {dark[k]:,.4g}, median {result.main} {usual[k]:,.4g}"
            for k, c in enumerate(used)
        )
        for i in at
    )
    remark = (
        f"as dark in {' and '.join(used)} as the ground between objects, to less than {_FAINT:.0%} of what is usual: "
        "it may be empty ground around debris. See the crops, and the size filters."
    )
    return _doubt("stain of the ground", remark, result.main, table.obs, at, said)


def _specks(obs: pd.DataFrame) -> Doubt | None:
    """Return the cells of one nucleus that is small among nuclei, and in its cell."""
    if not {"n_nuclei", "nucleus_area"} <= set(obs):
        return None
    area = obs["nucleus_area"].to_numpy(np.float64)
    one = (obs["n_nuclei"] == 1).to_numpy() & (area > 0)
    if one.sum() < _ENOUGH:
        return None
    share = area / obs["area"].to_numpy(np.float64)
    usual = float(np.median(area[one]))
    which = one & (area < _SPECK * usual) & (share < _SPECK * float(np.median(share[one])))
    at = _largest_first(obs, which)
    said = tuple(f"its nucleus is {area[i] / usual:.1%} of the median one, and {share[i]:.1%} of the cell" for i in at)
    remark = (
        f"around a speck: a nucleus of less than {_SPECK:.0%} of the median one in area, and in its share of the cell. "
        "It may be debris: see the crops, and nucleus_size."
    )
    return _doubt("nucleus a speck", remark, "cell", obs, at, said)


def _doubt(
    why: str, remark: str, mask: str, obs: pd.DataFrame, at: NDArray[np.intp], said: tuple[str, ...]
) -> Doubt | None:
    if not len(at):
        return None
    ids = tuple(int(i) for i in obs[INSTANCE_KEY].to_numpy()[at])
    several = len(ids) > 1
    those = PLURAL[mask] if several else mask
    named = f"id{'s' if several else ''} {', '.join(map(str, ids[:3]))}{', …' if len(ids) > 3 else ''}"
    told = f"{len(ids):,} {those} of {len(obs):,} ({named}) {'are' if several else 'is'} {remark}"
    return Doubt(why, told, ids, said)


def _largest_first(obs: pd.DataFrame, which: NDArray[np.bool_]) -> NDArray[np.intp]:
    at = np.flatnonzero(which)
    return at[np.argsort(-obs["area"].to_numpy(np.float64)[at], kind="stable")]
