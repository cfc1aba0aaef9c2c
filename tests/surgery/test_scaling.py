"""The factor in front of B @ A."""

from __future__ import annotations

import pytest

from surgery.scaling import lora_scaling


def test_alpha_is_divided_by_the_rank() -> None:
    assert lora_scaling(16, 8) == 2.0
    assert lora_scaling(1.5, 3) == 0.5
    assert lora_scaling(-4, 8) == -0.5


@pytest.mark.parametrize("rank", [1, 4, 7, 64])
def test_rank_stabilised_lora_divides_by_the_root_of_the_rank(rank: int) -> None:
    assert lora_scaling(16, rank, use_rslora=True) == pytest.approx(16 / rank**0.5, rel=1e-15)
