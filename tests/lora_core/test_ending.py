"""What comes over from the device in few pieces is what was there, and no piece is larger than MLX can count."""

import mlx.core as mx
import numpy as np
import pytest

from lora_core import ending

TENSORS = {
    "a": mx.random.normal((3, 5), key=mx.random.key(0)),
    "b": mx.random.normal((2, 4, 3), key=mx.random.key(1)).astype(mx.bfloat16),
    "c": mx.random.normal((7,), key=mx.random.key(2)).astype(mx.float16),
    "d": mx.random.normal((6, 6), key=mx.random.key(3)).T,
}


@pytest.mark.parametrize(("at_once", "joined"), [(1, []), (130, [122]), (300, [266]), (1 << 30, [266])])
def test_tensors_on_the_host(monkeypatch, at_once, joined):
    pieces, plain = [], mx.concatenate
    monkeypatch.setattr(ending, "AT_ONCE", at_once)
    monkeypatch.setattr(mx, "concatenate", lambda parts: pieces.append(sum(p.nbytes for p in parts)) or plain(parts))
    found = ending._on_host(TENSORS)
    assert pieces == joined
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        same = np.array(tensor.view(mx.uint16) if tensor.dtype == mx.bfloat16 else tensor)
        assert found[name].dtype == same.dtype and np.array_equal(found[name], same)
