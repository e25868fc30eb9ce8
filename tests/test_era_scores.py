"""How answers of eras are weighed, and clips that would answer everything."""

from __future__ import annotations

import numpy as np
import pytest

from streamlearn.era_scores import HEAD, hubness, less_hubness, weighed
from streamlearn.records import Vectors


def units(seed: int, n: int, d: int = 8) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_score_is_the_weighted_mean_of_cosine_and_familiarity() -> None:
    cosines = [np.array([[0.1, 0.5], [0.2, 0.6]], np.float32), np.array([[0.3], [0.4]], np.float32)]
    familiar = np.array([[1.0, 0.0], [0.5, 0.25]], np.float32)
    found = weighed(cosines, familiar, 0.5)
    np.testing.assert_allclose(found[0], [[1.1 / 1.5 - 0.5 / 1.5, 1.0 / 1.5], [0.2 / 1.5, 0.6 / 1.5]], rtol=1e-5)
    np.testing.assert_allclose(found[1], [[0.55 / 1.5], [0.525 / 1.5]], rtol=1e-5)


def test_a_clip_that_is_near_to_every_caption_no_longer_answers_for_one_that_is_near_to_this_alone() -> None:
    captions = np.eye(65, dtype=np.float32)
    hub = np.full(65, 65**-0.5, np.float32)
    own = np.float32(0.12) * captions[2] + np.float32((1 - 0.12**2) ** 0.5) * captions[64]
    clips, captions = np.stack([hub, own]), captions[:64]
    scores = captions[2:3] @ clips.T
    assert scores[0, 0] > scores[0, 1]
    less = less_hubness(scores, hubness(clips, captions)[None], hub_weight=0.5, familiarity_weight=0.5)
    assert less[0, 0] < less[0, 1]


def test_how_near_a_clip_is_to_all_captions_is_the_log_mean_exp_of_its_cosines() -> None:
    clips, captions = units(0, 9000), units(1, 1024)
    exact = np.log(np.exp(15 * clips.astype(np.float64) @ captions.T).mean(1)) / 15
    np.testing.assert_allclose(hubness(clips, captions), exact, rtol=1e-4)
    assert np.isfinite(hubness(clips, captions[:64])).all()
    assert np.isnan(hubness(clips, captions[:63])).all()


def test_a_clip_of_an_era_that_was_told_little_is_found_by_its_own_caption() -> None:
    # Of a few captions one is the clip's own, and would say that it is near to all of them.
    axes = np.eye(80, dtype=np.float32)
    young, old = axes[:4], axes[4:]
    own = np.float32(0.8) * young[0] + np.float32(0.6) * axes[79]
    other = np.float32(0.75) * young[0] + np.float32((1 - 0.75**2) ** 0.5) * axes[78]
    near = np.concatenate([hubness(own[None], young), hubness(other[None], old)])
    scores = np.array([[own @ young[0], other @ young[0]]])
    less = less_hubness(scores, near[None], hub_weight=0.5, familiarity_weight=0.5)
    assert less[0, 0] > less[0, 1]


@pytest.mark.parametrize("seed", range(5))
def test_what_is_told_apart_once_more_stays_above_what_is_not(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = -np.sort(-rng.uniform(-1, 1, (4, HEAD + 20)).astype(np.float32))
    near = rng.uniform(-0.2, 0.9, (4, HEAD)).astype(np.float32)
    less = less_hubness(scores, near, hub_weight=0.5, familiarity_weight=0.5)
    assert (less[:, :HEAD].min(1) >= less[:, HEAD:].max(1)).all()
    assert (np.diff(less[:, HEAD:]) <= 0).all()


def test_of_a_clip_whose_era_has_no_caption_as_much_is_taken_as_of_the_others() -> None:
    scores = np.zeros((2, 3), np.float32)
    near = np.array([[0.2, np.nan, 0.4], [np.nan, np.nan, np.nan]], np.float32)
    less = less_hubness(scores, near, hub_weight=1, familiarity_weight=0)
    np.testing.assert_allclose(less, [[-0.2, -0.3, -0.4], [0, 0, 0]], atol=1e-6)
