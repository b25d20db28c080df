"""What is known of an archive of images: the small JSON file beside it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

CARD_NAME = "card.json"
_DIGEST = "card_digest"  # key in the file


@dataclass(frozen=True)
class Card:
    """What an archive of images is, and whom to thank for it.

    `digest` is the archive's SHA-256. `attributes` maps a member's name to what is known of the image, e.g.
    {"background_hue": 212.4, "hairVariant": "bun", …}; None where nothing is. `left_out` counts by reason what the
    source held beside the images; None where that was nothing.
    """

    source: str
    count: int
    licence: str
    credit: str
    digest: str
    attributes: dict[str, dict[str, float | str]] | None = None
    left_out: dict[str, int] | None = None


def write_card(card: Card, path: Path) -> None:
    """Writes `card` as JSON: one line per entry at the top level, compact below it; last, a digest of the others."""
    values = _values(card) | {_DIGEST: _digest(card)}
    lines = [f"{json.dumps(key)}: {_compact(value)}" for key, value in values.items()]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def read_card(path: Path) -> Card:
    """Reads what `write_card` wrote; ValueError naming `path` when it is anything else."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        digest = values.pop(_DIGEST)
        card = Card(**values)
        changed = digest != _digest(card)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path}: is not a card of images ({' '.join(str(error).split())})") from None
    texts = (card.source, card.licence, card.credit, card.digest)
    if not all(isinstance(text, str) for text in texts) or type(card.count) is not int:
        raise ValueError(f"{path}: is not a card of images (source, licence, credit, digest: text; count: a number)")
    if card.attributes is not None and not (
        isinstance(card.attributes, dict) and all(isinstance(image, dict) for image in card.attributes.values())
    ):
        raise ValueError(f"{path}: is not a card of images (attributes: expected a mapping of names to mappings)")
    if card.left_out is not None and not (
        isinstance(card.left_out, dict) and all(type(count) is int for count in card.left_out.values())
    ):
        raise ValueError(f"{path}: is not a card of images (left_out: expected a mapping of reasons to numbers)")
    if changed:
        raise ValueError(f"{path}: its digest differs: damaged or changed since `began download` wrote it")
    return card


def _values(card: Card) -> dict[str, object]:
    """The fields of the file: without `left_out` where nothing was, as in cards before there was such a field."""
    values = asdict(card)
    if card.left_out is None:
        del values["left_out"]
    return values


def _digest(card: Card) -> str:
    return hashlib.sha256(json.dumps(_values(card), sort_keys=True).encode()).hexdigest()


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
