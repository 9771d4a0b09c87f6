"""ΔW = s·B·A: how A and B start, what multiplies them, and what dropout does to them."""

import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mlx_lm.models.switch_layers import SwitchLinear

from lora_core import adapters, layers
from lora_core.adapters import Draw, Site, activated, find_shared_inputs, initial, install, remove
from lora_core.config import LoraParameters
from lora_core.dropout import Dropout
from lora_core.layers import Active, ExpertLora, StackedLora, gain_of

IN, OUT = 40, 24


def site(inputs: int = IN, outputs: int = OUT, index: int = 0) -> Site:
    return Site(0, "proj", index, StackedLora(nn.Linear(inputs, outputs)))


def begun(site: Site, lora: LoraParameters, seed: int = 0, repeat: int = 0, dora: bool = False) -> list[mx.array]:
    """The initial adapter of one layer of one trial."""
    return [stack[0, 0] for stack in initial([site], [Draw(lora, seed, repeat)], lora.rank, dora)]


def drawn(lora: LoraParameters, seed: int = 0, repeat: int = 0, index: int = 0, inputs: int = IN) -> np.ndarray:
    return np.array(begun(site(inputs, index=index), lora, seed, repeat)[0])


def variance_is(values: np.ndarray, expected: float) -> bool:
    """Whether n values may be N(0, `expected`): n·s²/σ² is chi-square, mean n and variance 2n; five deviations."""
    ratio = float((values.astype(np.float64) ** 2).mean()) / expected
    return abs(ratio - 1) < 5 * math.sqrt(2 / values.size)


@pytest.mark.parametrize("inputs", [40, 512])
def test_variance_of_a_is_one_over_three_inputs(inputs: int) -> None:
    a = drawn(LoraParameters(rank=64), inputs=inputs)
    assert a.shape == (inputs, 64) and a.dtype == np.float32
    assert variance_is(a, 1 / (3 * inputs))
    assert not variance_is(a, 1 / inputs) and not variance_is(a, 1 / (2 * inputs))
    assert abs(a.mean()) < 5 * math.sqrt(1 / (3 * inputs) / a.size)
    kurtosis = float((a**4).mean() / (a**2).mean() ** 2)
    assert abs(kurtosis - 3) < 5 * math.sqrt(24 / a.size)  # normal; uniform numbers would give 1.8


def test_init_std_is_used_when_given() -> None:
    assert variance_is(drawn(LoraParameters(rank=64, init_std=0.02)), 0.02**2)


def test_columns_do_not_depend_on_the_rank() -> None:
    wide = drawn(LoraParameters(rank=33))
    for rank in (1, 8, 32):
        assert np.array_equal(drawn(LoraParameters(rank=rank)), wide[:, :rank])


def test_every_column_layer_seed_and_repeat_has_numbers_of_its_own() -> None:
    lora = LoraParameters(rank=2)
    found = [drawn(lora), drawn(lora, seed=1), drawn(lora, repeat=1), drawn(lora, index=1)]
    columns = np.concatenate(found, axis=1).T
    correlations = np.corrcoef(columns) - np.eye(len(columns))
    assert np.abs(correlations).max() < 0.7  # of 40 numbers: five deviations are 0.8
    assert np.array_equal(drawn(lora), drawn(lora))


def test_b_is_zero_and_experts_have_a_matrix_each() -> None:
    _, b = begun(site(), LoraParameters(rank=3))
    assert b.shape == (3, OUT) and not np.any(np.array(b))
    experts = Site(0, "experts", 0, ExpertLora(SwitchLinear(IN, OUT, 5)))
    a, b = (np.array(part) for part in begun(experts, LoraParameters(rank=3)))
    assert (a.shape, b.shape) == ((5, IN, 3), (5, 3, OUT))
    assert variance_is(a, 1 / (3 * IN)) and not np.array_equal(a[0], a[1])


def test_layers_and_trials_are_drawn_together_as_alone() -> None:
    group = [site(index=index) for index in (0, 3)]
    draws = [Draw(LoraParameters(rank=3), 1, 0), None, Draw(LoraParameters(rank=5, init_std=0.1), 1, 2)]
    a, b = initial(group, draws, 8)
    assert (a.shape, b.shape) == ((2, 3, IN, 8), (2, 3, 8, OUT)) and not np.any(np.array(b))
    for i, layer in enumerate(group):
        for k, draw in enumerate(draws):
            expected = np.zeros((IN, 8), dtype=np.float32)
            if draw:
                expected[:, : draw.lora.rank] = begun(layer, *draw)[0]
            assert np.array_equal(np.array(a[i, k]), expected)
    assert np.any(np.array(a[0, 0] != a[1, 0]))


