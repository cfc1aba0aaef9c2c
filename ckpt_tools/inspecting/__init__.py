"""What is in a checkpoint or a strategy, and what differs between two checkpoints."""

from ckpt_tools.inspecting.operation import inspect_checkpoint

__all__ = ["inspect_checkpoint"]
