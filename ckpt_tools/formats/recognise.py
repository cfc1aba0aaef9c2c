"""What a single file is, by its first bytes; what is not supported is refused with what to do instead."""

from __future__ import annotations

import os
import struct
from pathlib import PurePath

from ckpt_tools.formats.ckpt import looks_like_ckpt, read_ckpt
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.formats.safetensors import LENGTH_BYTES, MAX_HEADER_BYTES, read_safetensors
from ckpt_tools.tensors.sources import open_source, read_exactly
from surgery.errors import CorruptInputError, Problem, UnknownFormatError

__all__ = ["PICKLE_REMEDY", "read_file"]

_HEAD_BYTES = 512

PICKLE_REMEDY = (
    "Pickles are not read, because loading one can run any code. Where torch is installed, convert it: "
    "safetensors.torch.save_file(torch.load(FILE, map_location='cpu', weights_only=True), 'model.safetensors')"
)
_CONVERT = "Convert it to safetensors with the tool that wrote it"
_LFS = b"version https://git-lfs"
_EXPECTED = "a .ckpt of MindSpore or a safetensors file"

# (first bytes, what such a file is, what to do)
_FOREIGN = (
    (b"\x80", "a pickle of torch or Python", PICKLE_REMEDY),
    (b"GGUF", "a GGUF file", "Its weights are mostly quantised: take the checkpoint that it was made from"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file", _CONVERT),
    (b"\x93NUMPY", "a numpy array without a name", "Save it by its name with safetensors.numpy.save_file"),
    (_LFS, "a git-lfs pointer, not the file itself", "Fetch the file: git lfs pull"),
    (b"\x1f\x8b", "a gzip archive", "Unpack it first"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", "Unpack it first"),
    (b"\xfd7zXZ\x00", "an xz archive", "Unpack it first"),
    (b"BZh", "a bzip2 archive", "Unpack it first"),
)
_MARKUP = (b"<!doctype", b"<html", b"<?xml", b"<head")


def read_file(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the headers of a single `.ckpt` or safetensors file, whatever its name is.

    Raises:
        InputMissingError: The file is not there.
        CorruptInputError: It is empty, or breaks a rule of its format.
        EncryptedInputError: It is encrypted.
        UnknownFormatError: It is something else.
    """
    source = open_source(path)
    head = bytes(read_exactly(source, 0, min(source.size, _HEAD_BYTES)))
    if not head:
        raise CorruptInputError(Problem(str(path), "an empty file", _EXPECTED, "Copy or save it again"))
    if _looks_like_safetensors(head):
        return read_safetensors(path)
    # Before texts: the first value of a .ckpt may well be 123 bytes long, and the file then begins with "\n{".
    if looks_like_ckpt(head):
        return read_ckpt(path)
    foreign = _name_foreign(head)
    if foreign is not None:
        raise UnknownFormatError(Problem(str(path), foreign[0], _EXPECTED, foreign[1]))
    # Damaged beyond recognition: the reader that the name asks for says best what is wrong.
    suffix = PurePath(path).suffix.lower()
    if suffix == ".safetensors":
        return read_safetensors(path)
    if suffix == ".ckpt":
        return read_ckpt(path)
    raise UnknownFormatError(Problem(str(path), f"the unknown bytes {head[:8].hex(' ')}", _EXPECTED))


def _looks_like_safetensors(head: bytes) -> bool:
    if len(head) <= LENGTH_BYTES or head[LENGTH_BYTES : LENGTH_BYTES + 1] != b"{":
        return False
    (length,) = struct.unpack_from("<Q", head)
    return bool(length <= MAX_HEADER_BYTES)


def _name_foreign(head: bytes) -> tuple[str, str] | None:
    """What a file of a format that is not read is, and what to do about it."""
    if head.startswith(b"PK\x03\x04"):
        first_name = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        if first_name.endswith(b".npy"):
            return "a numpy .npz archive", "Save the arrays with safetensors.numpy.save_file"
        if first_name.startswith((b"archive/", b"pytorch_model/", b"adapter_model/")) or b"data.pkl" in first_name:
            return "a pickle of torch in a zip archive", PICKLE_REMEDY
        return "a zip archive, perhaps a pickle of torch", PICKLE_REMEDY
    for magic, kind, remedy in _FOREIGN:
        if head.startswith(magic):
            return kind, remedy
    text = head.lstrip().lower()
    if text.startswith(_MARKUP):
        return "a web page, perhaps of a download that failed", "Download the file again, with a login if it needs one"
    if text.startswith((b"{", b"[")):
        return "a JSON text", "Pass the checkpoint, its folder, or its *.index.json"
    return None
