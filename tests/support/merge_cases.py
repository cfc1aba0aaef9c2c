"""Small bases and adapters, written in every form, and what merging them must give, in float64."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np
from helpers import materialise

from ckpt_tools import MergeReport, open_checkpoint
from ckpt_tools.formats.ckpt import crc_trailer, layout_ckpt
from ckpt_tools.formats.safetensors import layout_safetensors
from ckpt_tools.tensors.dtypes import dtype_of
from ckpt_tools.tensors.views import Constant

HIDDEN, INNER, VOCABULARY, RANK = 16, 24, 40, 4
MANTISSA_BITS = {"fp16": 10, "bf16": 7, "fp32": 23, "fp64": 52}
SMALLEST_EXPONENT = {"fp16": -14, "bf16": -126, "fp32": -126, "fp64": -1022}
NUMPY = {"fp16": np.float16, "bf16": ml_dtypes.bfloat16, "fp32": np.float32, "fp64": np.float64}

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Update:
    """What one adapter adds to one weight: scaling * (left @ right)."""

    left: np.ndarray
    right: np.ndarray
    scaling: float


def random(seed: int, *shape: int, dtype: str = "fp32", size: float = 0.1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, size, shape).astype(NUMPY[dtype])


def llama(dtype: str = "bf16", layers: int = 2) -> Arrays:
    """A LLaMA under MindFormers' names."""
    shapes: dict[str, tuple[int, ...]] = {"model.tok_embeddings.embedding_weight": (VOCABULARY, HIDDEN)}
    for layer in range(layers):
        cells = {f"attention.{cell}.weight": (HIDDEN, HIDDEN) for cell in ("wq", "wk", "wv", "wo")}
        cells |= {f"feed_forward.{cell}.weight": (INNER, HIDDEN) for cell in ("w1", "w3")}
        cells |= {"feed_forward.w2.weight": (HIDDEN, INNER)}
        cells |= {"attention_norm.weight": (HIDDEN,), "ffn_norm.weight": (HIDDEN,)}
        shapes |= {f"model.layers.{layer}.{cell}": shape for cell, shape in cells.items()}
    shapes |= {"model.norm_out.weight": (HIDDEN,), "lm_head.weight": (VOCABULARY, HIDDEN)}
    return {name: random(seed, *shape, dtype=dtype) for seed, (name, shape) in enumerate(shapes.items())}


HUGGING_FACE_PARTS = {
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w2": "mlp.down_proj",
    "feed_forward.w3": "mlp.up_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "model.tok_embeddings.embedding_weight": "model.embed_tokens.weight",
    "model.norm_out": "model.norm",
}


def hugging_face_name(name: str) -> str:
    """Written again here, so that the tests do not believe the table under test."""
    for part, other in HUGGING_FACE_PARTS.items():
        name = name.replace(part, other)
    return name


def hugging_face(arrays: Arrays) -> Arrays:
    return {hugging_face_name(name): array for name, array in arrays.items()}


TARGETS = tuple(f"model.layers.{layer}.attention.{cell}" for layer in range(2) for cell in ("wq", "wv"))


def factors(targets: Iterable[str] = TARGETS, seed: int = 1000, rank: int = RANK, dtype: str = "fp32") -> Arrays:
    """A and B of square weights, under the layers' names: `X.A` and `X.B`."""
    found = {}
    for number, target in enumerate(targets):
        found[f"{target}.A"] = random(seed + 2 * number, rank, HIDDEN, dtype=dtype)
        found[f"{target}.B"] = random(seed + 2 * number + 1, HIDDEN, rank, dtype=dtype)
    return found


def mindpet(pairs: Arrays) -> Arrays:
    """Factors as MindFormers names them."""
    return {f"{name[:-2]}.mindpet_delta_lora_{name[-1].lower()}": array for name, array in pairs.items()}


def peft(pairs: Arrays) -> Arrays:
    """Factors as PEFT names them, on a Hugging Face model."""
    return {
        f"base_model.model.{hugging_face_name(name[:-2])}.lora_{name[-1]}.weight": array
        for name, array in pairs.items()
    }


def updates(pairs: Arrays, scaling: float) -> dict[str, Update]:
    """What the factors add, by the name of the weight."""
    return {
        f"{name[:-2]}.weight": Update(pairs[f"{name[:-2]}.B"], array, scaling)
        for name, array in pairs.items()
        if name.endswith(".A")
    }


