"""How far two answers agree, by what they hold; and each figure turns when an answer is damaged."""

import numpy as np
import pytest

from edgekit import agreement

CHANCE = np.random.default_rng(0)


def unit(*shape: int) -> np.ndarray:
    rows = CHANCE.normal(size=shape)
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


SCORES = CHANCE.normal(size=(1, 10)).astype(np.float32)
EMBEDDING = unit(1, 128)
SOUND = CHANCE.normal(size=(1, 400)).astype(np.float32)
MAP = CHANCE.normal(size=(1, 3, 16, 16)).astype(np.float32)
WHOLE = np.arange(12).reshape(1, 12)


@pytest.mark.parametrize(
    "answer", [SCORES, EMBEDDING, SOUND, MAP, WHOLE, np.float32([[0.3]]), np.zeros((1, 400))]
)
def test_what_is_the_same_agrees_wholly(answer):
    assert agreement.one_of(answer, answer.copy()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("answer", "damaged", "most"),
    [
        (SCORES, np.roll(SCORES, 1), 0.0),
        (EMBEDDING, unit(1, 128), 0.5),
        (EMBEDDING, -EMBEDDING, 0.0),
        (SOUND, SOUND[:, ::-1].copy(), 0.6),
        (MAP, np.roll(MAP, 1, axis=1), 0.6),
        (WHOLE, WHOLE + 1, 0.0),
        (SCORES, SCORES[:, :5], 0.0),
        (SCORES, SCORES.astype(np.int64), 0.0),
        (SOUND, np.full_like(SOUND, np.nan), 0.0),
    ],
)
def test_what_is_damaged_does_not(answer, damaged, most):
    assert agreement.one_of(answer, damaged) <= most


def test_noise_of_twenty_decibels_is_a_hundredth():
    noise = CHANCE.normal(size=SOUND.shape).astype(np.float32) * 0.1
    assert agreement.one_of(SOUND, SOUND + noise) == pytest.approx(0.99, abs=0.003)


def test_scores_that_move_without_changing_the_answer_agree():
    assert agreement.one_of(SCORES, SCORES * np.float32(1.3)) == 1.0


def test_what_post_processing_ranks_are_scores_however_many():
    many = CHANCE.normal(size=(1, 1000)).astype(np.float32)
    moved = many + CHANCE.normal(size=many.shape).astype(np.float32) * 0.001
    assert agreement.of({"y": many}, {"y": moved}, {"y"}) == {"y": 1.0}
    assert 0.99 < agreement.of({"y": many}, {"y": moved})["y"] < 1.0
    assert agreement.of({"y": many}, {"z": moved}) == {}
