"""`save_checkpoint`: write tensors that are at hand, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ckpt_tools.tensors.dtypes import BY_NAME, dtype_of
from ckpt_tools.tensors.lazy import LazyTensor
from ckpt_tools.tensors.views import Constant
from ckpt_tools.writing.plan import OutputFile, Plan
from ckpt_tools.writing.write import execute
from surgery.errors import MismatchError, Problem, UsageError

__all__ = ["save_checkpoint"]


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray | LazyTensor] | Mapping[str, np.ndarray] | Mapping[str, LazyTensor],
    *,
    metadata: Mapping[str, str] | None = None,
    crc: bool = False,
    force: bool = False,
) -> None:
    """Write a single checkpoint file; its suffix, `.ckpt` or `.safetensors`, chooses the format.

    Args:
        path: Where it goes.
        tensors: Name to array or lazy tensor, in the order of the file.
        metadata: Strings beside the tensors; a `.ckpt` has no place for them.
        crc: End a `.ckpt` with a CRC-32, as MindSpore's `crc_check=True` does.
        force: Replace an existing file.

    Raises:
        UsageError: The suffix is another one, or there is metadata for a `.ckpt` or a CRC for a `.safetensors`.
        MismatchError: An element type is one that the format does not have.
        OutputExistsError: The file exists and `force` is not set.
        ResourceError: The disk is full, or an I/O call failed.
    """
    path = Path(path)
    format = path.suffix.lower().removeprefix(".")
    if format not in ("ckpt", "safetensors"):
        raise UsageError(Problem(str(path), f"suffix {path.suffix or '(none)'}", ".ckpt or .safetensors"))
    if metadata and format == "ckpt":
        raise UsageError(Problem(str(path), "metadata for a .ckpt, which has no place for it", "a .safetensors file"))
    if crc and format != "ckpt":
        raise UsageError(Problem(str(path), "a CRC for a .safetensors, which has no place for it", "a .ckpt file"))
    named = tuple((name, _lazy(name, value)) for name, value in tensors.items())
    execute(Plan(path, False, (OutputFile(path.name, format, named, dict(metadata or {}), crc),)), force=force)


def _lazy(name: str, value: np.ndarray | LazyTensor) -> LazyTensor:
    if isinstance(value, LazyTensor):
        return value
    try:
        return Constant(value, dtype_of(value))
    except KeyError:
        found = f"elements of numpy's type {value.dtype.str}"
        raise MismatchError(Problem(name, found, "one of " + ", ".join(BY_NAME), "Cast the array")) from None
