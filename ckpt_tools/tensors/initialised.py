"""`Initialised`: values drawn from a seed and a name, the same whoever asks for which part of them.

Element i of a tensor, counted in C order over its whole shape, depends on nothing but the seed, the tensor's name, its
shape, and what it is initialised with:

1. u in the open interval (0, 1) is drawn by `surgery.draws` from the seed and the name, at place i.
2. `uniform` between -bound and bound is (2 u - 1) * bound; `normal` is scale * Phi^-1(u), with the inverse of the
   normal distribution by Wichura's algorithm AS 241 (1988), exact to some 1e-16.
3. The result is rounded to float32, and that to the tensor's type.

All of it is done in IEEE operations that are rounded correctly (+ - * / sqrt) and in whole numbers, the logarithm that
AS 241 needs too: so the bits do not depend on a processor's or a version's exp, log or cos.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import numpy as np

from ckpt_tools.tensors.casts import cast_array
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor, Region, Statistics, byte_stretches, region_shape
from ckpt_tools.tensors.normal import inverse_normal
from surgery.draws import uniform_draws

__all__ = ["Initialised", "uniform_bound"]


@final
@dataclass(frozen=True, slots=True)
class Initialised(LazyTensor):
    """A parameter that begins with what an initialiser of MindSpore's kind draws.

    Attributes:
        name: The parameter's name, which with the seed decides the draw.
        seed: Any whole number.
        kind: `zeros`, `ones`, `arange`, `normal`, `uniform`, `he_uniform` or `xavier_uniform`.
        scale: The standard deviation of `normal`; the bound of `uniform` on both sides of 0; the negative slope of
            `he_uniform`.
    """

    name: str
    seed: int
    kind: str
    scale: float
    dtype: DType
    shape: tuple[int, ...]

    def read(self, region: Region, statistics: Statistics | None = None) -> np.ndarray:
        out = np.empty(region_shape(region), self.dtype.numpy)
        if self.kind in ("zeros", "ones"):
            out[...] = self.kind == "ones"
            return out
        flat, done = out.reshape(-1), 0
        for start, length in byte_stretches(self.shape, region, 1):
            flat[done : done + length] = self._stretch(start, length)
            done += length
        return out

    def _stretch(self, start: int, length: int) -> np.ndarray:
        """Elements that follow each other in C order."""
        if self.kind == "arange":
            return np.arange(start, start + length, dtype=np.int64).astype(self.dtype.numpy)
        unit = uniform_draws(self.seed, self.name, start, length)
        if self.kind == "normal":
            drawn = inverse_normal(unit) * self.scale
        else:
            drawn = (2.0 * unit - 1.0) * uniform_bound(self.kind, self.scale, self.shape)
        return cast_array(drawn.astype(np.float32), self.dtype)


def uniform_bound(kind: str, scale: float, shape: tuple[int, ...]) -> float:
    """Between minus which and which a uniform initialiser draws, by MindSpore's definition.

    `he_uniform` (He et al., arXiv:1502.01852): sqrt(6 / ((1 + a^2) fan_in)) with the negative slope a. `xavier_uniform`
    (Glorot and Bengio, 2010): sqrt(6 / (fan_in + fan_out)). Of a shape `(out, in, ...)` fan_in is in times what
    follows, and fan_out is out times what follows.

    Args:
        kind: `uniform`, `he_uniform` or `xavier_uniform`.
        scale: Of `uniform` the bound itself, of `he_uniform` the negative slope.
        shape: The whole tensor's shape.
    """
    if kind == "uniform":
        return scale
    fan_out, fan_in, *field = shape
    inner = math.prod(field)
    if kind == "xavier_uniform":
        return math.sqrt(6.0 / ((fan_in + fan_out) * inner))
    assert kind == "he_uniform", kind
    return math.sqrt(6.0 / ((1.0 + scale * scale) * fan_in * inner))
