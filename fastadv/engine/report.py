"""What serves each layer of a compiled model, and why."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastadv.engine.speeds import Call


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
