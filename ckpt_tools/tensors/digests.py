"""The digest of a tensor's whole content, made of stretches of it in any order, on any number of threads.

    digest = BLAKE3(type NUL dimensions NUL BLAKE3(chunk 0) BLAKE3(chunk 1) ...)

with the type's name (`bf16`), the dimensions as decimal digits with commas between, and the content, little-endian and
in C order, in chunks of 1 MiB of which the last may be shorter. It is defined on the whole tensor: whoever holds
slices of it on many ranks, or the whole in another format or under another name, comes to the same digest. Chunks make
a tree of it, whose leaves are hashed where the bytes pass by: BLAKE3 itself wants them in order.
"""

from __future__ import annotations

import threading

from blake3 import blake3

from ckpt_tools.tensors.dtypes import DType

__all__ = ["CHUNK_BYTES", "DIGEST_VERSION", "TensorDigest"]

DIGEST_VERSION = "pet-td1"
"""The version of the definition."""

CHUNK_BYTES = 2**20
"""Bytes of a chunk: so large that threads seldom meet at the interpreter's lock, which each hashing lets go."""

_LEAF_BYTES = 32


class TensorDigest:
    """A tensor's digest on its way. Safe on threads.

    Args:
        dtype: The tensor's element type.
        shape: The whole tensor's shape.
        nbytes: Bytes of its content.
    """

    def __init__(self, dtype: DType, shape: tuple[int, ...], nbytes: int) -> None:
        self._header = f"{dtype}\0{','.join(map(str, shape))}\0".encode()
        self._nbytes = nbytes
        self._lock = threading.Lock()
        self._missing = -(-nbytes // CHUNK_BYTES)
        self._known = bytearray(self._missing)
        self._leaves = bytearray(self._missing * _LEAF_BYTES)
        self._partial: dict[int, _Partial] = {}

    def add(self, start: int, data: memoryview) -> None:
        """Take note of content.

        Args:
            start: Where in the whole content it begins, in bytes.
            data: The bytes; what was added before counts once.
        """
        done, stop = 0, start + len(data)
        while done < len(data):
            index, offset = divmod(start + done, CHUNK_BYTES)
            size = min(CHUNK_BYTES, self._nbytes - index * CHUNK_BYTES)
            length = min(size - offset, stop - start - done)
            if not self._known[index]:
                piece = data[done : done + length]
                if length == size:
                    self._keep(index, blake3(piece).digest())
                else:
                    self._join(index, offset, piece, size)
            done += length

    def hexdigest(self) -> str | None:
        """64 hexadecimal digits; None while content is missing."""
        with self._lock:
            return None if self._missing else blake3(self._header + self._leaves).hexdigest()

    def _keep(self, index: int, leaf: bytes) -> None:
        with self._lock:
            if not self._known[index]:
                self._known[index] = 1
                self._leaves[index * _LEAF_BYTES : (index + 1) * _LEAF_BYTES] = leaf
                self._missing -= 1

    def _join(self, index: int, offset: int, piece: memoryview, size: int) -> None:
        """Add a part of a chunk: hashed at once where it is the next, which it mostly is, else kept until it is."""
        with self._lock:
            if self._known[index]:
                return
            partial = self._partial.setdefault(index, _Partial())
            if partial.is_busy or offset > partial.position:
                if len(piece) > len(partial.waiting.get(offset, b"")):
                    partial.waiting[offset] = bytes(piece)
                return
            partial.is_busy = True
        while True:
            fresh = piece[partial.position - offset :]
            partial.hasher.update(fresh)
            partial.position += len(fresh)
            with self._lock:
                found = next((begin for begin in partial.waiting if begin <= partial.position), None)
                if found is None:
                    partial.is_busy = False
                    if partial.position == size:
                        del self._partial[index]
                    break
                offset, piece = found, memoryview(partial.waiting.pop(found))
        if partial.position == size:
            self._keep(index, partial.hasher.digest())


class _Partial:
    """A chunk of which a part is hashed."""

    __slots__ = ("hasher", "is_busy", "position", "waiting")

    def __init__(self) -> None:
        self.hasher = blake3()
        self.position = 0
        self.is_busy = False
        self.waiting: dict[int, bytes] = {}
