"""Dropout: what is kept, divided by the share that is; each slot's mask from its own key."""

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from lora_core import backend
from lora_core.dropout import Dropout

KEEP = [0.5, 0.9]
SHAPE = (300, 40)


@pytest.fixture
def dropout() -> Dropout:
    return Dropout(mx.array(KEEP), mx.stack([mx.random.key(3), mx.random.key(4)]))


def test_what_is_kept_is_divided_by_its_share(dropout: Dropout) -> None:
    values = 1 + mx.random.uniform(shape=(2, *SHAPE), key=mx.random.key(5))
    dropped = np.array(dropout(values))
    for slot, keep in enumerate(KEEP):
        kept = dropped[slot] != 0
        assert kept.mean() == pytest.approx(keep, abs=4 * (keep * (1 - keep) / kept.size) ** 0.5)  # 4 standard errors
        np.testing.assert_allclose(dropped[slot][kept], np.array(values[slot])[kept] / keep, rtol=1e-6)


def test_a_mask_drawn_before_is_that_drawn_when_needed(dropout: Dropout) -> None:
    values, before = mx.ones((2, *SHAPE)), dropout.drawn(SHAPE)
    assert before.mask is not None
    assert mx.array_equal(before(values), dropout(values))
    assert not mx.array_equal(replace(before, mask=before.mask[::-1])(values), dropout(values))


def test_a_mask_does_not_depend_on_neighbours(dropout: Dropout) -> None:
    alone = Dropout(dropout.keep[1:], dropout.keys[1:]).drawn(SHAPE).mask
    both = dropout.drawn(SHAPE).mask
    assert alone is not None and both is not None
    assert mx.array_equal(alone[0], both[1]) and not mx.array_equal(alone[0], both[0])


def test_a_gradient_goes_through_what_is_kept(dropout: Dropout) -> None:
    ones = mx.ones((2, *SHAPE))
    assert mx.array_equal(mx.grad(lambda values: dropout(values).sum())(ones), dropout(ones))


@pytest.mark.skipif(not backend.is_cuda(), reason="needs an NVIDIA card")
def test_the_kernel_draws_what_mlx_draws(dropout: Dropout) -> None:
    drawn = mx.vmap(lambda key: mx.random.uniform(shape=SHAPE, key=key))(dropout.keys)
    assert mx.array_equal(dropout.drawn(SHAPE).mask, drawn < dropout.keep[:, None, None])
