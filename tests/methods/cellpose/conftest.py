"""Small networks in files: one that finds bright spots, and random ones."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

RECIPES = Path(__file__).parents[2] / "parity/cellpose3/networks.py"


@pytest.fixture(scope="session")
def recipes():
    return runpy.run_path(str(RECIPES))


@pytest.fixture(scope="session")
def save_network(recipes, tmp_path_factory):
    """Write the weights of a CPnet into a file and return its path."""

    def save(
        kind="cells", name="weights", nbase=None, size=None, diameter=17.0, nout=3, seed=0, folder=None, **numbers
    ):
        import torch

        from spatialdata_segment.methods.cellpose.network import CPnet

        cells = kind == "cells"
        nbase = nbase or (recipes["CELL_NBASE"] if cells else (2, 4, 8))
        net = CPnet(nbase, nout=nout, size=size or (recipes["CELL_SIZE"] if cells else 3), diameter=diameter)
        state = net.state_dict()
        shapes = {n: tuple(v.shape) for n, v in state.items()}
        made = recipes["cell_weights"](shapes, **numbers) if cells else recipes["random_weights"](shapes, seed)
        state |= {n: torch.from_numpy(v).to(state[n].dtype) for n, v in made.items()}
        path = (folder or tmp_path_factory.mktemp("network")) / name
        torch.save(state, path)
        return path

    return save


@pytest.fixture(scope="session")
def cells_file(save_network):
    """A network that finds bright spots of some 8 px; the second channel counts for half."""
    return save_network()
