"""The comparison page, of runs made up for it and of a real model folder."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from began.gan.networks import Generator
from pipeline.cli import main
from pipeline.report import comparison
from pipeline.report.comparison import render, table_of
from pipeline.report.find_runs import Run
from tests.pipeline import browser
from tests.pipeline.report.test_report import Page

NUMBERS: dict[str, float | None] = {
    "frechet_face": 91.2,
    "frechet_face_baseline": 4.5,
    "kid_face": 0.0123,
    "kid_face_std": 0.002,
    "recall_face": 0.30,
    "recall_face_baseline": 0.9,
    "diversity": 0.5,
    "diversity_baseline": 1.01,
    "attributes_overlap_skin": 0.75,
    "num_samples": 2000,
    "num_held_out": 2000,
    "M_global": 0.07,
}


def history_of(gamma: float) -> dict[str, np.ndarray]:
    steps = np.arange(1, 61) * 40.0
    loss = 0.05 + 0.4 * np.exp(-steps / 200)
    return {
        "step": steps,
        "M_global": loss * (1 + gamma),
        "L_real": loss,
        "L_fake": loss * gamma,
        "k_t": np.minimum(steps / 4000, 0.15 * gamma),
        "learning_rate": np.full(60, 1e-4),
    }


def run_of(
    gamma: float, image_size: int = 32, N_h: int = 4, numbers: dict[str, Any] | None = None, **changes: Any
) -> Run:
    torch.manual_seed(int(gamma * 100))
    arguments: dict[str, Any] = {
        "label": f"gamma-{gamma}",
        "origin": "DVC experiment",
        "model_digest": "0123456789abcdef",
        "parameters": {"gamma": str(gamma), "lambda_k": "0.01", "train.N_h": str(N_h), "train.num_steps": "2400"},
        "data": {"source": "portraits", "digest": "feedbeef" * 8},
        "image_size": image_size,
        "G": Generator(image_size, 2, N_h, True).requires_grad_(False).eval(),
        "step": 2400,
        "versions": "cpu, float32, torch 2.13.0",
        "history": history_of(gamma),
        "distances": {
            "step": np.array([800.0, 1600.0, 2400.0]),
            "face_distance": np.array([300.0, 200.0, 90.0 / gamma]),
        },
        "numbers": NUMBERS | (numbers or {}),
    }
    return Run(**arguments | changes)


def words(text: str) -> str:
    return " ".join(Page(text).text.split())


def cells(text: str, label: str) -> list[tuple[str, bool]]:
    """The values of the table's line that starts with `label`, and whether each is marked."""
    line = next(part for part in text.split("<tr>") if re.match(rf"\s*<td>{re.escape(label)}\b", part))
    found = re.findall(r'<td class="figure( best)?( real)?">([^<]*)', line)
    return [(value.strip(), bool(best)) for best, _, value in found]


SWEEP = [0.3, 0.5, 0.7]


def test_the_page_stands_alone_and_has_the_runs_in_the_order_given() -> None:
    text = render([run_of(gamma) for gamma in (0.7, 0.3, 0.5)])
    page = Page(text)
    assert len(text) < 5_000_000
    assert not page.all("script") and "url(" not in text
    assert all(str(a["src"]).startswith("data:image/") and a["alt"] for a in page.all("img"))
    assert len(page.all("img")) == 3 + len(comparison.CURVES)
    assert [h.strip() for h in re.findall(r"<h3>([^<]*)", text)] == ["γ = 0.7", "γ = 0.3", "γ = 0.5"]
    assert "γ = 0.7, 0.3 and 0.5" in words(text)


def test_a_column_of_faces_is_one_z() -> None:
    """The same weights draw the same row; others of the same seed do not."""
    strips = comparison._strips([run_of(0.3), run_of(0.3), run_of(0.7)])
    images = [strip.image for strip in strips if strip is not None]
    assert images[0] == images[1] != images[2]
    assert "the same z" in words(render([run_of(0.3), run_of(0.7)]))


def test_runs_that_differ_in_more_than_gamma_keep_their_names_and_say_where_they_differ() -> None:
    other = run_of(0.7, N_h=8, label="other")
    text = render([run_of(0.3), other])
    shown = words(text)
    assert "gamma-0.3" in shown and "same seed of z (their N_h differ" in shown
    assert cells(text, "γ") == [("0.3", False), ("0.7", False)]
    assert cells(text, "train.N_h") == [("4", False), ("8", False)]
    assert "lambda_k" not in shown


def test_images_of_other_size_stand_beside_each_other() -> None:
    shown = words(render([run_of(0.3), run_of(0.5, image_size=64)]))
    assert "different size, 32 × 32 and 64 × 64 pixels" in shown


def test_a_number_that_a_run_lacks_is_a_dash() -> None:
    text = render([run_of(0.3), run_of(0.5, numbers={"frechet_face": None, "inception_score": 3.0})])
    assert cells(text, "Fréchet distance") == [("91.20", False), ("–", False), ("4.500", False)]
    assert cells(text, "Inception score") == [("–", False), ("3.000", False), ("", False)]
    assert "nan" not in words(text).lower().split() and "None" not in words(text)


