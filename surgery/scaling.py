"""The factor in front of B @ A."""

from __future__ import annotations

import math

__all__ = ["lora_scaling"]


def lora_scaling(alpha: float, rank: int, *, use_rslora: bool = False) -> float:
    """The factor in front of B @ A.

    Args:
        alpha: LoRA's alpha.
        rank: LoRA's rank r.
        use_rslora: Rank-stabilised: alpha / sqrt(r) (Kalajdzievski, arXiv:2312.03732) instead of alpha / r
            (Hu et al., arXiv:2106.09685).
    """
    return alpha / math.sqrt(rank) if use_rslora else alpha / rank
