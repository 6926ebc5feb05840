"""Execute the notebooks, each in a kernel of this environment, and store their outputs.

``python notebooks/execute.py`` writes them, all or those that are named; with ``--check`` nothing is written, and an
error in a cell fails.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

MOST_BYTES = 500_000


def execute(path: Path, check: bool) -> None:
    """Run one notebook."""
    start = time.monotonic()
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    client.execute(cwd=str(path.parent))
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr"]
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    text = nbformat.writes(notebook) + "\n"
    if len(text) > MOST_BYTES:
        sys.exit(f"{path}: {len(text):,} bytes with outputs, expected at most {MOST_BYTES:,}")
    if not check:
        path.write_text(text, encoding="utf-8")
    print(f"{path}: {len(text):,} bytes, {time.monotonic() - start:.0f} s")


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="without .ipynb; none: all")
    parser.add_argument("--check", action="store_true", help="write nothing")
    args = parser.parse_args()
    every = {path.stem: path for path in sorted(Path(__file__).parent.glob("*.ipynb"))}
    if unknown := set(args.names) - set(every):
        parser.error(f"no notebook {', '.join(unknown)}: expected {', '.join(every)}")
    for name in args.names or every:
        execute(every[name], args.check)


if __name__ == "__main__":
    main()
