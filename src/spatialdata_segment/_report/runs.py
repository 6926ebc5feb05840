"""The sections of a report on parameters, versions and time: tables of what is on record."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from spatialdata_segment._report import facts, page

if TYPE_CHECKING:
    from spatialdata_segment._results import Result


def parameters(result: Result) -> str:
    """Return what decided the result: of the first run, and of the regions that were segmented again."""
    metadata = result.metadata
    shown = {n: v for n, v in metadata.items() if n not in ("versions", "counts", "statistics", "updates")}
    rows = [row for row in facts.flat(shown) if row[1] != "none"]
    html = page.table(["name", "value"], rows, "What decided the result; what is not set is in the JSON below")
    if statistics := [row for row in facts.flat(metadata.get("statistics", {})) if row[1] != "none"]:
        html += page.table(["name", "value"], statistics, "Statistics of the whole image that the methods used")
    if again := facts.update_rows(metadata):
        told = "Regions that were segmented again, by runs"
        html += page.table(["run", "", "went", "came", "new ids after"], again, told)
        if changes := facts.update_changes(metadata):
            told = "Their parameters, where they are unlike those of the first run"
            html += page.table(["run", "name", "here", "first run"], changes, told)
        else:
            html += page.paragraph("Their parameters are those of the first run.")
    whole = json.dumps(metadata, indent=1, sort_keys=True, ensure_ascii=False)
    return html + page.details("All of it as JSON", whole)


def run(result: Result) -> str:
    """Return versions, and the time and memory of the run."""
    record = result.record
    versions = dict(result.metadata.get("versions", {})) | (record.get("versions", {}) if record else {})
    html = page.table(["package", "version"], sorted(versions.items()), "Versions")
    if record is None:
        return html
    rows = [(s["stage"], int(s["tasks"]), float(s["seconds"])) for s in record.get("stages", [])]
    html += page.table(["stage", "tasks", "seconds"], rows, "Time by stage")
    memory = record.get("memory_bytes")
    told = {
        "started": record["started"],
        "whole run": f"{record['seconds']:.1f} s",
        "memory of the driving process, at most": "unknown" if memory is None else f"{memory / 1e6:,.0f} MB",
        "host": record["host"],
        "platform": record.get("platform", "unknown"),
        "executor": record["executor"],
        "jobs": ", ".join(f"{k} {v}" for k, v in record["n_jobs"].items()),
        "devices": ", ".join(record["devices"]),
    }
    again = facts.updates_of(result)
    return html + page.table(
        ["", ""], told.items(), "The run, before regions were segmented again" if again else "The run"
    )


def duration(seconds: float) -> str:
    """Return a time as text."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86_400 else f"{seconds / 3600:.1f} h"
