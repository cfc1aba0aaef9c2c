"""`verify`: the proof that a merged checkpoint is base plus adapters."""

from ckpt_tools.verifying.operation import verify

__all__ = ["verify"]
