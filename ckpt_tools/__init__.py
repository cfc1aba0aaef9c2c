"""Checkpoint tools: the operations behind the commands, each a function with the command's arguments.

from ckpt_tools import merge
report = merge("base.ckpt", "lora.ckpt", alpha=16)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckpt_tools.formats import Checkpoint, open_checkpoint
    from ckpt_tools.injecting import inject
    from ckpt_tools.inspecting import inspect_checkpoint
    from ckpt_tools.joining import combine
    from ckpt_tools.merging import merge
    from ckpt_tools.reports import (
        CombineReport,
        InjectReport,
        InspectReport,
        ManifestReport,
        MergeReport,
        SplitReport,
        TransformReport,
        UnmergeReport,
        VerifyReport,
    )
    from ckpt_tools.saving import save_checkpoint
    from ckpt_tools.splitting import split
    from ckpt_tools.transforming import transform
    from ckpt_tools.unmerging import unmerge
    from ckpt_tools.verifying import verify, verify_output

__all__ = [
    "Checkpoint",
    "CombineReport",
    "InjectReport",
    "InspectReport",
    "ManifestReport",
    "MergeReport",
    "SplitReport",
    "TransformReport",
    "UnmergeReport",
    "VerifyReport",
    "combine",
    "inject",
    "inspect_checkpoint",
    "merge",
    "open_checkpoint",
    "save_checkpoint",
    "split",
    "transform",
    "unmerge",
    "verify",
    "verify_output",
]

_HOMES = {
    "Checkpoint": "ckpt_tools.formats",
    "CombineReport": "ckpt_tools.reports",
    "InjectReport": "ckpt_tools.reports",
    "InspectReport": "ckpt_tools.reports",
    "ManifestReport": "ckpt_tools.reports",
    "MergeReport": "ckpt_tools.reports",
    "SplitReport": "ckpt_tools.reports",
    "TransformReport": "ckpt_tools.reports",
    "UnmergeReport": "ckpt_tools.reports",
    "VerifyReport": "ckpt_tools.reports",
    "combine": "ckpt_tools.joining",
    "inject": "ckpt_tools.injecting",
    "inspect_checkpoint": "ckpt_tools.inspecting",
    "merge": "ckpt_tools.merging",
    "open_checkpoint": "ckpt_tools.formats",
    "save_checkpoint": "ckpt_tools.saving",
    "split": "ckpt_tools.splitting",
    "transform": "ckpt_tools.transforming",
    "unmerge": "ckpt_tools.unmerging",
    "verify": "ckpt_tools.verifying",
    "verify_output": "ckpt_tools.verifying",
}


def __getattr__(name: str) -> Any:
    # numpy alone takes longer to import than `--help` may take, so nothing is imported before it is asked for.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
