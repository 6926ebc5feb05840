"""What tests need: synthetic tissue with ground truth, accuracy scores, strategies, the contract of methods.

Importing it needs neither pytest nor hypothesis: the strategies import hypothesis when they are called, and
`MethodTests` imports pytest when it is asked for, and is not part of ``import *``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from spatialdata_segment.testing import strategies
from spatialdata_segment.testing.scores import Scores, match_scores
from spatialdata_segment.testing.tissue import Tissue, TissueBlock

if TYPE_CHECKING:
    from spatialdata_segment.testing.methods import MethodTests as MethodTests

__all__ = ["Scores", "Tissue", "TissueBlock", "match_scores", "strategies"]


def __dir__() -> list[str]:
    return sorted([*globals(), "MethodTests"])


def __getattr__(name: str) -> Any:
    if name == "MethodTests":
        from spatialdata_segment.testing.methods import MethodTests

        return MethodTests
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
