"""What tests need: synthetic tissue with ground truth, accuracy scores, hypothesis strategies.

Importing it needs neither pytest nor hypothesis; the strategies import hypothesis when they are called.
"""

from spatialdata_segment.testing import strategies
from spatialdata_segment.testing.scores import Scores, match_scores
from spatialdata_segment.testing.tissue import Tissue, TissueBlock

__all__ = ["Scores", "Tissue", "TissueBlock", "match_scores", "strategies"]
