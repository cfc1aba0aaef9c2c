"""What a merge did."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import DroppedTensor, OutputReport

__all__ = ["AdapterReport", "AdapterUse", "CombinedLayer", "FoldedWeight", "MergeReport"]


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter that went in.

    Attributes:
        path: What the user gave.
        digest: BLAKE3 over the content of its tensors, as `ckpt_tools.fingerprint.content_digest` defines it.
        config: The file that the scale was read from; empty where it came from the command line.
        families: How its parameters are spelled.
        names: What was done to its names to find the base's; empty where they are spelled alike.
        weight: What the whole adapter was multiplied with, as of `--weight`.
    """

    path: str
    digest: str
    config: str
    families: tuple[str, ...]
    names: str = ""
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """One adapter's part in one weight.

    Attributes:
        adapter: Its path.
        keys: Its tensors that went into the weight.
        kind: `linear`, `embedding`, `conv`, `expert`, `bias` or `replaced`.
        rank: LoRA's rank; None where there is none.
        alpha: LoRA's alpha; None where the scale itself was given.
        scaling: The factor in front of B @ A; None where the weight was replaced.
        dora: Whether the weight was renormalised by a DoRA magnitude.
        weight: What the scaling was multiplied with besides.
    """

    adapter: str
    keys: tuple[str, ...]
    kind: str
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    dora: bool = False
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class CombinedLayer:
    """One layer of adapters that were combined by a method.

    Attributes:
        name: The layer; of a merge the base's weight.
        kind: `linear`, `embedding`, `conv` or `expert`.
        adapters: Which adapters have it, counted from 0.
        ranks: The rank of each of these.
        rank: The rank of the result.
        norm: The Frobenius norm of what the method gives.
        energy: The share of its sum of squares that the rank keeps, 0 to 1; of experts the least.
        relative_error: The distance of B @ A, as it is stored, from what the method gives, by its norm.
        distance_from_sum: The distance of B @ A from the plain weighted sum of the updates, by the norm of that; None
            where the sum is zero.
        converged: Whether the decomposition of a large layer came to rest; otherwise the energy is a lower bound.
    """

    name: str
    kind: str
    adapters: tuple[int, ...]
    ranks: tuple[int, ...]
    rank: int
    norm: float
    energy: float
    relative_error: float
    distance_from_sum: float | None
    converged: bool = True


@dataclass(frozen=True, slots=True)
class FoldedWeight:
    """One weight of the output that is not the base's.

    Attributes:
        name: Its name in the output.
        base_name: Its name in the base.
        shape: Its shape.
        dtype: Its element type in the output.
        adapters: What went in.
        weight_norm: Frobenius norm of the weight before; None in a dry run and for replaced weights.
        delta_norm: Frobenius norm of what was added.
        relative_delta: delta_norm / weight_norm.
        unchanged_share: Share of the elements, 0 to 1, whose stored bits the rounding left as they were.
        combination: How the adapters' updates became one; None where they were summed.
    """

    name: str
    base_name: str
    shape: tuple[int, ...]
    dtype: str
    adapters: tuple[AdapterUse, ...]
    weight_norm: float | None = None
    delta_norm: float | None = None
    relative_delta: float | None = None
    unchanged_share: float | None = None
    combination: CombinedLayer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeReport(OutputReport):
    """What `merge` did, or in a dry run would do.

    Attributes:
        base: The base's path.
        base_fingerprint: As `ckpt_tools.fingerprint.fingerprint` defines it.
        adapters: The adapters that went in.
        weights: Every weight that is not the base's.
        copied: Names in the output of tensors with the base's bytes.
        cast: Names in the output of tensors that were only cast to another type.
        dropped: Tensors of the inputs that are not in the output.
        ranks: The ranks whose files were written, as `0-63`, where the output is left to other runs; else None. Then
            `files`, `bytes_read` and `bytes_written` are of these alone.
        unmerge_patch: Where the patch lies that `unmerge` brings the base back with; None where nobody asked for one.
        unmerge_patch_bytes: Bytes of its file; None in a dry run.
        unmerge_patch_share: The same, as a share of the base's weights, 0 to 1.
        method: How several adapters on one weight were combined, as of `--method`.
        how: The method and its numbers, for people.
    """

    base: str
    base_fingerprint: str
    adapters: tuple[AdapterReport, ...]
    weights: tuple[FoldedWeight, ...]
    copied: tuple[str, ...]
    cast: tuple[str, ...]
    dropped: tuple[DroppedTensor, ...]
    ranks: str | None = None
    command: str = "merge"
    unmerge_patch: str | None = None
    unmerge_patch_bytes: int | None = None
    unmerge_patch_share: float | None = None
    method: str = "cat"
    how: str = "cat"