def write_folder(folder: Path, arrays: Arrays, suffix: str = ".safetensors", shards: int = 3) -> Path:
    """Shards of about as many tensors each, and an index."""
    stem = "model" if suffix == ".safetensors" else "mindspore_model"
    folder.mkdir(parents=True)
    names = list(arrays)
    weight_map = {}
    for number in range(shards):
        part = names[number * len(names) // shards : (number + 1) * len(names) // shards]
        file = f"{stem}-{number + 1:05}-of-{shards:05}{suffix}"
        save(folder / file, {name: arrays[name] for name in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    total_size = sum(array.nbytes for array in arrays.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / f"{stem}{suffix}.index.json").write_text(json.dumps(index))
    return folder


def write_peft(folder: Path, arrays: Arrays, **config: object) -> Path:
    folder.mkdir(parents=True)
    save(folder / "adapter_model.safetensors", arrays, {"format": "pt"})
    known = {"peft_type": "LORA", "r": RANK, "lora_alpha": 2 * RANK, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(known | config))
    return folder


def save(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> None:
    """A file without the writer under test, nor its wait for the disk."""
    tensors = [(name, Constant(array, dtype_of(array))) for name, array in arrays.items()]
    is_ckpt = path.suffix == ".ckpt"
    layout = layout_ckpt(tensors) if is_ckpt else layout_safetensors(tensors, metadata or {})
    path.write_bytes(materialise(layout, tensors))


def write(path: Path, arrays: Arrays, metadata: Mapping[str, str] | None = None) -> Path:
    """A checkpoint of the kind that the path's name asks for: a file, or `folder-ckpt`, `folder-safetensors`."""
    if not path.suffix:
        return write_folder(path, arrays, suffix="." + path.name.rpartition("-")[2])
    save(path, arrays, metadata)
    return path


def add_crc(path: Path) -> None:
    """End a `.ckpt` with its CRC-32."""
    data = path.read_bytes()
    path.write_bytes(data + crc_trailer(zlib.crc32(data)))


def read(path: Path) -> Arrays:
    return {name: tensor.read_all() for name, tensor in open_checkpoint(path).tensors.items()}


def expected(weight: np.ndarray, *terms: Update) -> tuple[np.ndarray, np.ndarray]:
    """The merged weight in float64, and the sum of the magnitudes that went into each element of it."""
    total, magnitude = weight.astype(np.float64), np.abs(weight.astype(np.float64))
    for term in terms:
        left, right = term.left.astype(np.float64), term.right.astype(np.float64)
        total = total + term.scaling * (left @ right)
        magnitude = magnitude + abs(term.scaling) * (np.abs(left) @ np.abs(right))
    return total, magnitude


def assert_merged(merged: np.ndarray, dtype: str, weight: np.ndarray, *terms: Update) -> None:
    """Half a unit in the last place from one rounding, and what the sums in float32 (float64) may lose."""
    exact, magnitude = expected(weight, *terms)
    assert merged.dtype == NUMPY[dtype]
    assert merged.shape == weight.shape
    exponents = np.maximum(np.frexp(exact)[1] - 1, SMALLEST_EXPONENT[dtype])
    unit = np.ldexp(1.0, exponents - MANTISSA_BITS[dtype])
    inner_bits = 53 if weight.dtype == np.float64 else 24
    sums = 2 + sum(term.left.shape[-1] + 2 for term in terms)
    allowed = 0.5 * unit + sums * 2.0**-inner_bits * magnitude
    assert np.all(np.abs(merged.astype(np.float64) - exact) <= allowed)


def assert_all_merged(path: Path, base: Arrays, terms: Mapping[str, Update], dtype: str | None = None) -> None:
    """The output has all of the base's weights: folded where there is a term, else with the base's own bytes."""
    merged = read(path)
    assert list(merged) == list(base)
    for name, weight in base.items():
        if name in terms:
            own = next(key for key, numpy_type in NUMPY.items() if weight.dtype == numpy_type)
            assert_merged(merged[name], dtype or own, weight, terms[name])
            assert not np.array_equal(merged[name].astype(np.float64), weight.astype(np.float64))
        else:
            assert merged[name].tobytes() == weight.astype(NUMPY[dtype] if dtype else weight.dtype).tobytes()


def tree(folder: Path) -> dict[str, str]:
    """All files below a folder, hidden ones too, each with a digest of its content and its modification time."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def contents(path: Path) -> dict[str, bytes]:
    """The bytes of an output: of the file, or of each file in the folder."""
    if path.is_file():
        return {"": path.read_bytes()}
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


BASE, PAIRS = llama(), factors()
TERMS = updates(PAIRS, 2.0)
HF_TERMS = {hugging_face_name(name): update for name, update in TERMS.items()}

Merge = Callable[..., MergeReport]
"""The fixture `merged`: merge the adapter of `PAIRS`, with alpha 8, into a base."""


def with_manifest_of(output: str) -> list[str]:
    """The names of a single file and of the manifest that lies beside it; a `.safetensors` has it within."""
    path = Path(output)
    return sorted([path.name, *([f"{path.stem}.pet-manifest.json"] if path.suffix == ".ckpt" else [])])


def names_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def hf_folder(folder: Path, shards: int = 2, **config: object) -> Path:
    write_folder(folder, hugging_face(BASE), shards=shards)
    known = {"architectures": ["LlamaForCausalLM"], "torch_dtype": "bfloat16", "note": "größer"}
    (folder / "config.json").write_text(json.dumps(known | config, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer.json").write_bytes(b"\x00tokens")
    (folder / "README.md").write_text("a model")
    return folder
