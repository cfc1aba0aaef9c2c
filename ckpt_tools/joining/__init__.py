"""Adapters to one adapter, without a base."""

from ckpt_tools.joining.operation import combine

__all__ = ["combine"]
