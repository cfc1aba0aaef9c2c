"""The digest of a tensor's whole content, made of stretches of it in any order, on any number of threads.

    digest = BLAKE3(type NUL dimensions NUL BLAKE3(chunk 0) BLAKE3(chunk 1) ...)

with the type's name (`bf16`), the dimensions as decimal digits with commas between, and the content, little-endian and
in C order, in chunks of 64 KiB of which the last may be shorter. It is defined on the whole tensor: whoever holds
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

CHUNK_BYTES = 2**16
"""Bytes of a chunk: enough for all lanes of BLAKE3, and little to keep where two stretches meet within one."""

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
        # Of chunks that several stretches meet: what came so far, by where in the chunk it begins.
        self._pieces: dict[int, dict[int, bytes]] = {}

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
                    self._join(index, offset, bytes(piece), size)
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

    def _join(self, index: int, offset: int, piece: bytes, size: int) -> None:
        with self._lock:
            pieces = self._pieces.setdefault(index, {})
            if len(piece) > len(pieces.get(offset, b"")):
                pieces[offset] = piece
            content = bytearray()
            for begin in sorted(pieces):
                if begin > len(content):
                    return
                content += pieces[begin][len(content) - begin :]
            if len(content) < size:
                return
            del self._pieces[index]
        self._keep(index, blake3(content).digest())
