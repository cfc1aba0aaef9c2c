"""`split`: the trained delta cut out of a checkpoint, or extracted from a full fine-tune."""

from ckpt_tools.splitting.operation import split

__all__ = ["split"]
