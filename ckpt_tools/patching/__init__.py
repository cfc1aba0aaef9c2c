"""Un-merge patches: the few bits of a base that merging lost, and the tensors that they bring back."""

from ckpt_tools.patching.making import Change, MadePatch, PatchDraft, make_patch
from ckpt_tools.patching.model import (
    FactorRecord,
    NotRestored,
    PatchFacts,
    TensorRecord,
    TermRecord,
    UsedAdapter,
    tensor_digest,
)
from ckpt_tools.patching.patch_file import Patch, is_patch, read_patch
from ckpt_tools.patching.restored import Restored

__all__ = [
    "Change",
    "FactorRecord",
    "MadePatch",
    "NotRestored",
    "Patch",
    "PatchDraft",
    "PatchFacts",
    "Restored",
    "TensorRecord",
    "TermRecord",
    "UsedAdapter",
    "is_patch",
    "make_patch",
    "read_patch",
    "tensor_digest",
]
