"""What an inspection found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_tools.reports.base import Report
from ckpt_tools.reports.served import AdapterSimilarity, ServedAdapter

__all__ = [
    "ComparedTensor",
    "Comparison",
    "InspectReport",
    "InspectedFamily",
    "InspectedLayout",
    "InspectedPair",
    "InspectedTensor",
    "InspectedTotal",
    "OtherShape",
    "RankGroup",
    "Spectrum",
]


@dataclass(frozen=True, slots=True)
class InspectedTensor:
    """A tensor of a checkpoint, as its header has it.

    Attributes:
        name: Its name.
        group: `weight`, `adapter`, `optimizer`, `scalar` or `other`.
        role: What it does, by its name: `weight`, `LoRA A`, `optimizer state`, ...
        family: How an adapter's parameter is spelled; `plain` of others.
        layer: The module that it belongs to, as the base model names it.
        shape: Its shape; of ranks without a strategy, that of a slice.
        dtype: Its element type.
        nbytes: Bytes of its content.
        parts: In how many parts each axis is cut; empty where that is not known.
    """

    name: str
    group: str
    role: str
    family: str
    layer: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    parts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class InspectedTotal:
    """All tensors of one group and one element type."""

    group: str
    dtype: str
    tensors: int
    elements: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class InspectedFamily:
    """The parameters of one method in one spelling.

    Attributes:
        method: `LoRA`, or another method.
        family: How its parameters are spelled.
        tensors: How many there are.
        elements: How many numbers they have.
        nbytes: Bytes of their contents.
        ranks: LoRA's ranks.
        alphas: LoRA's alphas; empty where they are not known.
        config: The file that alpha is from; empty where there is none.
    """

    method: str
    family: str
    tensors: int
    elements: int
    nbytes: int
    ranks: tuple[int, ...]
    alphas: tuple[float, ...]
    config: str


@dataclass(frozen=True, slots=True)
class Spectrum:
    """What scaling * B @ A is made of.

    Attributes:
        scaling: The factor that it was computed with: 1 where the pair's is not known.
        singular_values: The singular values, the largest first; of an expert weight those of all experts, sorted.
        energy: For each rank from 1 on, the share of the sum of squares that so many singular values have, 0 to 1.
        effective_rank: exp of the entropy of the singular values' shares (Roy and Vetterli, 2007); 0 of a zero.
        norm: Frobenius norm.
    """

    scaling: float
    singular_values: tuple[float, ...]
    energy: tuple[float, ...]
    effective_rank: float
    norm: float


@dataclass(frozen=True, slots=True)
class InspectedPair:
    """The low-rank update of one weight.

    Attributes:
        layer: The module, as the base model names it.
        family: How its parameters are spelled.
        kind: `linear`, `embedding`, `conv` or `expert`.
        rank: Its rank, by the shapes.
        alpha: Its alpha; None where it is not known.
        scaling: The factor in front of B @ A; None where it is not known.
        a: The name of A.
        b: The name of B.
        dora: Whether it has a DoRA magnitude.
        spectrum: With `spectra`, what B @ A is made of; None without, and where it is not finite.
    """

    layer: str
    family: str
    kind: str
    rank: int
    alpha: float | None
    scaling: float | None
    a: str
    b: str
    dora: bool
    spectrum: Spectrum | None = None


@dataclass(frozen=True, slots=True)
class InspectedLayout:
    """How a strategy cuts a parameter.

    Attributes:
        stage: The pipeline stage.
        name: The parameter.
        device_matrix: The devices of the stage as a matrix.
        tensor_map: For each axis the device axes that cut it, counted from the right of the matrix.
        parts: In how many parts each axis is cut, optimizer shards included; empty where that depends on the shape.
        replicas: How many ranks of the stage hold the same slice; 0 where that depends on the shape.
        optimizer_shards: `opt_weight_shard_size`: 0 without, -1 over all devices that would hold the same.
    """

    stage: int
    name: str
    device_matrix: tuple[int, ...]
    tensor_map: tuple[tuple[int, ...], ...]
    parts: tuple[int, ...]
    replicas: int
    optimizer_shards: int


@dataclass(frozen=True, slots=True)
class RankGroup:
    """Ranks whose headers are alike: the same names, types and shapes.

    Attributes:
        ranks: Their numbers.
        tensors: How many tensors each holds.
        nbytes: Bytes of each one's tensors.
        own: Names that these ranks hold, and not all others.
    """

    ranks: tuple[int, ...]
    tensors: int
    nbytes: int
    own: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OtherShape:
    """A tensor that ranks of several groups hold, of several shapes or types.

    Attributes:
        name: Its name.
        shapes: For each group of ranks, in their order, the shape; empty also where it lacks the tensor.
        dtypes: Likewise the type; empty where it lacks the tensor.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ComparedTensor:
    """A tensor that both checkpoints have.

    Attributes:
        name: Its name in the first, as `names` spells it.
        layer: The module that it belongs to.
        shape: Its shape in the first.
        other_shape: Its shape in the other.
        dtype: Its type in the first.
        other_dtype: Its type in the other.
        equal_bits: Whether shape, type and all bits are the same.
        elements: How many elements it has.
        differing: How many elements differ: in their bits, of two types in their values; None where shapes differ.
        norm: Frobenius norm of the first's finite values; None where it has no numbers, or shapes differ.
        difference_norm: Frobenius norm of the difference, where both are finite; None likewise.
        relative_difference: difference_norm / norm; None also where the norm is 0.
        largest_difference: The largest absolute difference where both are finite; None likewise.
        nonfinite: How many of the differing elements are NaN or Inf in one or both.
    """

    name: str
    layer: str
    shape: tuple[int, ...]
    other_shape: tuple[int, ...]
    dtype: str
    other_dtype: str
    equal_bits: bool
    elements: int
    differing: int | None = None
    norm: float | None = None
    difference_norm: float | None = None
    relative_difference: float | None = None
    largest_difference: float | None = None
    nonfinite: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs between two checkpoints.

    Attributes:
        other: The path of the other one.
        other_strategy: Its strategy; None where it is whole or says itself how it is cut.
        other_format: `ckpt` or `safetensors`.
        names: `keep`, or how names were translated.
        equal: Whether both have the same tensors, to the bit.
        only_here: Names that the first alone has.
        only_there: Names that the other alone has.
        tensors: What both have.
    """

    other: str
    other_strategy: str | None
    other_format: str
    names: str
    equal: bool
    only_here: tuple[str, ...]
    only_there: tuple[str, ...]
    tensors: tuple[ComparedTensor, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectReport(Report):
    """What `inspect_checkpoint` found.

    Attributes:
        path: What was given.
        kind: `file`, `folder`, `ranks`, `iteration`, `strategy`, or `adapters`: a folder of them.
        format: `ckpt` or `safetensors`; empty of a strategy.
        files: The names of the files that were read, within `path` where it is a folder.
        file_bytes: The bytes that they take.
        strategy: The strategy of ranks' files; None without one.
        step: Epoch and step in the names of ranks' files, as `9_1`, or the number of an iteration; empty without.
        steps: The steps that all ranks have.
        ranks: How many ranks there are; 0 of a whole checkpoint.
        sliced: Whether `tensors` are the slices of rank 0, as there was no strategy.
        filters: The patterns that names were chosen by; empty for all.
        metadata: What the files say beside the tensors.
        base_fingerprint: That of the base that an adapter belongs to, where its file or configuration has it.
        scalars: Training scalars, of one element, and their values: the only contents that are read without `other`
            and `spectra`.
        tensors: The tensors, in the order of the files.
        totals: Their sums by group and type.
        families: The adapters' parameters by method and spelling.
        pairs: LoRA's pairs.
        stages: How many pipeline stages the strategy has; 0 without one.
        stage_devices: Devices of each stage; 0 without a strategy.
        layouts: How the strategy cuts parameters.
        rank_groups: Ranks whose headers are alike.
        rank_differences: Tensors whose shape or type is not the same on all ranks that have them.
        comparison: What differs from the other checkpoint; None where there is none.
        adapters: The adapters of a folder that serves several.
        similarities: How alike these are, pair by pair.
    """

    path: str
    kind: str
    format: str = ""
    files: tuple[str, ...] = ()
    file_bytes: int = 0
    strategy: str | None = None
    step: str = ""
    steps: tuple[str, ...] = ()
    ranks: int = 0
    sliced: bool = False
    filters: tuple[str, ...] = ()
    metadata: Mapping[str, str] | None = None
    base_fingerprint: str = ""
    scalars: Mapping[str, float] | None = None
    tensors: tuple[InspectedTensor, ...] = ()
    totals: tuple[InspectedTotal, ...] = ()
    families: tuple[InspectedFamily, ...] = ()
    pairs: tuple[InspectedPair, ...] = ()
    stages: int = 0
    stage_devices: int = 0
    layouts: tuple[InspectedLayout, ...] = ()
    rank_groups: tuple[RankGroup, ...] = ()
    rank_differences: tuple[OtherShape, ...] = ()
    comparison: Comparison | None = None
    adapters: tuple[ServedAdapter, ...] = ()
    similarities: tuple[AdapterSimilarity, ...] = ()
    command: str = "inspect"
