"""Standard errors over text: neighbours are alike, and the error must know."""

import math

import numpy as np
import pytest

from qexport.verification.blocks import block_error


def test_independent_values_have_the_usual_error():
    values = np.random.default_rng(1).normal(size=(64, 256))
    assert block_error(values) == pytest.approx(1 / math.sqrt(values.size), rel=0.15)


def test_values_that_come_in_runs_have_a_larger_one():
    """Each value stands 16 times in a row: there are 16 times fewer of them than positions."""
    values = np.repeat(np.random.default_rng(2).normal(size=(64, 16)), 16, axis=1)
    assert block_error(values) == pytest.approx(4 / math.sqrt(values.size), rel=0.2)


def test_it_covers_what_it_should():
    """Of many texts, about two in three means lie within one error of the truth."""
    dice = np.random.default_rng(3)
    inside = 0
    for _ in range(300):
        values = np.repeat(dice.random((4, 64)) < 0.3, 4, axis=1)[:, :255]
        error = block_error(values)
        assert error is not None
        inside += abs(values.mean() - 0.3) <= error
    assert 0.55 < inside / 300 < 0.8


def test_blocks_of_unequal_length_and_a_single_one():
    assert block_error(np.ones((1, 40))) is None
    assert block_error(np.ones((2, 40))) == 0
    assert block_error(np.arange(255.0)[None]) > 0
