"""What a merge did."""

from __future__ import annotations

from dataclasses import dataclass

from ckpt_tools.reports.base import DroppedTensor, OutputReport

__all__ = ["AdapterReport", "AdapterUse", "FoldedWeight", "MergeReport"]


@dataclass(frozen=True, slots=True)
class AdapterReport:
    """One adapter that went in.

    Attributes:
        path: What the user gave.
        digest: BLAKE3 over the content of its tensors, as `ckpt_tools.fingerprint.content_digest` defines it.
        config: The file that the scale was read from; empty where it came from the command line.
        families: How its parameters are spelled.
        names: What was done to its names to find the base's; empty where they are spelled alike.
    """

    path: str
    digest: str
    config: str
    families: tuple[str, ...]
    names: str = ""


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
    """

    adapter: str
    keys: tuple[str, ...]
    kind: str
    rank: int | None = None
    alpha: float | None = None
    scaling: float | None = None
    dora: bool = False


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
