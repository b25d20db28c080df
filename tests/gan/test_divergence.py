from __future__ import annotations

import numpy as np

from began.gan.divergence import (
    COLLAPSE_GRACE_STEPS,
    COLLAPSED_SHARE,
    STEPS_AT_BOUND,
    LossWatch,
    is_too_long,
    warn_of_collapse,
    warn_of_k_t,
)

IMAGES = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), dtype=np.uint8)


def alike(share: float) -> np.ndarray:
    """IMAGES drawn together around their mean."""
    mean = IMAGES.mean(axis=0)
    return (mean + share * (IMAGES - mean)).round().astype(np.uint8)


def test_one_image_over_and_over_is_a_collapse():
    assert "varied 0.00 times" in warn_of_collapse(COLLAPSE_GRACE_STEPS, alike(0.0), IMAGES)
    assert warn_of_collapse(COLLAPSE_GRACE_STEPS, alike(COLLAPSED_SHARE * 0.9), IMAGES) is not None


def test_varied_samples_are_none_and_nor_is_a_generator_that_has_just_begun():
    assert warn_of_collapse(COLLAPSE_GRACE_STEPS, alike(COLLAPSED_SHARE * 1.1), IMAGES) is None
    assert warn_of_collapse(COLLAPSE_GRACE_STEPS, IMAGES, IMAGES) is None
    assert warn_of_collapse(COLLAPSE_GRACE_STEPS - 1, alike(0.0), IMAGES) is None


def test_images_that_are_all_the_same_say_nothing_about_the_generator():
    assert warn_of_collapse(COLLAPSE_GRACE_STEPS, IMAGES, alike(0.0)) is None


def test_k_t_is_told_after_a_thousand_steps_at_its_bound():
    assert warn_of_k_t(5000, STEPS_AT_BOUND - 1) is None
    assert "k_t had been 0 or 1 for 1,000 steps on end" in warn_of_k_t(5000, STEPS_AT_BOUND)


def watched(losses: list[float]) -> LossWatch:
    watch = LossWatch()
    for step, loss in enumerate(losses, 1):
        watch.add(step, loss)
    return watch


def test_a_loss_is_near_its_best_up_to_three_times_that():
    falling = [1 / (1 + step) + 0.2 for step in range(100)]
    near = watched([*falling, *[3 * min(falling)] * 100])
    assert (near.last_near, near.is_far, near.has_exploded) == (200, False, False)
    far = watched([*falling, *[2.0] * 100])
    assert (far.last_near, far.is_far, far.has_exploded) == (100, True, False)
    assert watched([*falling, 2.2]).has_exploded
    back = watched([*falling, *[2.0] * 99, 0.3])
    assert (back.last_near, back.is_far) == (200, False)


def test_a_loss_that_is_far_for_an_eighth_of_the_run_has_diverged():
    assert is_too_long(100, 800) and not is_too_long(99, 800)
    assert is_too_long(32, 40) and not is_too_long(31, 40)
    assert is_too_long(5000, 400_000) and not is_too_long(4999, 400_000)
