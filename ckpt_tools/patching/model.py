"""What an un-merge patch says: the base's tensors, and of what merged model and which adapters they follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from blake3 import blake3

from ckpt_tools.patching.grid import Grid
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.folding import LowRankTerm
from ckpt_tools.tensors.lazy import LazyTensor, bands
from ckpt_tools.tensors.views import Transposed, reshape

__all__ = ["FactorRecord", "NotRestored", "PatchFacts", "TensorRecord", "TermRecord", "UsedAdapter", "tensor_digest"]

_BAND_ELEMENTS = 2**20


def tensor_digest(tensor: LazyTensor) -> str:
    """BLAKE3 over a tensor's type and its content in C order, 64 hexadecimal digits; neither name nor shape matters."""
    digest = blake3(f"{tensor.dtype}\0".encode())
    for region in bands(tensor.shape, _BAND_ELEMENTS):
        digest.update(tensor.read(region).reshape(-1).view("u1").data)
    return digest.hexdigest()


@dataclass(frozen=True, slots=True)
class FactorRecord:
    """One factor of an update, by its content: the adapter may be spelled and stored in another way.

    Attributes:
        digest: The `tensor_digest` of the adapter's tensor.
        shape: The shape that it is given.
        is_transposed: Whether its last two axes are exchanged then.
    """

    digest: str
    shape: tuple[int, ...]
    is_transposed: bool

    @property
    def factor_shape(self) -> tuple[int, ...]:
        """The shape of the factor."""
        *stack, rows, columns = self.shape
        return (*stack, columns, rows) if self.is_transposed else self.shape

    def find(self, tensors: Mapping[str, LazyTensor]) -> LazyTensor:
        """The factor, of tensors by their digests."""
        tensor = reshape(tensors[self.digest], self.shape)
        return Transposed(tensor) if self.is_transposed else tensor


@dataclass(frozen=True, slots=True)
class TermRecord:
    """One adapter's update of one weight: scaling * (left @ right)."""

    left: FactorRecord
    right: FactorRecord
    scaling: float

    def find(self, tensors: Mapping[str, LazyTensor]) -> LowRankTerm:
        """The update, of tensors by their digests."""
        return LowRankTerm(self.left.find(tensors), self.right.find(tensors), self.scaling)


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """A tensor of the base.

    Attributes:
        name: Its name in the base.
        merged_name: Its name in the merged model.
        dtype: Its type in the base.
        shape: Its shape, in both.
        grid: How it is cut into chunks.
        terms: What was added to it, as far as it is taken off for the prediction.
        dora_axis: Which axis of the grid's matrix counts the output features that DoRA rescaled; None without.
    """

    name: str
    merged_name: str
    dtype: DType
    shape: tuple[int, ...]
    grid: Grid
    terms: tuple[TermRecord, ...] = ()
    dora_axis: int | None = None


@dataclass(frozen=True, slots=True)
class UsedAdapter:
    """An adapter that was merged.

    Attributes:
        file: The name of its file or folder.
        digest: As `ckpt_tools.fingerprint.content_digest` defines it.
        tensors: The digest of each of its tensors to the tensor's name.
    """

    file: str
    digest: str
    tensors: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class NotRestored:
    """A tensor that the base had, which nothing brings back, and what it was."""

    name: str
    role: str


@dataclass(frozen=True, slots=True)
class PatchFacts:
    """All that a patch says but for the differences.

    Attributes:
        tensors: The base's weights, in its order.
        adapters: What was merged.
        merged_file: The name of the merged model's file or folder.
        merged_fingerprint: The fingerprint of what the base's tensors became, as `ckpt_tools.fingerprint.fingerprint`
            defines it.
        base_file: The name of the base's file or folder.
        base_fingerprint: Its fingerprint.
        base_metadata: The strings that it had beside the tensors.
        base_config: Its `config.json`, where merging changed it.
        not_restored: What else it held.
    """

    tensors: tuple[TensorRecord, ...]
    adapters: tuple[UsedAdapter, ...]
    merged_file: str
    merged_fingerprint: str
    base_file: str
    base_fingerprint: str
    base_metadata: Mapping[str, str] = field(default_factory=dict)
    base_config: str | None = None
    not_restored: tuple[NotRestored, ...] = ()
