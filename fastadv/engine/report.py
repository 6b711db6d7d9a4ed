"""What serves each layer of a compiled model, and why."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastadv.engine import inductor
from fastadv.engine.speeds import Call

if TYPE_CHECKING:
    from fastadv.engine.capture import Compiled


@dataclass(frozen=True)
class Row:
    """One layer: what runs its forward and its gradient."""

    layer: str
    op: str
    served_by: str
    why: str
    call: Call | None = field(default=None, compare=False, repr=False)  # as speeds.csv knows it


@dataclass(frozen=True)
class Report:
    """One table a graph: `graphs` maps what it was compiled for to its rows."""

    graphs: dict[str, tuple[Row, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def bypassed(self) -> bool:
        """Whether the model runs as plain torch."""
        return any(note.startswith("runs as plain torch") for note in self.notes)

    def __str__(self) -> str:
        lines = list(self.notes)
        for name, rows in self.graphs.items():
            table = [("layer", "op", "served by", "why")]
            table += [(r.layer, r.op, r.served_by, r.why) for r in rows]
            widths = [max(len(line[i]) for line in table) for i in range(4)]
            lines.append(name)
            lines += [
                "  " + "  ".join(t.ljust(w) for t, w in zip(line, widths, strict=True)).rstrip()
                for line in table
            ]
        return "\n".join(lines)


def report_of(compiled: Compiled) -> Report:
    """What serves a compiled model, as far as it was compiled."""
    on_device = any(map(inductor.serves, compiled.module.parameters()))
    plain = inductor.why_plain() if on_device else not compiled._plans.found and compiled._bypass
    notes = [f"runs as plain torch: {plain}"] if plain else []
    if not compiled._graphs and not plain:
        notes.append("nothing is compiled before the first forward")
    notes += compiled._plans.notes + (compiled._replays if on_device else compiled._loops).notes
    halves = [c.halves for c in compiled._compilers.values() if c.halves is not None]
    notes += [line for one in halves for line in one.plans.report()]
    if compiled._static_batch:
        notes.append("the model depends on the batch's size: each size is compiled")
    if size := compiled._weights.bytes:
        notes.append(f"packed weights: {size / 2**20:.1f} MiB")
    if size := compiled._copies.bytes:
        notes.append(f"copies of weights: {size / 2**20:.1f} MiB, written anew each attack")
    rows = tuple(compiled._learning.rows.values())
    return Report(compiled._graphs | ({"learn": rows} if rows else {}), tuple(notes))
