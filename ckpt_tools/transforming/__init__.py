"""`transform`: slices put together and cut anew."""

from ckpt_tools.transforming.operation import transform

__all__ = ["transform"]
