"""Which layers keys mean."""

import pytest

from lora_core.errors import UserError
from lora_core.keys import check_keys, matches

NAMES = ["self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"]


@pytest.mark.parametrize(
    ("keys", "meant"),
    [
        (None, [0, 1, 2, 3]),
        (["all"], [0, 1, 2, 3]),
        (["attention"], [0, 1]),
        (["mlp"], [2, 3]),
        (["*.q_proj", "mlp.up*"], [0, 2]),
        (["attention", "mlp.down_proj"], [0, 1, 3]),
        (["self_attn.q_proj"], [0]),
        (["q_proj"], []),
    ],
)
def test_names_patterns_and_presets(keys: list[str] | None, meant: list[int]) -> None:
    assert [i for i, name in enumerate(NAMES) if matches(keys, name)] == meant


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["q_proj"], "Did you mean self_attn.q_proj?"),
        (["self_attn.q_prj"], "Did you mean self_attn.q_proj"),
        (["nothing"], "'nothing' matches no linear layer"),
        ([], "lora_parameters.keys is empty"),
    ],
)
def test_keys_that_match_nothing(keys: list[str], said: str) -> None:
    with pytest.raises(UserError) as caught:
        check_keys(keys, ["self_attn.q_proj", "mlp.up_proj"])
    assert said in str(caught.value) and len(str(caught.value).splitlines()) <= 3


def test_keys_that_match_pass() -> None:
    check_keys(None, ["q"])
    check_keys(["q"], ["q", "k"])
