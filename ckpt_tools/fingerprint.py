"""Fingerprints: of a base by samples of its content, of an adapter by all of it.

A base's fingerprint is BLAKE3 over its tensors, sorted by name; each contributes its name, its type, its shape and four
windows of up to 16 elements (see `sample_regions`). It costs four small reads a tensor whatever the size of the model,
does not depend on the format, the order or the sharding, and changes with the type, a name, or a value in a window. It
tells bases apart; it does not prove that two are equal. An adapter's digest covers every byte of its tensors.

An adapter carries the fingerprint of the tensors that it changes, which has no names and no types: it is the same
whatever the base's names were translated to, and after a cast that keeps the values.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from blake3 import blake3

from ckpt_tools.tensors.casts import count_nonfinite, widen
from ckpt_tools.tensors.lazy import LazyTensor, Region, bands
from surgery.grouping import LoraPair, group_lora
from surgery.naming import Role, classify

__all__ = [
    "TARGETS_VERSION",
    "content_digest",
    "fingerprint",
    "fingerprint_of_lora",
    "fingerprint_of_targets",
    "same_values",
    "sample_regions",
    "target_fingerprint",
]

_VERSION = "pet-fp1"
TARGETS_VERSION = "pet-ft1"
"""How the fingerprint of an adapter's targets begins."""

_WINDOWS = 4
_WINDOW_ELEMENTS = 16
_BAND_ELEMENTS = 2**20


def fingerprint(tensors: Mapping[str, LazyTensor]) -> str:
    """The fingerprint of a base, `pet-fp1:` and 64 hexadecimal digits.

    Args:
        tensors: Name to tensor; the order does not matter.
    """
    digest = blake3()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_header(name, tensor))
        for region in sample_regions(tensor.shape):
            digest.update(_bytes_of(tensor.read(region)))
    return f"{_VERSION}:{digest.hexdigest()}"


def target_fingerprint(tensors: Iterable[LazyTensor]) -> str:
    """The fingerprint of the weights that an adapter changes, `pet-ft1:` and 64 hexadecimal digits.

    BLAKE3 over the sorted digests of the tensors, each of which is BLAKE3 over its shape, in decimal digits with commas
    between, a zero byte, and the windows of `sample_regions` as little-endian float32.

    Args:
        tensors: The base's weights; neither the order nor their names and types matter.
    """
    digests = []
    for tensor in tensors:
        digest = blake3(f"{','.join(map(str, tensor.shape))}\0".encode())
        for region in sample_regions(tensor.shape):
            digest.update(_bytes_of(widen(tensor.read(region)).astype("<f4")))
        digests.append(digest.digest())
    return f"{TARGETS_VERSION}:{blake3(b''.join(sorted(digests))).hexdigest()}"


def fingerprint_of_targets(pairs: Sequence[LoraPair], tensors: Mapping[str, LazyTensor]) -> str:
    """The fingerprint of the weights that the pairs belong to; empty where these are not among the tensors."""
    targets = [next((tensors[base] for base in pair.bases if base in tensors), None) for pair in pairs]
    found = [target for target in targets if target is not None]
    return target_fingerprint(found) if found and len(found) == len(targets) else ""


def fingerprint_of_lora(tensors: Mapping[str, LazyTensor]) -> str:
    """The same of a network with LoRA's A and B; empty of one without."""
    shapes = {name: tensor.shape for name, tensor in tensors.items() if classify(name).role is not Role.WEIGHT}
    return fingerprint_of_targets(group_lora(list(shapes), shapes).pairs, tensors)


def sample_regions(shape: tuple[int, ...]) -> Iterator[Region]:
    """Where a fingerprint looks: windows along the last axis, from the tensor's first element to its last.

    Window i of 4 begins in row i * (rows - 1) // 3, at element i * (columns - width) // 3 of it, with the leading axes
    taken together as rows and a width of 16 elements or the whole row.
    """
    if 0 in shape:
        return
    if not shape:
        yield ()
        return
    *leading, columns = shape
    rows = int(np.prod(leading, dtype=np.int64))
    width = min(_WINDOW_ELEMENTS, columns)
    seen = set()
    for i in range(_WINDOWS):
        row, start = i * (rows - 1) // (_WINDOWS - 1), i * (columns - width) // (_WINDOWS - 1)
        place = tuple((int(k), int(k) + 1) for k in np.unravel_index(row, leading)) if leading else ()
        region = (*place, (start, start + width))
        if region not in seen:
            seen.add(region)
            yield region


def content_digest(tensors: Mapping[str, LazyTensor]) -> tuple[str, list[str]]:
    """BLAKE3 over the whole content of some tensors, and which of them hold NaN or Inf; each is read once.

    Args:
        tensors: Name to tensor; the order does not matter.

    Returns:
        `blake3:` and 64 hexadecimal digits; the names with values that are not finite.
    """
    digest, nonfinite = blake3(), []
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(_header(name, tensor))
        bad = 0
        for values in _bands(tensor):
            digest.update(_bytes_of(values))
            bad += count_nonfinite(values) if tensor.dtype.is_float else 0
        if bad:
            nonfinite.append(name)
    return f"blake3:{digest.hexdigest()}", nonfinite


def same_values(first: LazyTensor, second: LazyTensor) -> bool:
    """Whether two tensors hold the same: the same bytes, or the same numbers in floating-point types that differ."""
    if first.shape != second.shape:
        return False
    pairs = ((first.read(region), second.read(region)) for region in bands(first.shape, _BAND_ELEMENTS))
    if first.dtype == second.dtype:
        return all(np.array_equal(np.asarray(_bytes_of(one)), np.asarray(_bytes_of(other))) for one, other in pairs)
    return all(np.array_equal(widen(one), widen(other)) for one, other in pairs)


def _bands(tensor: LazyTensor) -> Iterable[np.ndarray]:
    return (tensor.read(region) for region in bands(tensor.shape, _BAND_ELEMENTS))


def _header(name: str, tensor: LazyTensor) -> bytes:
    return f"{name}\0{tensor.dtype}\0{','.join(map(str, tensor.shape))}\0".encode()


def _bytes_of(values: np.ndarray) -> memoryview:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
