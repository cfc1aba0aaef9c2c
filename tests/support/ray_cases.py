"""Lazy tensors that something happens to on a Ray worker, and plans of them. Workers import this module."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, region_shape
from ckpt_tools.writing.plan import OutputFile, Plan
from surgery.errors import NonFiniteError, Problem


@dataclass(frozen=True)
class Ones(LazyTensor):
    """Ones; the worker that begins to read them leaves its process id in a folder, and then does something.

    Attributes:
        shape: Its shape.
        folder: Where the process ids are left.
        does: What happens then: `wait` until the folder has a file `go`, `die`, `refuse`, `break`, `fail`; or nothing.
    """

    shape: tuple[int, ...]
    folder: Path
    does: str = ""
    dtype: DType = BY_NAME["fp32"]

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        (self.folder / f"pid {os.getpid()}").touch()
        if self.does == "wait":
            while not (self.folder / "go").exists():
                time.sleep(0.01)
        elif self.does == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif self.does == "refuse":
            raise NonFiniteError(Problem("a weight", "NaN", "finite values", "Take another"))
        elif self.does == "break":
            raise OSError(28, "No space left on device")
        elif self.does == "fail":
            raise ValueError("a bug")
        return np.ones(region_shape(region), np.float32)


def readers(folder: Path) -> set[int]:
    """The processes that began to read."""
    return {int(path.name.split()[1]) for path in folder.glob("pid *")}


def plan_of(output: Path, **tensors: LazyTensor) -> Plan:
    """A folder with a file for each tensor."""
    files = (OutputFile(f"{name}.safetensors", "safetensors", (("w", tensor),)) for name, tensor in tensors.items())
    return Plan(output, True, tuple(files))
