"""Results → a Markdown table, and the page of docs/ that has it between two marks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from began.base.files import replace_file
from experiments.runs import FRECHET, LEAST_K_T, MOST_K_T, RATIO, WARNED
from pipeline.report.page import format_number

Numbers = Mapping[str, float | None]


class Column(NamedTuple):
    """A column of a table: the number's name, how the page calls it, and the name of the real images' number."""

    name: str
    label: str
    real: str = ""
    counts: bool = False  # of 0 and 1: how many seeds have a 1 is said, in place of a mean


COLUMNS = (
    Column(RATIO, "L(G(z)) / L(x)"),
    Column(LEAST_K_T, "least k_t"),
    Column(MOST_K_T, "largest k_t"),
    Column("spread", "spread", "spread_baseline"),
    Column("diversity", "diversity", "diversity_baseline"),
    Column("coverage_face", "coverage", "coverage_face_baseline"),
    Column("recall_face", "recall", "recall_face_baseline"),
    Column("precision_face", "precision", "precision_face_baseline"),
    Column(FRECHET, "Fréchet / real"),
    Column("rank_correlation", "rank correlation"),
    Column(WARNED, "runs warned of a collapse", counts=True),
)


def numbers_table(first: str, rows: Mapping[str, Sequence[Numbers]], columns: Sequence[Column] = COLUMNS) -> str:
    """A line for each of `rows`: its name in the column `first`, then each number's mean over the seeds (min–max).

    The last line has the numbers of real images, the mean over all runs.
    """
    lines = [[name, *(_cell(column, seeds) for column in columns)] for name, seeds in rows.items()]
    everything = [numbers for seeds in rows.values() for numbers in seeds]
    real = [format_number(_mean(column.real, everything)) if column.real else "" for column in columns]
    return markdown([first, *(column.label for column in columns)], [*lines, ["real images", *real]])


def markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table, without a line break at its end."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines))


def write_table(page: Path, name: str, table: str) -> None:
    """Puts `table` between the marks `name` of the page, and prints it. ValueError when the page lacks the marks."""
    start, end = f"<!-- table {name} -->", f"<!-- end of table {name} -->"
    text = page.read_text(encoding="utf-8")
    if text.count(start) != 1 or text.count(end) != 1 or text.index(start) > text.index(end):
        raise ValueError(f"{page}: expected one line {start!r} and, below it, one line {end!r}")
    before, rest = text.split(start)
    _, after = rest.split(end)
    with replace_file(page) as temporary:
        temporary.write_text(f"{before}{start}\n{table}\n{end}{after}", encoding="utf-8")
    print(table)


def _cell(column: Column, seeds: Sequence[Numbers]) -> str:
    values = _values(column.name, seeds)
    if column.counts:
        return f"{sum(values):.0f} of {len(values)}"
    mean = format_number(_mean(column.name, seeds))
    return mean if len(values) < 2 else f"{mean} ({format_number(min(values))}–{format_number(max(values))})"


def _mean(name: str, seeds: Sequence[Numbers]) -> float | None:
    values = _values(name, seeds)
    return sum(values) / len(values) if values else None


def _values(name: str, seeds: Sequence[Numbers]) -> list[float]:
    return [value for numbers in seeds if (value := numbers.get(name)) is not None]
