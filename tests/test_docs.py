"""The Python in README and docs runs, and README holds the commands that CI calls."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from spatialdata_segment.core.matching import REASONS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
NEEDED = {"cellpose.md": "torch"}
"""What a page needs that the package does not."""
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[tuple[int, str]]:
    """Return the Python blocks of a page, each with the line at which it begins."""
    text = page.read_text(encoding="utf-8")
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in BLOCK.finditer(text)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda p: p.name)
def test_python_of_a_page_runs(page, tmp_path, monkeypatch, capsys):
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name])
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "page"}
    for line, source in blocks(page):
        exec(compile("\n" * line + source, str(page), "exec"), namespace)
    printed = capsys.readouterr().out
    assert not re.findall(
        rf"^(?:{'|'.join(filter(None, REASONS))})\s+0$", printed, re.MULTILINE
    )  # reasons that do not occur


def test_pages_have_python():
    assert {p.name for p in PAGES if blocks(p)} >= {"README.md", "first_steps.md", "extending.md"}


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script")
@pytest.mark.parametrize(("name", "expected"), [("demo", "spatialdata-segment demo"), ("test", "pytest -n auto")])
def test_ci_finds_the_commands_of_the_readme(name, expected):
    command = subprocess.run([ROOT / ".ci" / "readme-command", name], capture_output=True, text=True, check=True).stdout
    assert command.startswith("python3 -m venv .venv && .venv/bin/pip install ")
    assert command.strip().endswith(expected)
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_of_the_readme_lead_somewhere():
    links = re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert links
    assert not [link for link in links if not (ROOT / link).exists()]
