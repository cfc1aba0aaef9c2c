"""How parameters lie on devices: strategy files, and the slices of ranks that they mean."""

from ckpt_tools.layout.model import Layout, Strategy
from ckpt_tools.layout.strategy_file import is_strategy, read_strategy

__all__ = ["Layout", "Strategy", "is_strategy", "read_strategy"]
