"""A LoRA extracted from a full fine-tune: what changed of each matrix, by its nearest product of two narrow ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ckpt_tools.distributed import Opened
from ckpt_tools.fingerprint import same_values, target_fingerprint
from ckpt_tools.progress import Progress
from ckpt_tools.reports import ExtractedLayer
from ckpt_tools.splitting.selection import Selected
from ckpt_tools.tensors.casts import cast_array, count_nonfinite, widen
from ckpt_tools.tensors.dtypes import BY_NAME, DType
from ckpt_tools.tensors.lazy import ByteRun, LazyTensor, Stored, files_of
from ckpt_tools.tensors.sources import check_unchanged, open_source
from ckpt_tools.writing.copying import write_at
from ckpt_tools.writing.scratch import scratch_failed, scratch_folder
from surgery.errors import MismatchError, NonFiniteError, Problem
from surgery.extraction import LowRank, extract_low_rank, rounding_edge, singular_width
from surgery.lowrank import lora_delta
from surgery.naming import Role, classify
from surgery.near import near_names
from surgery.spelling import spell
from surgery.translation import naming_of

__all__ = ["Extracted", "ExtractionOptions", "extract_delta", "working_bytes"]

_LOOKED_UP = frozenset(
    {"embed_tokens", "tok_embeddings", "word_embeddings", "wte", "wpe", "embed_in", "position_embeddings", "embedding"}
)
_HEADS = frozenset({"lm_head", "embed_out", "output_layer"})  # often tied to the embedding

_MAX_PROBLEMS = 50


@dataclass(frozen=True, slots=True)
class ExtractionOptions:
    """How a LoRA is extracted.

    Attributes:
        rank: The rank of every layer; None for the least that has the energy.
        energy: The share of a layer's change to keep.
        embeddings: What of changed embeddings and output heads: `save` them whole, `extract` them, or `skip` them.
        exclude: Globs of tensors that stay as they are in the base.
        seed: Of the randomised SVD.
        dtype: The type of A and B.
        threads: For the products.
    """

    rank: int | None = None
    energy: float = 1.0
    embeddings: str = "save"
    exclude: tuple[str, ...] = ()
    seed: int = 0
    dtype: DType = BY_NAME["fp32"]
    threads: int = 1


@dataclass(slots=True)
class Extracted:
    """What was extracted.

    Attributes:
        tensors: A and B of the changed matrices, and what is saved whole.
        alphas: Layer to alpha, which is its rank: the scale is 1.
        layers: The proof.
        skipped: Names of what changed and is not in the adapter.
        fingerprint: That of the base's weights behind A and B.
    """

    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    alphas: dict[str, float] = field(default_factory=dict)
    layers: list[ExtractedLayer] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    fingerprint: str = ""

    def selected(self) -> Selected:
        """All of it as a delta."""
        return Selected(tuple(classify(name) for name in self.tensors), (), ())


@contextmanager
def extract_delta(tuned: Opened, base: Opened, options: ExtractionOptions, progress: Progress) -> Iterator[Extracted]:
    """Extract a LoRA; its tensors lie in a temporary file, which is gone behind the block.

    Args:
        tuned: The full fine-tune.
        base: What it was tuned from.
        options: How.
        progress: Told how many bytes of the fine-tune are done.

    Raises:
        MismatchError: The two are not one network, or nothing changed; all problems at once.
        NonFiniteError: What changed of a matrix is not finite.
    """
    names = _common_names(tuned, base, options.exclude)
    family = "peft" if naming_of(names) == "huggingface" else "mindpet"
    with scratch_folder() as folder:
        found = _extract(names, tuned.base.tensors, base.base.tensors, options, family, folder / "factors", progress)
        # What is written later is read from the temporary file: nobody looks at the inputs again.
        for source in {
            source for one in (tuned, base) for name in names for source in files_of(one.base.tensors[name])
        }:
            check_unchanged(source)
        yield found


def working_bytes(tuned: Opened, options: ExtractionOptions) -> int:
    """The anonymous memory that the largest layer takes while it is extracted, at most."""
    family = "peft" if naming_of(tuned.base.tensors) == "huggingface" else "mindpet"
    return max(
        (
            _layer_bytes(tensor, options.rank)
            for name, tensor in tuned.base.tensors.items()
            if _kind(name, tensor, options.embeddings, family) in ("matrix", "lookup")
        ),
        default=0,
    )


def _layer_bytes(tensor: LazyTensor, rank: int | None) -> int:
    """Both weights as they are stored, their difference and the proof in float32; and what decomposes it, in words."""
    smaller = min(tensor.shape)
    kept, is_full = singular_width(smaller, rank)
    words = 4 * kept * sum(tensor.shape) + 5 * kept * kept + (4 * tensor.size if is_full else 0)
    return tensor.size * max(24, 16 + 2 * tensor.dtype.itemsize) + 4 * words


def _common_names(tuned: Opened, base: Opened, exclude: Sequence[str]) -> list[str]:
    """The weights that both have, which have to be of the same shapes."""
    before = base.base.tensors
    names, problems = [], []
    for name, tensor in tuned.base.tensors.items():
        role = classify(name, tuned.base.tensors).role
        if role in (Role.OPTIMIZER, Role.SCALAR) or any(fnmatchcase(name, glob) for glob in exclude):
            continue
        where = f"{tuned.base.path}, {name}"
        if role is not Role.WEIGHT:
            found = f"{role.value}, of an adapter"
            problems.append(
                Problem(where, found, "weights of a full fine-tune", "Leave --base out: it is split as it is")
            )
        elif name not in before:
            near = near_names(name, before) if len(problems) < _MAX_PROBLEMS else []
            likely = f"Is it {' or '.join(near)}? " if near else ""
            remedy = f"{likely}Translate the names with pet-transform --names, or leave it out with --exclude"
            problems.append(Problem(where, f"nothing of that name in {base.base.path}", "the same network", remedy))
        elif before[name].shape != tensor.shape:
            found, expected = f"shape {tensor.shape}", f"{before[name].shape}, as in {base.base.path}"
            problems.append(Problem(where, found, expected, "Leave it out with --exclude"))
        else:
            names.append(name)
    if problems:
        raise MismatchError(problems[:_MAX_PROBLEMS])
    return names


def _extract(
    names: Sequence[str],
    tuned: Mapping[str, LazyTensor],
    base: Mapping[str, LazyTensor],
    options: ExtractionOptions,
    family: str,
    scratch: Path,
    progress: Progress,
) -> Extracted:
    result, places, targets, end = Extracted(), dict[str, tuple[int, tuple[int, ...]]](), [], 0
    progress.start(sum(tuned[name].nbytes for name in names), "extracting")
    try:
        with scratch.open("wb", buffering=0) as file, threadpool_limits(options.threads, "blas"):
            for name in names:
                kind = _kind(name, tuned[name], options.embeddings, family)
                if kind in ("matrix", "lookup"):
                    factors = _extract_one(name, tuned[name], base[name], options, result)
                    if factors is None:
                        continue
                    targets.append(base[name])
                    named: dict[Role, np.ndarray] = {Role.LORA_A: factors[0], Role.LORA_B: factors[1]}
                    if kind == "lookup":  # A (rank, entries) and B (width, rank), whose product is added transposed
                        named = {Role.EMBEDDING_A: factors[1].T, Role.EMBEDDING_B: factors[0].T}
                    for role, values in named.items():
                        key = str(spell(role, name.removesuffix(".weight"), family))
                        places[key] = (end, values.shape)
                        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
                        try:
                            write_at(file.fileno(), data, end)
                        except OSError as error:
                            raise scratch_failed(scratch.parent, error) from error
                        end += data.nbytes
                elif not same_values(tuned[name], base[name]):
                    if kind == "skip":
                        result.skipped.append(name)
                    else:
                        result.tensors[str(spell(Role.WEIGHT, name, family))] = tuned[name]
                progress.advance(tuned[name].nbytes)
    finally:
        progress.finish()
    if places:
        source = open_source(scratch)
        for key, (offset, shape) in places.items():
            nbytes = shape[0] * shape[1] * options.dtype.itemsize
            result.tensors[key] = Stored(options.dtype, shape, (ByteRun(source, offset, nbytes),))
        result.fingerprint = target_fingerprint(targets)
    if not result.tensors:
        raise MismatchError(
            Problem("--base", "a network that differs in nothing", "a fine-tune of it", "Are the two the same files?")
        )
    return result


def _kind(name: str, tensor: LazyTensor, embeddings: str, family: str) -> str:
    """What becomes of a weight that changed: `matrix` and `lookup` are extracted, the others are `save` and `skip`."""
    is_matrix = len(tensor.shape) == 2 and min(tensor.shape) > 1 and tensor.dtype.is_float and name.endswith(".weight")
    parts = name.split(".")
    cell = parts[-2] if len(parts) > 1 else ""
    is_lookup = cell in _LOOKED_UP or parts[-1] in ("embedding_weight", "embedding_table")
    if is_lookup or cell in _HEADS:
        if embeddings != "extract":
            return embeddings
        if is_lookup and is_matrix:
            return "lookup" if family == "peft" else "save"  # MindPet has no LoRA of embeddings
    return "matrix" if is_matrix else "save"


def _extract_one(
    name: str, tuned: LazyTensor, base: LazyTensor, options: ExtractionOptions, result: Extracted
) -> tuple[np.ndarray, np.ndarray] | None:
    """A and B of a matrix; None where it did not change.

    Raises:
        NonFiniteError: The change holds NaN or Inf, which have no singular values.
    """
    after, before = tuned.read_all(), base.read_all()
    with np.errstate(over="ignore", invalid="ignore"):  # counted
        delta = np.array(widen(after), np.float32)
        edge = rounding_edge(delta, _DIGITS[tuned.dtype.name])
        delta -= widen(before)
    if not delta.any():
        return None
    if count := count_nonfinite(delta):
        what = f"NaN or Inf in {count} values of its change"
        remedy = "The training diverged: take an earlier checkpoint, or leave it out with --exclude"
        raise NonFiniteError(Problem(name, what, "finite values in both", remedy))
    found = extract_low_rank(delta, rank=options.rank, energy=options.energy, edge=edge, seed=options.seed)
    if not found.rank:
        result.skipped.append(name)  # nothing but rounding
        return None
    a, b = cast_array(found.a, options.dtype), cast_array(found.b, options.dtype)
    result.layers.append(_proof(name, found, a, b, before, after, tuned.dtype, delta))
    result.alphas[name.removesuffix(".weight")] = float(found.rank)
    return a, b


# Binary digits, the hidden one among them; a difference is taken in float32.
_DIGITS = {"fp64": 24, "fp32": 24, "fp16": 11, "bf16": 8}


def _proof(
    name: str,
    found: LowRank,
    a: np.ndarray,
    b: np.ndarray,
    before: np.ndarray,
    after: np.ndarray,
    dtype: DType,
    delta: np.ndarray,
) -> ExtractedLayer:
    """Merge A and B back, as pet-merge does it, and compare."""
    merged = np.empty(delta.shape, np.float32)
    lora_delta(widen(b).astype(np.float32), widen(a).astype(np.float32), 1.0, merged)
    merged += widen(before)
    back = cast_array(merged, dtype)
    norm = float(np.sqrt(np.einsum("ij,ij->", delta, delta, dtype=np.float64)))
    wrong = widen(back).astype(np.float32)
    wrong -= widen(after)
    error = float(np.sqrt(np.einsum("ij,ij->", wrong, wrong, dtype=np.float64)))
    equal = float(np.mean(back.view(f"u{back.itemsize}") == np.ascontiguousarray(after).view(f"u{after.itemsize}")))
    return ExtractedLayer(name, found.rank, found.energy, error / norm, equal, norm)
