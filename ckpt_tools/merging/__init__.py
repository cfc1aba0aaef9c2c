"""`merge`: what an adapter's keys mean for a base's weights, and the operation that folds them in."""

from ckpt_tools.merging.operation import merge

__all__ = ["merge"]
