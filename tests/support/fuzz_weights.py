"""Targets for fuzzing: files and folders of weights, and what belongs to them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from ckpt_bytes import field, floats, tensor, value, varint
from folders import INDEX, ONE, TWO, add
from fuzz_mutators import mutate_ckpt, mutate_json, mutate_safetensors
from fuzz_target import Target
from helpers import materialise
from hostile import describe, file_bytes, small_file
from iteration_folders import by_element, by_slice, joined, write_files, write_iteration
from merge_cases import HIDDEN, factors, llama, mindpet, peft, random, save, write_peft

from ckpt_tools import merge
from ckpt_tools.formats import Checkpoint, layout_ckpt, layout_safetensors, open_checkpoint, read_ckpt, read_iteration
from ckpt_tools.formats.ckpt import check_crc, crc_trailer
from ckpt_tools.formats.index import NAME_MAP
from ckpt_tools.formats.iteration import METADATA_FILE
from ckpt_tools.formats.safetensors import read_safetensors
from ckpt_tools.patching import read_patch
from surgery.errors import CorruptInputError, InputMissingError, MismatchError

__all__ = ["WEIGHTS"]

_READ_BYTES = 2**20
_TYPES = {"Float32": 4, "BFloat16": 2, "Int8": 1, "str": 4, "Bool": 1, "Complex64": 8, "Float8E4M3FN": 1, "Float16": 2}
_FOUR = b"\x00\x00\x80\x3f"


def _read_contents(checkpoint: Checkpoint) -> None:
    """All small tensors have as many bytes as their headers say."""
    for held in checkpoint.tensors.values():
        if held.nbytes <= _READ_BYTES:
            assert held.read_all().nbytes == held.nbytes


def _assert_written_alike(checkpoint: Checkpoint, path: Path) -> None:
    """What was read and is written again is read as the same tensors; or is refused by the writer."""
    tensors = list(checkpoint.tensors.items())
    if sum(held.nbytes for _, held in tensors) > _READ_BYTES:
        return
    try:
        is_ckpt = checkpoint.format == "ckpt"
        layout = layout_ckpt(tensors) if is_ckpt else layout_safetensors(tensors, dict(checkpoint.metadata))
    except MismatchError:
        return
    path.write_bytes(materialise(layout, tensors))
    again = open_checkpoint(path)
    assert list(again.tensors) == list(checkpoint.tensors) or checkpoint.format == "safetensors"
    assert set(again.tensors) == set(checkpoint.tensors)
    for name, held in tensors:
        other = again.tensors[name]
        assert (other.dtype, other.shape) == (held.dtype, held.shape), name
        assert other.read_all().tobytes() == held.read_all().tobytes(), name


def _ckpt(folder: Path, data: bytes) -> None:
    path = folder / "x.ckpt"
    path.write_bytes(data)
    checkpoint = read_ckpt(path)
    _read_contents(checkpoint)
    _assert_written_alike(checkpoint, folder / "again.ckpt")
    for source, crc in checkpoint.crc.items():
        check_crc(source, crc)


def _ckpt_seeds() -> list[bytes]:
    with_crc = floats("a", 2) + floats("model.layers.0.w.lora_a")
    odd = [value("x", [int(name != "str")], name, bytes(size)) for name, size in _TYPES.items()]
    packed = field(3, _FOUR * 4) + field(2, b"Float32") + field(1, varint(2) * 2) + field(9, b"new")
    return [
        floats("a"),
        with_crc + crc_trailer(zlib.crc32(with_crc)),
        *odd,
        value("scalar", [0], "Float32", _FOUR)
        + value("none", [0, 3], "Float32", b"")
        + value("s", [], "Int64", bytes(8)),
        b"".join(value("a", [4], "Float32", _FOUR * 2) for _ in range(2)),
        field(1, field(7, b"?") + field(2, packed) + field(1, b"x.weight")),
        floats("a") + field(1, field(1, b"m") + field(3, field(1, tensor([1], "int32", bytes(4))))),
        value("big", [2**31, 2**29], "Float32", _FOUR),
        bytes.fromhex("d85e3a7f22000000") + bytes(50),
    ]


def _safetensors(folder: Path, data: bytes) -> None:
    path = folder / "x.safetensors"
    path.write_bytes(data)
    checkpoint = read_safetensors(path)
    _read_contents(checkpoint)
    _assert_written_alike(checkpoint, folder / "again.safetensors")


def _safetensors_seeds() -> list[bytes]:
    def one(dtype: str, shape: list[int], data: bytes, **metadata: str) -> bytes:
        header = {"__metadata__": metadata, "w": describe(dtype, shape, 0, len(data))}
        return file_bytes(json.dumps(header).encode(), data)

    swapped = {"b": describe("F32", [1], 4, 8), "a": describe("F32", [1], 0, 4), "none": describe("F32", [0, 3], 8, 8)}
    return [
        small_file({"a": np.ones(2), "b": np.ones((2, 2)), "s": np.ones(())}, {"format": "pt"}),
        file_bytes(json.dumps(swapped).encode(), _FOUR * 2),
        *(one(dtype, [4], bytes(4 * size)) for dtype, size in (("BF16", 2), ("F8_E4M3", 1), ("BOOL", 1), ("I64", 8))),
        one("I8", [2], b"ab", w="qint4x2"),
        one("C64", [1], bytes(8)),
        file_bytes(b"{}"),
    ]


def _any_file(folder: Path, data: bytes) -> None:
    path = folder / "x"
    path.write_bytes(data)
    _read_contents(open_checkpoint(path))


def _any_seeds() -> list[bytes]:
    heads = (b"\x80\x02", b"GGUF", b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"version https://git-lfs", b"\x1f\x8b", b"BZh")
    zipped = (
        b"PK\x03\x04" + bytes(22) + len(name).to_bytes(2, "little") + bytes(2) + name
        for name in (b"a.npy", b"archive/data.pkl")
    )
    return [*_ckpt_seeds()[:3], *_safetensors_seeds()[:2], *heads, *zipped, b"<!doctype html>", b'{"a": 1}']


def _index(folder: Path, data: bytes) -> None:
    """The same bytes as an index of Hugging Face's and as MindSpore's map of names."""
    errors = []
    for name in (INDEX, NAME_MAP):
        path = folder / name
        path.write_bytes(data)
        try:
            checkpoint = open_checkpoint(folder)
        except (CorruptInputError, InputMissingError) as error:
            errors.append(error)
        else:
            _read_contents(checkpoint)
            assert {Path(source.path).parent for source in checkpoint.sources} <= {folder.resolve()}
        finally:
            path.unlink()
    for error in errors:
        raise error


def _prepare_index(folder: Path) -> None:
    (folder.parent / "secret.safetensors").write_bytes(small_file({"c": np.ones(1)}))
    add(folder, ONE, "a", "b")
    add(folder, TWO, "c")


def _index_seeds() -> list[bytes]:
    weight_map = {"a": ONE, "b": ONE, "c": TWO}
    documents: list[object] = [
        {"metadata": {"total_size": 24, "more": [1, {"x": None}]}, "weight_map": weight_map},
        weight_map,
        {"weight_map": {**weight_map, "c": "../secret.safetensors"}},
        {"weight_map": {"a": f"./{ONE}"}},
    ]
    return [json.dumps(document).encode() for document in documents]


_TENSORS = {
    "w": (np.arange(8, dtype=np.float32).reshape(4, 2), (2, 1)),
    "b": (np.ones(4, np.float16), (1,)),
    "adam_m.w": (np.zeros((4, 2), np.float32), (1, 2)),
    "s": (np.array(3, np.int32), ()),
}


def _metadata(folder: Path, data: bytes) -> None:
    """`metadata.json` of a Checkpoint 2.0, beside sound weights."""
    (folder / METADATA_FILE).write_bytes(data)
    for whole in read_iteration(folder).tensors.values():
        joined(whole)


def _metadata_seeds() -> list[bytes]:
    seeds = []
    with TemporaryDirectory() as scratch:
        for number, meaning in enumerate((None, by_element, by_slice)):
            folder = Path(scratch, str(number))
            write_iteration(folder, _TENSORS, 2, **({} if meaning is None else {"meaning": meaning}))
            seeds.append(json.dumps(json.loads((folder / METADATA_FILE).read_text())).encode())
    return seeds


def _common(folder: Path, data: bytes) -> None:
    (folder / "common.json").write_bytes(data)
    read_iteration(folder)


def _prepare_iteration(folder: Path) -> None:
    write_files(folder, _TENSORS, 2)


def _prepare_common(folder: Path) -> None:
    write_iteration(folder, _TENSORS, 2)


def _patch(folder: Path, data: bytes) -> None:
    """An un-merge patch: its header, its document and its tables."""
    path = folder / "patch"
    path.write_bytes(data)
    patch = read_patch(path)
    for name, table in patch.tables.items():
        for chunk in range(min(len(table.digests), 4)):
            place = table.place(chunk)
            assert place.offset >= 0, name
            assert place.offset + place.length <= len(data), name


def _patch_seeds() -> list[bytes]:
    seeds = []
    names = ("model.norm_out.weight", "model.layers.0.attention.wq.weight")
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        save(folder / "base.ckpt", {name: llama()[name] for name in names} | {"adam_m.x": random(0, 2)})
        pairs = {name: array for name, array in mindpet(factors()).items() if ".0.attention.wq" in name}
        save(folder / "lora.ckpt", pairs)
        for format in ("ckpt", "safetensors"):
            merge(
                folder / "base.ckpt",
                folder / "lora.ckpt",
                alpha=8,
                output=folder / f"merged.{format}",
                unmerge_patch=folder / f"{format}.patch",
            )
            seeds.append((folder / f"{format}.patch").read_bytes())
        seeds.append(_patch_of_dora(folder))
    return seeds


def _patch_of_dora(folder: Path) -> bytes:
    layer = "model.layers.0.self_attn.q_proj"
    save(folder / "hf.safetensors", {f"{layer}.weight": random(0, HIDDEN, HIDDEN)})
    pairs = {name: array for name, array in peft(factors()).items() if f"{layer}." in name}
    magnitude = {f"base_model.model.{layer}.lora_magnitude_vector": random(1, HIDDEN) + 1}
    write_peft(folder / "dora", pairs | magnitude, use_dora=True, target_modules=["q_proj"])
    patch = folder / "dora.patch"
    merge(folder / "hf.safetensors", folder / "dora", output=folder / "merged-dora.safetensors", unmerge_patch=patch)
    return patch.read_bytes()


_CORRUPT = frozenset({4})
_HEADER_WORDS = ("dtype", "shape", "data_offsets", "__metadata__", "F32", "BF16", "F8_E5M2", "I4", "BOOL", "U64")

WEIGHTS: Mapping[str, Target] = {
    "any_file": Target(_any_file, _any_seeds, _CORRUPT),
    "ckpt": Target(_ckpt, _ckpt_seeds, _CORRUPT, mutate_ckpt, (*_TYPES, "crc_num")),
    "iteration_common": Target(
        _common, lambda: [b'{"global_step": 5, "epoch_num": 1}'], _CORRUPT, mutate_json, (), _prepare_common
    ),
    "iteration_metadata": Target(
        _metadata,
        _metadata_seeds,
        frozenset({3, 4, 5}),
        mutate_json,
        ("('w', (0,))", "global_offset", "storage_data", "interleaved_parallel", "Float32", "Int4", "../w"),
        _prepare_iteration,
    ),
    "index": Target(
        _index,
        _index_seeds,
        frozenset({3, 4}),
        mutate_json,
        ("weight_map", "metadata", "total_size", ONE, TWO, "../", "./"),
        _prepare_index,
    ),
    "patch": Target(
        _patch, _patch_seeds, _CORRUPT, mutate_safetensors, (*_HEADER_WORDS, "pet_surgery.unmerge_patch", "bits/")
    ),
    "safetensors": Target(_safetensors, _safetensors_seeds, _CORRUPT, mutate_safetensors, _HEADER_WORDS),
}
