"""Sphinx configuration."""

from __future__ import annotations

import shutil
from pathlib import Path

import spatialdata_segment

HERE = Path(__file__).parent

# sphinx reads what lies in its own folder alone
(HERE / "notebooks").mkdir(exist_ok=True)
for notebook in (HERE.parent / "notebooks").glob("*.ipynb"):
    shutil.copyfile(notebook, HERE / "notebooks" / notebook.name)

project = "spatialdata-segment"
author = "The spatialdata-segment developers"
copyright = "2026, the spatialdata-segment developers"
version = release = spatialdata_segment.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
exclude_patterns = ["_build", "**.ipynb_checkpoints"]
templates_path = ["_templates"]
default_role = "py:obj"

autosummary_generate = True
autodoc_typehints = "none"  # the signatures stand in the source; the docstrings say what the arguments mean
autodoc_member_order = "bysource"
napoleon_google_docstring = False
napoleon_use_rtype = False
napoleon_use_ivar = True
napoleon_attr_annotations = False

nb_execution_mode = "off"  # the stored outputs are shown; .ci/run executes the notebook
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

html_theme = "sphinx_book_theme"
html_title = "spatialdata-segment"
html_static_path = ["_static"]
