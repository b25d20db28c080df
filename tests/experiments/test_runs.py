"""Rows of settings through the real pipeline in a fresh clone, and tables between the marks of a page."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from began.base.parallel import num_cores
from began.params import load_params
from experiments import readme, search, weights
from experiments.page import numbers_table, write_table
from experiments.runs import Row, call, curve_numbers, read_record, run_rows
from pipeline.report.find_runs import fetch
from tests.pipeline.clone import Clone, make_clone

TINY = {
    "preprocess": {"held_out": 0.4},
    "train": {"n_filters": 4, "N_h": 8, "batch_size": 4, "num_steps": 24, "evaluate_every": 0},
    "evaluate": {"num_samples": 16},
}
ROWS = (
    Row("too-much", {"gamma": 2}),
    Row("unknown", {"gama": 0.5}),
    Row("good", {"gamma": 0.5, "profiles.quick.train.n_filters": 8}, "wider"),
)


@pytest.fixture
def clone(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone in which nothing has run, as the current folder."""
    clone = make_clone(repository, tmp_path, gamma=0.9, download={"num_images": 60}, quick=TINY)
    monkeypatch.delenv("DVC_ROOT")
    monkeypatch.chdir(clone.root)
    return clone


@pytest.mark.timeout(900)  # runs the whole pipeline
def test_rows_run_beside_failing_ones_and_a_second_call_trains_nothing(
    clone: Clone, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    record = tmp_path / "record.json"
    [good] = run_rows(ROWS, record, [{"name": "earlier"}])
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith(("too-much failed: began:", "unknown failed: ERROR:"))] == [
        line for line in told if " failed: " in line
    ]
    assert "Running stage 'train':" in told
    assert good.row.name == "good" and good.run.G is not None
    assert good.run.parameters["gamma"] == "0.5" and good.run.parameters["train.n_filters"] == "8"
    assert good.numbers["frechet_face"] is not None and good.numbers["L_fake/L_real"] is not None
    earlier, too_much, unknown, entry = read_record(record)
    assert earlier == {"name": "earlier"}
    assert "gamma" in too_much["error"] and "gama" in unknown["error"]
    assert entry["settings"] == ROWS[-1].settings and entry["comment"] == "wider"
    assert entry["numbers"] == good.numbers
    assert entry["commit"] == clone.git("log", "-1", "--format=%h").strip()

    [again] = run_rows(ROWS[-1:], record)
    told = capsys.readouterr().err.splitlines()
    assert not any(line.startswith("Running stage") for line in told)
    assert again.run.model_digest == good.run.model_digest and again.numbers == good.numbers

    fetch("good", "data/images.h5", tmp_path / "images.h5")
    fetched = (tmp_path / "images.h5").stat()
    assert fetched.st_size > 60 * 32 * 32 * 3 and fetched.st_nlink == 1  # no link into DVC's cache
    with pytest.raises(ValueError, match="good: data/nothing of this revision is not to be had"):
        fetch("good", "data/nothing", tmp_path / "nothing")


