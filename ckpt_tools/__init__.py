"""Checkpoint tools: the operations behind the commands, each a function with the command's arguments.

from ckpt_tools import merge
report = merge("base.ckpt", "lora.ckpt", alpha=16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_tools.formats import Checkpoint, open_checkpoint
    from ckpt_tools.injecting import inject
    from ckpt_tools.merging import merge
    from ckpt_tools.reports import InjectReport, MergeReport, SplitReport, TransformReport, VerifyReport
    from ckpt_tools.saving import save_checkpoint
    from ckpt_tools.splitting import split
    from ckpt_tools.transforming import transform
    from ckpt_tools.verifying import verify

__all__ = [
    "Checkpoint",
    "InjectReport",
    "MergeReport",
    "SplitReport",
    "TransformReport",
    "VerifyReport",
    "inject",
    "merge",
    "open_checkpoint",
    "save_checkpoint",
    "split",
    "transform",
    "verify",
]

_HOMES = {
    "Checkpoint": "ckpt_tools.formats",
    "InjectReport": "ckpt_tools.reports",
    "MergeReport": "ckpt_tools.reports",
    "SplitReport": "ckpt_tools.reports",
    "TransformReport": "ckpt_tools.reports",
    "VerifyReport": "ckpt_tools.reports",
    "inject": "ckpt_tools.injecting",
    "merge": "ckpt_tools.merging",
    "open_checkpoint": "ckpt_tools.formats",
    "save_checkpoint": "ckpt_tools.saving",
    "split": "ckpt_tools.splitting",
    "transform": "ckpt_tools.transforming",
    "verify": "ckpt_tools.verifying",
}


def __getattr__(name: str) -> Any:
    # numpy alone takes longer to import than `--help` may take, so nothing is imported before it is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
