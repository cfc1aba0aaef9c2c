"""`pet-verify`: proof that a merge is right, and that an output is what its manifest says."""

from ckpt_tools.verifying.operation import verify
from ckpt_tools.verifying.output import verify_output

__all__ = ["verify", "verify_output"]
