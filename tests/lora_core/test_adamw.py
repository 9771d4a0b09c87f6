"""Norms and updates by group and slot, against plain arithmetic."""

from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from lora_core.adamw import adamw, squared_norm


@dataclass(frozen=True, eq=False)
class Named:
    """All that the norm asks of a site."""

    index: int


SITES = [Named(0), Named(1), Named(2)]
MULTIPLIERS = [2.0, 0.5]  # by slot


def gradients(slots: list[int]) -> list[tuple[mx.array, mx.array]]:
    """A and B by site, [slots, …], of inputs 5 and outputs 4 at rank 3."""
    keys = mx.random.split(mx.random.key(0), 2 * len(slots))
    shapes = [shape for k in slots for shape in ((k, 5, 3), (k, 3, 4))]
    arrays = [mx.random.normal(shape, key=key) for shape, key in zip(shapes, keys, strict=True)]
    return list(zip(arrays[::2], arrays[1::2], strict=True))


def grouped(pairs, groups):
    return [tuple(mx.stack(part) for part in zip(*[pairs[i] for i in group], strict=True)) for group in groups]


def norm(pairs, groups, slots):
    multiplier = [mx.array(MULTIPLIERS[: len(pairs[i][0])]).reshape(-1, 1, 1) for i, *_ in groups]
    return squared_norm([tuple(SITES[i] for i in group) for group in groups], grouped(pairs, groups), multiplier, slots)


def by_slot(*values):
    return mx.array(values).reshape(-1, 1, 1)


def test_it_is_that_of_all_a_slots_gradients_where_some_slots_lack_layers():
    pairs = gradients([1, 2, 2])
    for slot, found in enumerate(norm(pairs, [[0], [1, 2]], 2).tolist()):
        own = [part[slot] for a, b in pairs for part in (a, b * by_slot(*MULTIPLIERS[: len(b)])) if slot < len(part)]
        flat = np.concatenate([np.array(part).ravel() for part in own])
        assert found == pytest.approx(float((flat**2).sum()), rel=1e-5)


def test_grouping_and_padding_do_not_move_a_bit():
    pairs = gradients([2, 2, 2])
    wide = [(mx.pad(a, [(0, 0), (0, 0), (0, 13)]), mx.pad(b, [(0, 0), (0, 13), (0, 0)])) for a, b in pairs]
    first = norm(pairs, [[0, 1, 2]], 2)
    assert mx.array_equal(first, norm(pairs, [[2], [0, 1]], 2))
    assert mx.array_equal(first, norm(wide, [[0], [1, 2]], 2))


def test_one_step_of_adamw_by_slot():
    g, p, m, v = (mx.random.normal((1, 2, 3, 4), key=mx.random.key(i)) for i in range(4))
    v = mx.square(v)

    factor, rate, first, second, decay = [0.5, 1.0], [0.1, 0.2], [2.0, 3.0], [4.0, 5.0], [0.0, 0.3]
    settings = [by_slot(*values) for values in (factor, rate, first, second, decay)]
    new_p, new_m, new_v = (np.array(x) for x in adamw(p, m, v, g, *settings, by_slot(True, False)))
    scaled = 0.5 * np.array(g[0, 0])
    moment, square = 0.9 * np.array(m[0, 0]) + 0.1 * scaled, 0.999 * np.array(v[0, 0]) + 0.001 * scaled**2
    expected = np.array(p[0, 0]) - 0.1 * 2 * moment / (np.sqrt(4 * square) + 1e-8)
    np.testing.assert_allclose(new_p[0, 0], expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(new_m[0, 0], moment, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(new_v[0, 0], square, rtol=1e-5, atol=1e-7)
    # The second slot is no longer alive.
    for found, before in zip((new_p, new_m, new_v), (p, m, v), strict=True):
        assert np.array_equal(found[0, 1], np.array(before[0, 1]))
