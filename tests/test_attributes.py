"""The classifier of attributes, on faces of coloured bars, and what is counted with it."""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
import pytest
import torch
from torch.nn import functional

from began import attributes
from began.attributes import AttributeClassifier, attributes_seen, labels_of, learn, shares
from began.progress import Progress

Card = dict[str, str]

VALUES = {
    "skinColor": ["#5c3829", "#f1c3a5"],
    "hairColor": ["#2c1b18", "#a55728", "#d6b370"],
    "beardVariant": ["chin", "fullBeard", "none"],
    "backgroundColor": ["#8ecae6", "#ffd97d"],
}


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def faces(num: int, seed: int, size: int = 32) -> tuple[np.ndarray, list[Card]]:
    """Background, a square of skin, hair above it, and a beard of the hair's colour: whole, half or none."""
    random = np.random.default_rng(seed)
    images = np.empty((num, 32, 32, 3), dtype=np.uint8)
    cards = []
    for image in images:
        card = {name: str(random.choice(values)) for name, values in VALUES.items()}
        top = 7 + random.integers(3)
        image[:] = rgb(card["backgroundColor"])
        image[top:27, 8:24] = rgb(card["skinColor"])
        image[top - 4 : top + 2, 6:26] = rgb(card["hairColor"])
        if card["beardVariant"] != "none":
            image[22:27, 8 if card["beardVariant"] == "fullBeard" else 14 : 24] = rgb(card["hairColor"])
        cards.append(card | {"clothesColor": "#000000"})
    return images.repeat(size // 32, axis=1).repeat(size // 32, axis=2), cards


def returned(generator: Generator[Progress, None, AttributeClassifier]) -> AttributeClassifier:
    while True:
        try:
            next(generator)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module", autouse=True)
def few_steps() -> Generator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attributes, "MOST_STEPS", 60)
        yield


@pytest.fixture(scope="module")
def classifier() -> AttributeClassifier:
    return returned(learn(*faces(600, 0), *faces(200, 1), seed=0))


def right(classifier: AttributeClassifier, images: np.ndarray, cards: list[Card]) -> dict[str, float]:
    answers, truth = classifier.classify([images]), labels_of(cards, classifier.values)
    return {name: float((answers[name] == truth[name]).mean()) for name in truth}


def test_what_the_cards_say_is_learned(classifier: AttributeClassifier) -> None:
    assert classifier.values == VALUES  # and no attribute that the cards lack
    assert min(classifier.accuracy.values()) > 0.97
    assert classifier.accuracy == right(classifier, *faces(200, 1))


def test_blurred_and_noisy_images_are_read_as_well(classifier: AttributeClassifier) -> None:
    images, cards = faces(200, 2)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    soft = functional.interpolate(functional.avg_pool2d(pixels, 2), scale_factor=2, mode="bilinear")
    soft += torch.randn(soft.shape, generator=torch.Generator().manual_seed(0)) * 8
    soft_images = soft.clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
    assert min(right(classifier, soft_images, cards).values()) > 0.95


def test_larger_images_give_the_same_answers(classifier: AttributeClassifier) -> None:
    small, large = (classifier.classify([faces(50, 3, size)[0]]) for size in (32, 128))
    assert all((small[name] == large[name]).all() for name in VALUES)


def test_answers_do_not_depend_on_batches(classifier: AttributeClassifier) -> None:
    images, _ = faces(50, 4)
    whole, parts = classifier.classify([images]), classifier.classify([images[:7], images[7:8], images[8:]])
    assert all((whole[name] == parts[name]).all() for name in VALUES)


def test_the_same_seed_gives_the_same_classifier_and_leaves_torch_s_random_numbers(
    classifier: AttributeClassifier,
) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    again = returned(learn(*faces(600, 0), *faces(200, 1), seed=0))
    assert torch.equal(torch.rand(3), expected)
    one, other = (each.network.state_dict() for each in (classifier, again))
    assert all(torch.equal(one[name], other[name]) for name in one)
    different = returned(learn(*faces(600, 0), *faces(200, 1), seed=1)).network.state_dict()
    assert not all(torch.equal(one[name], different[name]) for name in one)


def test_attributes_that_some_card_lacks_are_left_out() -> None:
    images, cards = faces(100, 0)
    del cards[3]["beardVariant"]
    assert "beardVariant" not in returned(learn(images[:90], cards[:90], images[90:], cards[90:], 0)).values


def test_a_value_the_classifier_never_saw_counts_as_wrong() -> None:
    images, cards = faces(100, 0)
    strange = [card | {"skinColor": "#00ff00"} for card in cards[90:]]
    learned = returned(learn(images[:90], cards[:90], images[90:], strange, 0))
    assert learned.accuracy["skinColor"] == 0


def test_few_images_of_one_value_are_enough() -> None:
    images, cards = faces(3, 0)
    same = [card | {"skinColor": "#5c3829"} for card in cards]
    learned = returned(learn(images[:2], same[:2], images[2:], same[2:], 0))
    assert learned.values["skinColor"] == ["#5c3829"] and learned.accuracy["skinColor"] == 1


def test_shares_are_those_of_a_plain_count() -> None:
    _, cards = faces(300, 0)
    found = shares(labels_of(cards, VALUES), VALUES)
    for name, values in VALUES.items():
        for value in values:
            assert found[name][value] == pytest.approx(sum(card[name] == value for card in cards) / 300)
    for skin in VALUES["skinColor"]:
        for hair in VALUES["hairColor"]:
            num = sum(card["skinColor"] == skin and card["hairColor"] == hair for card in cards)
            assert found["skinColor_hairColor"][f"{skin} {hair}"] == pytest.approx(num / 300)
    assert all(sum(of_values.values()) == pytest.approx(1) for of_values in found.values())


def test_a_tenth_of_the_data_s_share_counts_as_seen() -> None:
    data = {"skinColor": {"a": 0.5, "b": 0.25, "c": 0.25}}
    assert attributes_seen({"skinColor": {"a": 0.95, "b": 0.025, "c": 0.024}}, data) == {
        "attributes_seen_skinColor": pytest.approx(2 / 3)
    }
    assert attributes_seen(data, data) == {"attributes_seen_skinColor": 1}


def test_a_value_that_the_data_lack_is_not_asked_for() -> None:
    seen = attributes_seen({"skinColor": {"a": 1.0, "b": 0.0}}, {"skinColor": {"a": 1.0, "b": 0.0}})
    assert seen == {"attributes_seen_skinColor": 1}