def active(a: mx.array, b: mx.array, multiplier: list[float], keep=None, seed: int = 0, drop_input=False) -> Active:
    keys = mx.stack([mx.random.key(seed + k) for k in range(len(multiplier))])
    scaled = b * mx.array(multiplier).reshape(-1, 1, 1)
    return Active(a, scaled, None if keep is None else Dropout(mx.array(keep), keys), drop_input)


def filled(slots: int = 2, rank: int = 4, outputs: int = OUT) -> tuple[mx.array, mx.array]:
    one, two = mx.random.split(mx.random.key(5))
    return mx.random.normal((slots, IN, rank), key=one), mx.random.normal((slots, rank, outputs), key=two)


def inputs(rows: int = 4) -> mx.array:
    return mx.random.normal((rows, 6, IN), key=mx.random.key(9))


def test_step_zero_is_the_base_layer_to_the_bit() -> None:
    module = site().module
    a, b = filled()
    plain = module(inputs())
    module.active = active(a, mx.zeros_like(b), [20.0, 1e6])
    assert mx.array_equal(module(inputs()), plain)


def test_each_slot_has_its_own_multiplier_and_matrices() -> None:
    module, (a, b), x = site().module, filled(), inputs()
    module.active = active(a, b, [2.5, 0.5])
    found = module(x) - module.linear(x)
    for slot, multiplier in enumerate([2.5, 0.5]):
        rows = slice(2 * slot, 2 * slot + 2)
        expected = multiplier * (x[rows] @ (a[slot] @ b[slot]))
        np.testing.assert_allclose(np.array(found[rows]), np.array(expected), rtol=0, atol=1e-3)
        other = 2.0 * (x[rows] @ (a[slot] @ b[slot]))
        assert np.abs(np.array(found[rows] - other)).max() > 1


@settings(deadline=None)
@given(st.integers(1, 256), st.floats(0.01, 100), st.sampled_from(["alpha_over_r", "alpha_over_sqrt_r", "direct"]))
def test_multiplier_of_every_scaling(rank: int, alpha: float, scaling: str) -> None:
    lora = LoraParameters(rank=rank, scale=alpha, scaling=scaling)
    divisor = {"alpha_over_r": rank, "alpha_over_sqrt_r": math.sqrt(rank), "direct": 1}[scaling]
    assert lora.multiplier == pytest.approx(alpha / divisor, rel=1e-12)
    by_ratio = LoraParameters(rank=rank, scale_ratio=alpha / rank, scaling=scaling)
    assert by_ratio.multiplier == pytest.approx(lora.multiplier, rel=1e-12)


