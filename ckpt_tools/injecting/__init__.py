"""Injecting: the parameters of a PET method put into a saved network."""

from ckpt_tools.injecting.operation import inject

__all__ = ["inject"]
