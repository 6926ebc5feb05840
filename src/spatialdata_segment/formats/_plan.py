"""What the commands on files would write, and what that takes: the answer of their dry runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class OutputPlan:
    """What a command would write; printed, it reads as a summary.

    Attributes
    ----------
    shape
        ``([z], y, x)`` of the labels, px; None where none are written.
    dtype
        Of the labels; "uint32 or uint64" where the largest id decides and is not known before all are read.
    n_polygons, n_planes
        What is read; None where there are none, or they have no planes.
    memory_bytes
        Predicted peak of what is held: polygons, and the blocks in flight.
    memory_bytes_per_cell
        What comes to it for each cell, where cells are not counted beforehand.
    outputs
        Names of what would be written, and their kinds.
    """

    shape: tuple[int, ...] | None
    dtype: str | None
    n_polygons: int | None
    n_planes: int | None
    memory_bytes: int
    memory_bytes_per_cell: int
    outputs: dict[str, str]

    def __str__(self) -> str:
        what = [
            f"{n:,} {name}" for n, name in ((self.n_polygons, "polygons"), (self.n_planes, "planes")) if n is not None
        ]
        if self.shape is not None:
            what.append(f"labels of {' x '.join(map(str, self.shape))} px, {self.dtype}")
        cells = f", and {self.memory_bytes_per_cell / 1e3:.0f} KB a cell" if self.memory_bytes_per_cell else ""
        return "\n".join(
            [", ".join(what), f"memory {self.memory_bytes / 1e9:.2f} GB{cells}", f"writes {', '.join(self.outputs)}"]
        )