def dropped(keep: list[float], drop_input: bool, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Output of one wide layer with dropout, and without; the identity stands for B·A."""
    module = site(IN, IN).module
    eye = mx.broadcast_to(mx.eye(IN)[None], (len(keep), IN, IN))
    x = mx.ones((len(keep) * 50, 10, IN))
    module.active = active(eye, eye, [1.0] * len(keep), keep, seed, drop_input)
    return np.array(module(x) - module.linear(x)).reshape(len(keep), -1), np.ones(len(keep))


@pytest.mark.parametrize("drop_input", [True, False])
def test_dropout_is_inverted_and_keeps_the_stated_share(drop_input: bool) -> None:
    found, _ = dropped([0.9, 0.5, 1.0], drop_input)
    for values, keep in zip(found, [0.9, 0.5, 1.0], strict=True):
        np.testing.assert_allclose(values[np.abs(values) > 1e-4], 1 / keep, atol=1e-4)
        share, n = (np.abs(values) > 1e-4).mean(), values.size
        assert abs(share - keep) <= 5 * math.sqrt(keep * (1 - keep) / n)


def test_masks_are_of_the_slot_and_its_key() -> None:
    found, _ = dropped([0.5, 0.5], False)
    again, _ = dropped([0.5, 0.5], False, seed=1)
    assert not np.array_equal(found[0], found[1])
    np.testing.assert_array_equal(np.abs(found[1]) > 1e-4, np.abs(again[0]) > 1e-4)  # key 1, in either slot


def test_dropout_zero_is_exact() -> None:
    module, (a, b), x = site().module, filled(), inputs()
    module.active = active(a, b, [1.0, 1.0])
    plain = module(x)
    for drop_input in (True, False):
        module.active = active(a, b, [1.0, 1.0], [1.0, 1.0], drop_input=drop_input)
        assert mx.array_equal(module(x), plain)


def test_dropout_falls_on_the_input_or_on_the_delta() -> None:
    """With B·A of one shared column, a mask on the input leaves all outputs alike, one on the delta does not."""
    module, x = site().module, mx.ones((4, 6, IN))
    a, b = mx.ones((2, IN, 1)), mx.ones((2, 1, OUT))
    alike = {}
    for drop_input in (True, False):
        module.active = active(a, b, [1.0, 1.0], [0.5, 0.5], drop_input=drop_input)
        delta = np.array(module(x) - module.linear(x))
        alike[drop_input] = np.allclose(delta, delta[..., :1], atol=1e-4)
    assert alike == {True: True, False: False}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.mlp = nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4))


def test_install_numbers_layers_alike_in_every_block_and_remove_undoes_it() -> None:
    blocks = [Block(), Block()]
    before = [block.q_proj for block in blocks]
    sites = install(blocks, ["q_proj", "mlp.layers.0"])
    assert sorted((s.layer, s.key, s.index) for s in sites) == [
        (0, "mlp.layers.0", 1), (0, "q_proj", 0), (1, "mlp.layers.0", 3), (1, "q_proj", 2),
    ]  # fmt: skip
    assert all(isinstance(block.q_proj, StackedLora) for block in blocks)
    remove(blocks)
    assert [block.q_proj for block in blocks] == before
    assert isinstance(blocks[0].mlp.layers[0], nn.Linear)


class Attention(nn.Module):
    """Three layers that read one input, and one that reads another."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(IN, IN, bias=False) for _ in range(4))

    def __call__(self, x: mx.array) -> mx.array:
        return self.o(self.q(x) * mx.sigmoid(self.k(x)) + self.v(x))


@pytest.mark.parametrize("drop_input", [False, True])
def test_layers_that_read_the_same_input_share_a_product(drop_input: bool) -> None:
    block, x = Attention(), inputs()
    sites = install([block], ["q", "k", "v", "o"])
    pairs = [filled(outputs=IN) for _ in sites]
    pairs = [(a * (i + 1), b / (i + 1)) for i, (a, b) in enumerate(pairs)]

    def gradients() -> tuple[mx.array, list[mx.array]]:
        def loss(x: mx.array, pairs: list) -> mx.array:
            actives = [active(a, b, [1.0, 2.0], keep=[0.5, 0.9], seed=i, drop_input=drop_input)
                       for i, (a, b) in enumerate(pairs)]  # fmt: skip
            with activated(sites, actives):
                result = block(x)
            assert all(each.down is None for each in actives)  # nothing of the pass stays with them
            return (result * mx.arange(x.size).reshape(x.shape)).sum()

        grad_x, grad_pairs = mx.grad(loss, argnums=(0, 1))(x, pairs)
        return grad_x, [part for pair in grad_pairs for part in pair]

    alone = gradients()
    find_shared_inputs(sites, lambda: block(x))
    assert {site.key: site.module.reads for site in sites} == {"q": 0, "k": 0, "v": 0, "o": 1}
    together = gradients()
    for one, other in zip([alone[0], *alone[1]], [together[0], *together[1]], strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-4, atol=1e-3 * mx.abs(one).max().item())
    assert sorted(families(sites, drop_input)) == ([1, 1, 1, 1] if drop_input else [1, 3])


def families(sites: list[Site], drop_input: bool) -> list[int]:
    actives = [active(*filled(outputs=IN), [1.0, 1.0], drop_input=drop_input) for _ in sites]
    return [len(family) for family in adapters._families(sites, actives)]


def layer(bits: int | None) -> StackedLora:
    linear = nn.Linear(64, OUT, bias=True)
    return StackedLora(linear if bits is None else nn.QuantizedLinear.from_linear(linear, 32, bits))


@pytest.mark.parametrize("bits", [None, 2, 3, 4, 5, 6, 8])
def test_lengths_of_rows_are_those_of_the_whole_matrix(bits: int | None) -> None:
    module = layer(bits)
    a = mx.random.normal((2, 64, 3), key=mx.random.key(1))
    b = mx.random.normal((2, 3, OUT), key=mx.random.key(2))
    whole = layers.dense(module.linear) + (a @ b).swapaxes(1, 2)
    np.testing.assert_allclose(np.array(module.lengths(a, b)), np.array(mx.linalg.norm(whole, axis=2)), rtol=1e-5)
    wrong = layers.dense(module.linear) + 2 * (a @ b).swapaxes(1, 2)
    assert np.abs(np.array(module.lengths(a, b)) / np.array(mx.linalg.norm(wrong, axis=2)) - 1).max() > 0.1


def dora(module: StackedLora, keep: list[float] | None = None) -> tuple[mx.array, mx.array, mx.array, Active]:
    a = mx.random.normal((2, 64, 3), key=mx.random.key(1))
    b = mx.random.normal((2, 3, OUT), key=mx.random.key(2))
    gain = mx.random.uniform(0.5, 2, (2, OUT), key=mx.random.key(3))
    return a, b, gain, replace(active(a, b, [1.0, 1.0], keep), gain=gain)


@pytest.mark.parametrize("bits", [None, 3, 4])
def test_dora_is_the_whole_matrix_times_the_gain(bits: int | None) -> None:
    module, x = layer(bits), mx.random.normal((4, 6, 64), key=mx.random.key(9))
    a, b, gain, module.active = dora(module)
    whole = gain[:, :, None] * (layers.dense(module.linear) + (a @ b).swapaxes(1, 2))
    expected = x.reshape(2, 12, 64) @ whole.swapaxes(1, 2) + module.linear.bias
    np.testing.assert_allclose(np.array(module(x)), np.array(expected.reshape(4, 6, OUT)), rtol=0, atol=2e-4)


def test_dora_changes_nothing_before_the_first_step() -> None:
    module, x = layer(4), mx.random.normal((4, 6, 64), key=mx.random.key(9))
    plain = module(x)
    a, b, m = begun(Site(0, "proj", 0, module), LoraParameters(rank=4), dora=True)
    a, b = mx.stack([a, a]), mx.stack([b, b])
    module.active = Active(a, b, gain=m / module.lengths(a, b))
    assert mx.array_equal(module(x), plain)
    module.active.gain = 1.001 * module.active.gain
    assert not mx.array_equal(module(x), plain)


def test_the_gain_and_its_gradient_are_finite_where_a_row_is_zero() -> None:
    """Of two layers, one that the slot trains and one that it leaves out."""
    m, lengths = mx.array([[3.0, 0.0], [0.0, 0.0]]), mx.array([[2.0, 0.0], [2.0, 0.0]])
    assert gain_of(m, lengths).tolist() == [[1.5, 0.0], [1.0, 0.0]]
    gradient = mx.grad(lambda m: gain_of(m, lengths)[:, 0].sum())(m)
    assert gradient.tolist() == [[0.5, 0.0], [0.0, 0.0]]


def test_gradients_of_dora_are_autograds() -> None:
    module, x = layer(None), mx.random.normal((4, 6, 64), key=mx.random.key(9))
    *learned, given = dora(module, keep=[0.5, 0.9])

    def ours(x: mx.array, a: mx.array, b: mx.array, gain: mx.array) -> mx.array:
        module.active = replace(given, a=a, b=b, gain=gain)
        return (module(x) * weights).sum()

    def plain(x: mx.array, a: mx.array, b: mx.array, gain: mx.array) -> mx.array:
        delta = given.dropout((x.reshape(2, 12, 64) @ a) @ b)
        y = (x @ module.linear.weight.T).reshape(2, 12, OUT)
        return ((gain[:, None] * (y + delta) + module.linear.bias).reshape(4, 6, OUT) * weights).sum()

    weights = mx.random.normal((4, 6, OUT), key=mx.random.key(8))
    for one, other in zip(*(mx.grad(f, argnums=(0, 1, 2, 3))(x, *learned) for f in (ours, plain)), strict=True):
        np.testing.assert_allclose(np.array(one), np.array(other), rtol=1e-3, atol=1e-4 * mx.abs(other).max().item())