@pytest.mark.skipif(num_cores() < 2, reason="a single core has no two shares")
@pytest.mark.timeout(900)  # runs the whole pipeline twice
def test_two_rows_at_once_each_have_half_of_the_cores(
    clone: Clone, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = [Row(f"seed-{seed}", {"seed": seed}) for seed in (0, 1, 2)]
    found = run_rows(rows, tmp_path / "record.json", jobs=2)
    assert [one.row for one in found] == rows
    assert [entry["name"] for entry in read_record(tmp_path / "record.json")] == [row.name for row in rows]
    assert len({one.run.model_digest for one in found}) == 3
    told = capsys.readouterr().err.splitlines()
    assert {f"{row.name}: Running stage 'train':" for row in rows} <= set(told)
    with pytest.raises(ValueError, match=f"--jobs: 0, expected a divisor of {num_cores()}, the number of cores"):
        run_rows(rows, tmp_path / "record.json", jobs=0)


@pytest.mark.parametrize("program", ["gamma", "clutter", "search", "convergence", "small-data", "default"])
def test_a_page_has_the_marks_of_its_program(program: str, repository: Path, tmp_path: Path) -> None:
    page = {"search": "docs/quick-profile.md", "default": "README.md"}.get(program, f"docs/{program}.md")
    copy = tmp_path / "page.md"
    copy.write_text((repository / page).read_text(encoding="utf-8"), encoding="utf-8")
    write_table(copy, program, "| a |")
    assert f"<!-- table {program} -->\n| a |\n<!-- end of table {program} -->\n" in copy.read_text(encoding="utf-8")


def test_a_table_leaves_the_rest_of_its_page_untouched(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Title\n\n<!-- table a -->\nold\n<!-- end of table a -->\n\n<!-- table b -->\nthe end")
    write_table(page, "a", "| new |")
    assert page.read_text() == (
        "# Title\n\n<!-- table a -->\n| new |\n<!-- end of table a -->\n\n<!-- table b -->\nthe end"
    )
    with pytest.raises(ValueError, match=r"page\.md: expected one line '<!-- table b -->'"):
        write_table(page, "b", "| new |")


def test_a_table_has_means_and_ranges_of_seeds_and_a_line_of_real_images() -> None:
    seeds = [{"spread": 0.5, "spread_baseline": 1.0}, {"spread": 0.7, "spread_baseline": 1.0, "coverage_face": None}]
    header, _, line, real = (row.split(" | ") for row in numbers_table("γ", {"0.4": seeds}).splitlines())
    spread, coverage = header.index("spread"), header.index("coverage")
    assert (line[0], line[spread], line[coverage]) == ("| 0.4", "0.600 (0.500–0.700)", "–")
    assert (real[0], real[spread]) == ("| real images", "1.000")


def test_the_alarm_is_counted_and_the_readme_has_every_seed() -> None:
    seeds = [{"spread": 0.5, "warned_of_collapse": 1.0}, {"spread": 0.7, "warned_of_collapse": 0.0}]
    header, _, line, _ = (row.split(" | ") for row in numbers_table("γ", {"0.4": seeds}).splitlines())
    assert line[header.index("runs warned of a collapse |")] == "1 of 2 |"
    assert "| spread | ≥ 0.80 | 0.500, 0.700 | – |" in readme.table(seeds).splitlines()


def test_the_balance_is_of_the_last_third_of_the_steps_and_k_t_of_the_second_half() -> None:
    """Records are dense at first, as a run's are: their number says nothing about the steps between them."""
    history = {
        "step": np.array([1.0, 2, 4, 6, 7, 9, 10, 12]),
        "L_real": np.array([9.0, 9, 9, 9, 9, 2, 2, 2]),
        "L_fake": np.array([9.0, 9, 9, 9, 9, 1, 2, 1]),  # the last three are means of 2, 1 and 2 steps
        "k_t": np.array([0, 0.9, 0, 0.9, 0.3, 0.5, 0.4, 0.55]),
    }
    assert curve_numbers(history) == {"L_fake/L_real": pytest.approx(0.6), "k_t_min": 0.3, "k_t_max": 0.55}


@pytest.mark.parametrize("rows", [search.ROWS, weights.ROWS], ids=["search", "weights"])
def test_every_row_is_valid_and_unlike_the_others(rows: tuple[Row, ...], repository: Path, tmp_path: Path) -> None:
    read = {}
    for row in rows:
        document = yaml.safe_load((repository / "params.yaml").read_text(encoding="utf-8"))
        for key, value in row.settings.items():
            *sections, name = key.split(".")
            section = document
            for part in sections:
                section = section[part]
            assert name in section
            section[name] = value
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(document), encoding="utf-8")
        read[row.name] = load_params(tmp_path / "params.yaml").model_dump_json()
    assert len(set(read.values())) == len(rows) == len(read)


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["search", "nonsense"])
    with pytest.raises(SystemExit) as ended:
        call(search.main)
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments: nonsense: no such row, expected one of baseline, ")


def test_outside_a_git_repository_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        call(lambda: bool(run_rows(ROWS, tmp_path / "record.json")))
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("experiments: the current folder is not a git clone: fatal: ")
    assert not (tmp_path / "record.json").exists()
