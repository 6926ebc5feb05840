"""Networks of Cellpose 4, beside its own package: same tiles, same maps, same cells.

It needs an environment of its own, since cellpose 4 needs torchvision, and that the torch it was built for::

    python -m venv .venv4 && .venv4/bin/pip install -e ".[cellpose4]" pytest hypothesis
    .venv4/bin/pytest tests/parity/test_cellpose4.py

The weights are random and never shipped. But for one test, the encoders are of the same code, and of two blocks.
"""

from __future__ import annotations

import os

import pytest

HOW = "needs cellpose 4.2 or later, in an environment of its own: see the head of this file"
if "cellpose4" not in os.environ.get("SPATIALDATA_SEGMENT_REQUIRE", ""):
    pytest.importorskip("cellpose.vit", reason=HOW, exc_type=ImportError)

