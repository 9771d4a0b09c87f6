"""Models in parts: at every boundary what the whole gives, and nothing left behind."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from lora_core import backend
from lora_core.models import load
from lora_core.split import Split, Whole, _Skip, choose_split


@pytest.fixture(scope="module")
def model():
    return load("builtin:tiny").model


@pytest.fixture(scope="module")
def tokens():
    return mx.array(np.random.default_rng(0).integers(0, 250, (3, 20)))


@pytest.mark.parametrize("boundary", range(5))
def test_prefix_suffix_and_head_equal_the_whole_at_every_boundary(model, tokens, boundary):
    split = Split(model)
    hidden = split.prefix(tokens, boundary) if boundary else None
    assert hidden is None or hidden.shape == (3, 20, 64)
    parts = split.head(split.suffix(tokens, hidden, boundary))
    assert mx.array_equal(parts, model(tokens))


def test_another_prefix_gives_other_logits(model, tokens):
    split = Split(model)
    hidden = split.prefix(tokens, 1)
    assert not mx.allclose(split.head(split.suffix(tokens, hidden, 2)), model(tokens), atol=1e-2)


def test_the_model_is_left_as_it_was(model, tokens):
    before, blocks = model(tokens), list(model.layers)
    split = Split(model)
    split.head(split.suffix(tokens, split.prefix(tokens, 2), 2))
    assert all(a is b for a, b in zip(model.layers, blocks, strict=True))
    assert mx.array_equal(model(tokens), before)


def test_names_of_blocks_are_those_of_the_weight_files(model):
    assert [Split(model).block_name(i) for i in (0, 3)] == ["model.layers.0", "model.layers.3"]
    assert Whole(model).block_name(3) == "model.layers.3"


class Flat(nn.Module):
    """Its blocks lie in the model itself, in no module below it."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(120, 8)
        self.layers = [nn.Linear(8, 8) for _ in range(3)]

    def __call__(self, tokens):
        hidden = self.embedding(tokens)
        for layer in self.layers:
            hidden = layer(hidden)
        return self.embedding.as_linear(hidden)


class Elsewhere(nn.Module):
    """The list has another name, and `layers` is a new list at each call."""

    def __init__(self, reads_weights=False):
        super().__init__()
        self.reads_weights = reads_weights
        self.transformer = Inner()
        self.head = nn.Linear(8, 120)

    @property
    def layers(self):
        return self.transformer.h[:]

    def __call__(self, tokens):
        return self.head(self.transformer(tokens))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(120, 8)
        self.h = [nn.Linear(8, 8) for _ in range(3)]

    def __call__(self, tokens):
        hidden = self.embedding(tokens)
        for layer in self.h:
            hidden = layer(hidden)
        return hidden


def test_no_list_of_blocks_is_an_error_and_then_a_note():
    with pytest.raises(ValueError, match="Flat has no list of blocks"):
        Split(Flat())
    split, note = choose_split(Flat())
    assert isinstance(split, Whole) and "does not run in parts" in note and "\n" not in note
    assert split.block_name(2) == "layers.2"


def test_lists_of_other_names_are_found():
    split, note = choose_split(Elsewhere())
    assert (type(split), note, split.attribute) == (Split, None, "h")
    assert split.block_name(1) == "transformer.h.1"


def test_a_model_that_differs_in_parts_runs_whole(monkeypatch, tokens):
    monkeypatch.setattr(_Skip, "__call__", lambda self, hidden, *_, **__: hidden + 1)
    monkeypatch.setattr("lora_core.split._Inject.__call__", lambda self, *_, **__: self._hidden * 1.01)
    model = Elsewhere()
    split, note = choose_split(model)
    assert isinstance(split, Whole) and "differs from the whole" in note
    assert mx.array_equal(split.head(split.suffix(tokens % 100, None, 0)), model(tokens % 100))


@pytest.mark.parametrize(
    ("joined", "alone", "cpu", "joins"),
    [
        (0.0, 0.0, True, True),
        (5e-4, 0.0, True, False),
        (5e-4, 0.0, False, True),  # products of GPUs may be as coarse as TF32
        (0.05, 0.0, False, False),
        (0.05, 0.05, False, True),  # it makes no more of a difference than running rows one at a time
    ],
)
def test_rows_may_join_where_that_moves_logits_no_more_than_it_must(model, monkeypatch, joined, alone, cpu, joins):
    suffix, call = Split.suffix, type(model).__call__

    def less_exact(self, tokens, hidden, boundary, joins=()):
        found = suffix(self, tokens, hidden, boundary, joins)
        return found * (1 + joined) if joins else found

    def one_at_a_time(self, tokens):
        return call(self, tokens) * (1 + alone * (len(tokens) == 1))

    monkeypatch.setattr(backend, "is_cpu", lambda: cpu)
    monkeypatch.setattr(Split, "suffix", less_exact)
    monkeypatch.setattr(type(model), "__call__", one_at_a_time)
    split, note = choose_split(model)
    assert split.joins == joins and (note is None) == joins
