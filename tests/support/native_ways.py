"""The ways in which the arithmetic of every element is done: in numpy, and by each variant of the compiled kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from ckpt_tools.tensors import native

WAYS = ("numpy", *(f"variant {number}" for number in range(native.VARIANTS)))


@contextmanager
def computed_by(way: str) -> Iterator[None]:
    """All that is computed meanwhile takes this way."""
    if way == "numpy":
        with mock.patch.object(native, "_library", None):
            yield
    else:
        with mock.patch.object(native, "_variant", int(way.split()[1])):
            yield
