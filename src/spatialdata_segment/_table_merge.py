"""Rows of a region that was segmented again, put in the tables of the result. Builds tables, and writes nothing."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from pandas.api.types import is_string_dtype
from spatialdata.models import TableModel

from spatialdata_segment._table import INSTANCE_KEY, KINDS, METADATA_KEY, REGION_KEY, plain, read_metadata
from spatialdata_segment.core.matching import REASONS, Reason

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from numpy.typing import NDArray

    Ints = NDArray[np.int64]

UPDATES = "updates"
"""Where the metadata of a table lists the runs that changed a part of it."""


def merge_cells(old: AnnData, new: AnnData, gone: Ints, said: Mapping[str, Any]) -> AnnData:
    """Return the cells that stay, as they were, and the new ones after them.

    Parameters
    ----------
    old, new
        Tables of cells. Columns that ``new`` does not have are empty for its rows.
    gone
        Ids of the cells that are left out.
    said
        What is to be said of this run: the last entry of "updates" of the metadata.
    """
    kept = old[~np.isin(old.obs[INSTANCE_KEY].to_numpy(), gone)]
    metadata = read_metadata(old)
    metadata[UPDATES] = [*metadata.get(UPDATES, []), dict(said)]
    table = _concat(kept, new)
    table.uns[METADATA_KEY] = json.dumps(metadata, sort_keys=True, default=plain)
    region = [str(r) for r in pd.unique(table.obs[REGION_KEY])]
    if not region:
        return TableModel.parse(table)
    return TableModel.parse(table, region=region[0], region_key=REGION_KEY, instance_key=INSTANCE_KEY)


def left_out(old: AnnData) -> list[str]:
    """Return what of a table of cells `merge_cells` leaves out, because it is of all cells together."""
    own = METADATA_KEY, TableModel.ATTRS_KEY
    parts = {"obsp": list(old.obsp), "uns": [n for n in old.uns if n not in own]}
    named = [f"{part} {', '.join(map(repr, names))}" for part, names in parts.items() if names]
    return (["raw"] if old.raw is not None else []) + named


def merge_candidates(old: AnnData, new: AnnData, gone: Mapping[str, Ints]) -> AnnData:
    """Return all candidates there ever were: those of cells that went are "replaced", the new ones follow.

    Parameters
    ----------
    old, new
        Tables of candidates; ids of each kind go on from the largest of ``old``, partners with them.
    gone
        Ids of the cells of each mask that went.
    """
    old, new = old.copy(), new.copy()
    obs = old.obs
    obs["drop_reason"] = obs["drop_reason"].astype(pd.CategoricalDtype(list(REASONS)))
    for mask, ids in gone.items():
        went = (obs["kind"] == mask).to_numpy() & np.isin(obs[INSTANCE_KEY], ids)
        obs.loc[went, "drop_reason"] = Reason.REPLACED.text
        obs.loc[went, "is_kept"] = False
        obs.loc[went, INSTANCE_KEY] = 0
    last = {k: int(obs.loc[obs["kind"] == k, "candidate_id"].max() if (obs["kind"] == k).any() else 0) for k in KINDS}
    kind = new.obs["kind"].to_numpy().astype(str)
    new.obs["candidate_id"] += np.array([last[k] for k in kind], np.int64)
    partner = np.array([last[KINDS[1 - KINDS.index(k)]] for k in kind], np.int64)
    new.obs["match"] = np.where(new.obs["match"] > 0, new.obs["match"] + partner, 0)
    new.obs_names = [f"{k}-{i}" for k, i in zip(kind, new.obs["candidate_id"], strict=True)]
    regions = [str(r) for t in (old, new) if REGION_KEY in t.obs for r in pd.unique(t.obs[REGION_KEY])]
    table = _concat(old, new)
    order = np.lexsort((table.obs["candidate_id"], [KINDS.index(k) for k in table.obs["kind"]]))
    table = table[order].copy()
    table.obs["kind"] = table.obs["kind"].astype(pd.CategoricalDtype(list(KINDS)))
    table.obs["drop_reason"] = table.obs["drop_reason"].astype(pd.CategoricalDtype(list(REASONS)))
    if not regions:
        return TableModel.parse(table)
    table.obs[REGION_KEY] = pd.Categorical([regions[0]] * table.n_obs)
    table.obs["instance_id"] = np.arange(1, table.n_obs + 1)
    return TableModel.parse(table, region=regions[0], region_key=REGION_KEY, instance_key="instance_id")


def _concat(old: AnnData, new: AnnData) -> AnnData:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of columns that one part does not have
        table = ad.concat([part for part in (old, new) if part.n_obs] or [old], join="outer", merge="first")
    for name in new.obs:  # integers of one part that the other has too stay integers
        if name in old.obs and old.obs[name].dtype == new.obs[name].dtype:
            table.obs[name] = table.obs[name].astype(new.obs[name].dtype)
    for name, column in table.obs.items():  # spatialdata would write what is missing among text as the text "nan"
        if column.isna().any() and is_string_dtype(column.dropna()):
            table.obs[name] = column.astype("category")
    return table
