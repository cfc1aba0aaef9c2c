"""MindSpore's `.ckpt`: read without reading any content, check its CRC, lay one out.

What `mindspore.load_checkpoint` accepts without a word is an error here: content that is too short (it fills with
zeros) or too long (it cuts), names that come twice, slices that are mixed up, and a CRC that nobody asked to check.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path

from ckpt_tools.formats.ckpt_assembly import TensorAssembly
from ckpt_tools.formats.ckpt_layout import SLICE_BYTES, crc_trailer, layout_ckpt
from ckpt_tools.formats.ckpt_values import CRC_MAGIC, TRAILER_BYTES, Trailer, ValueProblems, walk_values
from ckpt_tools.formats.ckpt_wire import WireReader
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.progress import SILENT, Progress
from ckpt_tools.tensors.crc import CrcPieces, crc32
from ckpt_tools.tensors.sources import Source, open_source, read_exactly, read_into
from surgery.errors import CorruptInputError, EncryptedInputError, Problem, UnknownFormatError

__all__ = [
    "CRC_MAGIC",
    "SLICE_BYTES",
    "check_crc",
    "check_read_crc",
    "crc_trailer",
    "layout_ckpt",
    "looks_like_ckpt",
    "read_ckpt",
]

_CHUNK_BYTES = 2**20

# What of a file that is read whole may be left: headers, and tensors that are read of another rank.
_HEADERS_BYTES = 2**16

# The first four bytes of an encrypted block are the little-endian numbers 7F3A5ED8 (AES-GCM), D9 (AES-CBC), DA
# (SM4-CBC): all share the upper three.
_CIPHER_MAGIC = b"\x5e\x3a\x7f"


def looks_like_ckpt(head: bytes) -> bool:
    """Whether a file that begins so is a `.ckpt`, encrypted ones included.

    Args:
        head: The file's first bytes; 64 are plenty.
    """
    if head[1:4] == _CIPHER_MAGIC:
        return True
    if not head.startswith(b"\x0a"):
        return False
    length, position = _head_varint(head, 1)
    if head[position : position + 1] not in (b"\x0a", b"\x12", b"\x1a"):
        return False
    inner, end = _head_varint(head, position + 1)
    if end + inner > position + length:
        return False
    behind = head[end + inner : end + inner + 1]
    return not behind or end + inner == position + length or behind[0] & 7 in (0, 1, 2, 5)


def read_ckpt(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of a `.ckpt` and prove that they fit together.

    Raises:
        InputMissingError: There is no such file.
        EncryptedInputError: It is encrypted.
        UnknownFormatError: It is another format, or holds types or parameters that are not supported.
        CorruptInputError: It is damaged; all problems that were found are in it.
    """
    source = open_source(path)
    head = bytes(read_exactly(source, 0, min(64, source.size)))
    _refuse_head(path, head)
    problems = ValueProblems()
    assembly = TensorAssembly(source, problems)
    crc: dict[Source, int] = {}
    try:
        for item in walk_values(WireReader(source), problems):
            if isinstance(item, Trailer):
                crc[source] = item.crc
            else:
                assembly.add(item)
        if not problems.enough:
            assembly.close()
    except CorruptInputError as error:
        if not assembly.tensors and not looks_like_ckpt(head):
            raise _unknown(source, head) from error
        problems.add(error)
    problems.raise_if_any()
    if not assembly.tensors:
        raise _unknown(source, head)
    return Checkpoint(
        Path(path),
        format="ckpt",
        is_folder=False,
        tensors=assembly.tensors,
        sources=(source,),
        crc=crc,
        warnings=tuple(assembly.warnings),
    )


def check_crc(source: Source, expected: int, progress: Progress = SILENT) -> None:
    """Read a whole file and compare its CRC-32 with what its trailer promises.

    Args:
        source: A file with a trailer.
        expected: What `Checkpoint.crc` has for it.
        progress: Told how far the reading is.

    Raises:
        CorruptInputError: The bytes are not the ones that were saved.
    """
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    crc, offset, end = 0, 0, source.size - TRAILER_BYTES
    progress.start(end, f"checking the CRC of {Path(source.path).name}")
    try:
        while offset < end:
            chunk = buffer[: min(_CHUNK_BYTES, end - offset)]
            read_into(source, offset, chunk)
            crc = crc32(chunk, crc)
            offset += len(chunk)
            progress.advance(len(chunk))
    finally:
        progress.finish()
    _compare_crc(source, crc, expected)


def check_read_crc(source: Source, expected: int, pieces: CrcPieces) -> bool:
    """Compare the CRC-32 of what was read of a file with what its trailer promises, if all of it was read.

    Args:
        source: A file with a trailer.
        expected: What `Checkpoint.crc` has for it.
        pieces: What was read. What little is missing, as are headers, is read now.

    Returns:
        Whether it was checked: not where a good part of the file was not read.

    Raises:
        CorruptInputError: The bytes are not the ones that were saved.
    """
    length = source.size - TRAILER_BYTES
    crc = pieces.whole(length, partial(read_exactly, source), _HEADERS_BYTES + length // 32)
    if crc is not None:
        _compare_crc(source, crc, expected)
    return crc is not None


def _compare_crc(source: Source, crc: int, expected: int) -> None:
    if crc != expected:
        remedy = "The file changed after it was saved: copy it again from where it was saved"
        raise CorruptInputError(Problem(source.path, f"CRC-32 {crc:08x}", f"{expected:08x} as its end states", remedy))


def _refuse_head(path: str | os.PathLike[str], head: bytes) -> None:
    if not head:
        raise CorruptInputError(Problem(str(path), "an empty file", "a checkpoint", "Copy it again"))
    if head[1:4] == _CIPHER_MAGIC:
        cipher = {0xD8: "AES-GCM", 0xD9: "AES-CBC", 0xDA: "SM4-CBC"}.get(head[0], "an unknown cipher")
        remedy = (
            "Decrypt it where MindSpore is installed: mindspore.save_checkpoint(mindspore.load_checkpoint("
            "FILE, dec_key=KEY, dec_mode=MODE), 'plain.ckpt')"
        )
        found = f"one that MindSpore encrypted ({cipher})"
        raise EncryptedInputError(Problem(str(path), found, "a plain .ckpt", remedy))


def _unknown(source: Source, head: bytes) -> UnknownFormatError:
    found, remedy = f"a file that begins with {head[:8].hex(' ')}", "Check the path"
    if not any(head):
        found, remedy = "zeros", "The file was never written out: copy it again from where it was saved"
    elif head[:1] in (b"\x08", b"\x12", b"\x1a") or head.startswith(CRC_MAGIC):
        found, remedy = "a file without tensors (a parallel strategy?)", "Give the checkpoint itself"
    return UnknownFormatError(Problem(source.path, found, "a MindSpore .ckpt", remedy))


def _head_varint(head: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(head[position : position + 10]):
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    return value, len(head)
