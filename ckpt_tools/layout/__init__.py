"""How parameters lie on devices: strategy files, and the slices of ranks that they mean."""

from ckpt_tools.layout.model import Layout, Strategy

__all__ = ["Layout", "Strategy"]
