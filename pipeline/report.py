"""Numbers and pictures → one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.page import Picture, format_number, render_page

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class _Row:
    """A line of the table, formatted."""

    name: str
    label: str
    meaning: str
    count: str
    value: str
    deviation: str
    baseline: str
    baseline_deviation: str


@dataclass(frozen=True)
class _Headline:
    value: str
    label: str
    remark: str


def render(
    numbers: Numbers,
    description: Mapping[str, Any],
    pictures: Sequence[Picture],
    notes: Sequence[str],
    credit: str,
    licence: str,
) -> str:
    """The page as HTML, everything inside it.

    numbers: metrics.json, where None is shown as a dash; description: model.json; pictures: the sample grid first;
    notes: what a reader of the numbers must know; credit and licence: of the images, empty where nothing is known.
    """
    data, parameters = description["data"], description["parameters"]
    size = description["architecture"]["image_size"]
    title = f"Faces from {data['source'] or 'unnamed images'}, γ = {parameters['gamma']:g}"
    lead = (
        f"A boundary equilibrium GAN at {size} × {size} pixels, after {description['step']:,} steps on "
        f"{data['num_train']:,} images: what it draws, how it got there, and how close that is to images it never saw."
    )
    return render_page(
        "report.html",
        title=title,
        lead=lead,
        headline=_headlines(numbers),
        rows=_rows(numbers),
        notes=notes,
        pictures=pictures,
        settings=_settings(description),
        parameters={name: "null" if value is None else value for name, value in parameters.items()},
        credit=credit or f"source {data['source'] or 'unknown'}",
        licence=licence,
        model_digest=description["weights"]["generator.safetensors"],
    )


def _headlines(numbers: Numbers) -> list[_Headline]:
    return [
        _Headline(
            format_number(numbers["frechet_face"]),
            "Fréchet distance, face features",
            f"real images: {format_number(numbers['frechet_face_baseline'])}",
        ),
        _Headline(format_number(numbers["diversity"]), "diversity", "1 is that of real images"),
        _Headline(
            format_number(numbers["reconstruction_loss_held_out"]),
            "reconstruction loss, held out",
            f"training rows: {format_number(numbers['reconstruction_loss_train'])}",
        ),
        _Headline(format_number(numbers["M_global"]), "M_global", "convergence, lower is better"),
    ]


def _rows(numbers: Numbers) -> list[_Row]:
    samples, held_out, train = (f"{numbers[name]:,}" for name in ("num_samples", "num_held_out", "num_train"))
    against = f"n = {samples} against {held_out}"

    def row(name: str, label: str, meaning: str, count: str, baseline: str = "", deviations: bool = False) -> _Row:
        return _Row(
            name,
            label,
            meaning,
            count,
            format_number(numbers[name]),
            format_number(numbers[f"{name}_std"]) if deviations and numbers[f"{name}_std"] is not None else "",
            format_number(numbers[baseline]) if baseline else "",
            format_number(numbers[f"{baseline}_std"]) if deviations and numbers[f"{baseline}_std"] is not None else "",
        )

    return [
        row(
            "frechet_face",
            "Fréchet distance",
            "How far the samples’ distribution is from that of real images, in the features of a network that knows "
            "faces. Lower is better; few images make it larger. Not the FID, which uses Inception features.",
            against,
            "frechet_face_baseline",
        ),
        row(
            "kid_face",
            "Kernel distance (KID)",
            "The same question asked without that bias: around 0 for equal distributions. Lower is better; ± over "
            "subsets.",
            against,
            "kid_face_baseline",
            deviations=True,
        ),
        row(
            "diversity",
            "Diversity",
            "Mean distance between two samples over that between two held-out images, in face features. 0 is one "
            "image over and over. It says nothing of quality.",
            against,
            "diversity_baseline",
        ),
        row(
            "spread",
            "Spread of pixels",
            "The same in plain pixels: standard deviation over images, samples’ over held-out images’. It sees a "
            "background that never changes.",
            against,
            "spread_baseline",
        ),
        row(
            "reconstruction_loss_held_out",
            "Reconstruction loss, held out",
            "L(x) of D on images it never saw, pixels in −1 … 1. Lower is better.",
            f"n = {held_out}",
        ),
        row(
            "reconstruction_loss_train",
            "Reconstruction loss, training",
            "The same on training images. Much lower than held out would mean memorising.",
            f"n = {train}",
        ),
        row(
            "M_global",
            "M_global",
            "L(x) + |γ·L(x) − L(G(z))|, the paper’s measure of convergence, at the last record of the run. It does "
            "not see a collapse: read it with the diversity.",
            "",
        ),
    ]


def _settings(description: Mapping[str, Any]) -> dict[str, str]:
    data, parameters = description["data"], description["parameters"]
    architecture = description["architecture"]
    return {
        "γ": f"{parameters['gamma']:g}",
        "λ_k": f"{parameters['lambda_k']:g}",
        "profile": str(parameters["profile"]),
        "source": str(data["source"]),
        "image size": f"{architecture['image_size']} × {architecture['image_size']}",
        "training images": f"{data['num_train']:,}",
        "steps": f"{description['step']:,}",
        "batch size": f"{parameters['train.batch_size']}",
        "n": f"{architecture['n_filters']}",
        "N_h": f"{architecture['N_h']}",
        "skip connections": "yes" if architecture["skip_connections"] else "no",
        "seed": f"{parameters['seed']}",
        "device, precision": f"{description['device']}, {description['precision']}",
        "torch": str(description["versions"]["torch"]),
    }
