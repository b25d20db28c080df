"""Numbers and pictures → one page that needs no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from began.evaluation.attributes import ATTRIBUTES
from pipeline.report.page import Picture, format_number, render_page

Numbers = Mapping[str, float | None]


@dataclass(frozen=True)
class _Meaning:
    """What a number is called, and says. Its baseline is what real images score in the same place."""

    name: str  # in metrics.json
    label: str
    meaning: str
    count: str = "{num_samples} against {num_held_out}"
    has_baseline: bool = True


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


def _distances(features: str, where: str) -> list[_Meaning]:
    """The numbers that compare two distributions in the features of one network."""
    inception = features == "inception"
    return [
        _Meaning(
            f"frechet_{features}",
            "FID" if inception else "Fréchet distance",
            "The Fréchet distance in Inception features, the number that papers quote; few images make it larger."
            if inception
            else "How far the samples’ distribution is from that of real images. Lower is better; few images make it "
            "larger. Not the FID, which uses Inception features.",
        ),
        _Meaning(
            f"kid_{features}",
            f"Kernel distance (KID){where}",
            "The same question asked without that bias: around 0 for equal distributions. Lower is better; ± over "
            "subsets.",
        ),
        _Meaning(
            f"precision_{features}",
            f"Precision{where}",
            "Share of samples that lie among real images (within the reach of one’s 3 nearest others).",
        ),
        _Meaning(
            f"density_{features}",
            f"Density{where}",
            "The same, counted by how many real images’ reach they lie in (5 nearest); outliers weigh less. Can exceed "
            "1.",
        ),
        _Meaning(
            f"recall_{features}", f"Recall{where}", "Share of real images that lie among samples (3 nearest others)."
        ),
        _Meaning(
            f"coverage_{features}",
            f"Coverage{where}",
            "Share of real images that have a sample within their reach (5 nearest others).",
        ),
    ]


_MEMORISING = [
    _Meaning(
        "nearest_training_face",
        "Nearest training image",
        "Median distance of a sample to the training image nearest to it; beside it, that of images that were never "
        "seen. Much smaller than theirs would mean copies.",
        "{num_samples} samples, {num_held_out} held-out images, among {num_neighbours}",
    ),
    _Meaning(
        "reconstruction_loss_held_out",
        "Reconstruction loss, held out",
        "L(x) of D on images it never saw, pixels in −1 … 1. Lower is better.",
        "{num_held_out}",
        has_baseline=False,
    ),
    _Meaning(
        "reconstruction_loss_train",
        "Reconstruction loss, training",
        "The same on as many training images.",
        "",
        has_baseline=False,
    ),
    _Meaning(
        "reconstruction_gap",
        "Gap",
        "Held out over training. Much above 1 means that D knows its training images by heart.",
        "",
        has_baseline=False,
    ),
]
_RUN = [
    _Meaning(
        "M_global",
        "M_global",
        "L(x) + |γ·L(x) − L(G(z))|, the paper’s measure of convergence, at the last record of the run. It does not see "
        "a collapse: read it with the diversity.",
        "",
        has_baseline=False,
    ),
    _Meaning(
        "rank_correlation",
        "Rank correlation of M_global with the face distance",
        "Spearman’s, over the run: 1 when M_global, as a mean since the distance before, always tells which of two "
        "moments was better.",
        "",
        has_baseline=False,
    ),
]
_SPREAD = [
    _Meaning(
        "diversity",
        "Diversity",
        "Mean distance between two samples over that between two held-out images. 0 is one image over and over. It "
        "says nothing of quality.",
    ),
    _Meaning(
        "spread",
        "Spread of pixels",
        "The same in plain pixels: standard deviation over images, samples’ over held-out images’. It sees a "
        "background that never changes.",
    ),
]
_ATTRIBUTES = [
    _Meaning(
        f"attributes_overlap_{name}",
        attribute.label.capitalize(),
        ""
        if i
        else "How much the samples’ histogram shares with that of the training images: 1 is the same histogram, 0 has "
        "nothing in common. Beside it, the same of held-out images.",
        "" if i else "{num_samples} samples, {num_held_out} held-out images",
    )
    for i, (name, attribute) in enumerate(ATTRIBUTES.items())
]


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
        groups=_groups(numbers),
        notes=notes,
        pictures=pictures,
        settings=_settings(description),
        parameters={name: "null" if value is None else value for name, value in parameters.items()},
        credit=credit or f"source {data['source'] or 'unknown'}",
        licence=licence,
        model_digest=description["weights"]["generator.safetensors"],
    )


def _headlines(numbers: Numbers) -> list[_Headline]:
    def headline(name: str, label: str, remark: str) -> _Headline:
        return _Headline(format_number(numbers[name]), label, remark)

    real = {name: format_number(numbers[f"{name}_baseline"]) for name in ("frechet_face", "coverage_face", "diversity")}
    return [
        headline("frechet_face", "Fréchet distance, face features", f"real images: {real['frechet_face']}"),
        headline("coverage_face", "coverage", f"real images: {real['coverage_face']}"),
        headline("diversity", "diversity", f"real images: {real['diversity']}"),
        headline("M_global", "M_global", "convergence, lower is better"),
    ]


def _groups(numbers: Numbers) -> dict[str, list[_Row]]:
    """Heading → lines of the table."""
    score = _Meaning(
        "inception_score", "Inception score", "How surely, and how variously, ImageNet’s classes are told. Higher is "
        "better.", "{num_samples}",
    )  # fmt: skip
    groups = {
        "Samples against held-out images, in face features": _distances("face", ""),
        "The same in Inception features": [*_distances("inception", ""), score],
        "How different samples are": _SPREAD,
        "Colours at known places": _ATTRIBUTES,
        "Memorising": _MEMORISING,
        "The run": _RUN,
    }
    rows = {
        heading: [_row(numbers, meaning) for meaning in group if meaning.name in numbers]
        for heading, group in groups.items()
    }
    return {heading: lines for heading, lines in rows.items() if lines}


def _row(numbers: Numbers, meaning: _Meaning) -> _Row:
    counts = {name: f"{value:,}" for name, value in numbers.items() if name.startswith("num_")}
    name, baseline = meaning.name, f"{meaning.name}_baseline"

    def deviation(of: str) -> str:
        value = numbers.get(f"{of}_std")
        return "" if value is None else format_number(value)

    return _Row(
        name,
        meaning.label,
        meaning.meaning,
        f"n = {meaning.count.format(**counts)}" if meaning.count else "",
        format_number(numbers[name]),
        deviation(name),
        format_number(numbers.get(baseline)) if meaning.has_baseline else "",
        deviation(baseline) if meaning.has_baseline else "",
    )


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
