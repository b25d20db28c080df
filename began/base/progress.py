"""How far a long piece of work is: what the library yields and the pipeline shows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` (None: unknown) `unit`s; `note` is shown beside the bar."""

    done: int
    total: int | None
    unit: str = "images"
    note: str = ""