def test_the_best_is_marked_only_where_it_leads_by_more_than_its_noise() -> None:
    def marked(label: str, first: dict[str, Any], second: dict[str, Any]) -> list[bool]:
        groups, _ = comparison._groups([run_of(0.3, numbers=first), run_of(0.5, numbers=second)])
        row = next(row for rows in groups.values() for row in rows if row.label.startswith(label))
        return [cell.is_best for cell in row.cells]

    assert marked("Fréchet distance", {"frechet_face": 91.0}, {"frechet_face": 80.0}) == [False, True]
    assert marked("Fréchet distance", {"frechet_face": 81.0}, {"frechet_face": 80.0}) == [False, False]
    assert marked("Kernel distance", {"kid_face": 0.012}, {"kid_face": 0.015}) == [False, False]
    assert marked("Kernel distance", {"kid_face": 0.012}, {"kid_face": 0.017}) == [True, False]
    assert marked("Recall", {"recall_face": 0.30}, {"recall_face": 0.32}) == [False, False]
    assert marked("Recall", {"recall_face": 0.30}, {"recall_face": 0.40}) == [False, True]
    # Neither more nor less is always better, or the measurements are not alike.
    assert marked("Diversity", {"diversity": 0.5}, {"diversity": 0.9}) == [False, False]
    assert marked("M_global", {"M_global": 0.5}, {"M_global": 0.1}) == [False, False]
    assert marked("Recall", {"recall_face": 0.30}, {"recall_face": 0.40, "num_samples": 16}) == [False, False]


def test_what_real_images_score_has_a_column_unless_the_runs_disagree() -> None:
    agreed = render([run_of(0.3), run_of(0.5)])
    assert "real images" in words(agreed) and cells(agreed, "Fréchet distance")[-1] == ("4.500", False)
    text = render([run_of(0.3), run_of(0.5, numbers={"frechet_face_baseline": 9.0})])
    assert "real 4.500" in words(text) and "real 9.000" in words(text)
    assert cells(text, "Fréchet distance")[-1] == ("", False)


def test_notes_tell_of_other_images_and_warnings() -> None:
    shown = words(
        render(
            [run_of(0.3), run_of(0.5, data={"source": "orl", "digest": "1"}, remarks=["warning of the training: x"])]
        )
    )
    assert "trained on different images" in shown and "gamma-0.5: warning of the training: x." in shown


def test_a_run_without_weights_shows_what_it_logged_and_says_so() -> None:
    grid = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    text = render([run_of(0.3), run_of(0.5, G=None, logged=grid), run_of(0.7, G=None, history=None, distances=None)])
    assert len(Page(text).all("img")) == 2 + len(comparison.CURVES)
    assert "of another z: its weights are not to be found" in words(text) and "No faces" in words(text)


def test_one_run_is_a_page_too() -> None:
    text = render([run_of(0.3)])
    assert "Run gamma-0.3" in words(text) and "What differs" not in words(text)


def test_many_large_runs_stay_under_five_megabytes() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (12, 128, 128, 3), dtype=np.uint8)
    runs = [run_of(gamma / 10, G=None, logged=noise, history=None, distances=None) for gamma in range(1, 11)]
    assert len(render([*runs, run_of(0.05)])) < 5_000_000


def test_what_strangers_wrote_stays_text() -> None:
    page = Page(render([run_of(0.3, label="<script>alert(1)</script>"), run_of(0.5, remarks=["<img src=x>"], step=1)]))
    assert not page.all("script") and len(page.all("img")) == 2 + len(comparison.CURVES)


def test_the_terminal_has_a_table_of_the_main_numbers() -> None:
    lines = table_of([run_of(gamma) for gamma in SWEEP]).splitlines()
    assert lines[0].split("  ") and lines[0].endswith("real images")
    assert len({len(line) for line in lines}) == 1
    assert re.fullmatch(r"Fréchet distance +91\.20 +91\.20 +91\.20 +4\.500", lines[1])


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years")
    with pytest.raises(SystemExit) as ended:
        main(["compare", "data/model", "--out", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"began: {tmp_path}: holds other things than a comparison")
    assert (tmp_path / "thesis.tex").read_text() == "years"


def test_the_page_reads_well_in_a_browser_on_a_phone_and_a_screen(tmp_path: Path) -> None:
    grid = np.random.default_rng(0).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)
    long = run_of(
        0.9, label="a-very-long-name-of-an-experiment-that-nobody-would-type-twice", G=None, logged=grid, step=9
    )
    page = tmp_path / "index.html"
    page.write_text(render([*(run_of(gamma) for gamma in SWEEP), long, *(run_of(g / 100) for g in range(1, 6))]))
    browser.check(page)


def test_the_browser_notices_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "index.html"
    page.write_text(
        "<!doctype html><html><body style='width: 900px'><img src='gone.png' alt='gone'>"
        "<script src='http://127.0.0.1:9/x.js'></script><script>console.error('bad')</script></body></html>"
    )
    with browser.open_browser() as opened:
        look = opened.look(page, 400)
    assert look.is_wider_than_window and look.broken == ["gone"]
    assert "bad" in look.errors and "http://127.0.0.1:9/x.js" in look.requests
