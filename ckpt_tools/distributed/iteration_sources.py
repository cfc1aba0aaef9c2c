"""The whole tensors of an iteration of Checkpoint 2.0, which says itself how they are cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase

from ckpt_tools.distributed.gathering import Gathered, Replica
from ckpt_tools.formats import METADATA_FILE, Chunk, GlobalTensor, Iteration
from ckpt_tools.tensors.assembled import Assembled
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError, Problem
from surgery.states import is_training_scalar

__all__ = ["gather_iteration"]

_MAX_NAMES = 3


def gather_iteration(
    iteration: Iteration,
    replicated: Sequence[str] = (),
    may_leave_out: Callable[[str], bool] = lambda name: False,
) -> Gathered:
    """Put the chunks of an iteration together.

    Args:
        iteration: What was read.
        replicated: Patterns of names that `metadata.json` may lack, since every rank holds all of them.
        may_leave_out: Whether the caller has no use for a tensor that `metadata.json` lacks.

    Raises:
        MismatchError: The files hold tensors that `metadata.json` lacks, and that may be slices.
    """
    tensors: dict[str, LazyTensor] = {name: _whole(tensor) for name, tensor in iteration.tensors.items()}
    parts = {name: tuple(len(cuts) - 1 for cuts in tensor.edges) for name, tensor in iteration.tensors.items()}
    replicas = [replica for tensor in iteration.tensors.values() for replica in _replicas(tensor)]
    left_out: list[str] = []
    unknown: list[str] = []
    problems = []
    for name, copies in iteration.unlisted.items():
        if not _is_whole(name, copies, replicated):
            (left_out if may_leave_out(name) else unknown).append(name)
            continue
        first = copies[0]
        tensors[name], parts[name] = first.tensor, (1,) * len(first.tensor.shape)
        for other in copies[1:]:
            if (other.tensor.shape, other.tensor.dtype) != (first.tensor.shape, first.tensor.dtype):
                where = f"{iteration.path / other.file}, {name}"
                problems.append(Problem(where, _text(other), f"{_text(first)}, as in {first.file}"))
            else:
                replicas.append(_replica(name, first, other))
    if unknown:
        problems.append(_unlisted_problem(iteration, unknown))
    if problems:
        raise MismatchError(problems)
    unlisted = frozenset(name for name in iteration.unlisted if name in tensors)
    return Gathered(tensors, parts, unlisted, tuple(replicas), tuple(left_out))


def _whole(tensor: GlobalTensor) -> LazyTensor:
    chunks = tuple(chunk.tensor for chunk in tensor.chunks)
    return chunks[0] if len(chunks) == 1 else Assembled(tensor.edges, chunks)


def _replicas(tensor: GlobalTensor) -> Iterator[Replica]:
    if tensor.replicas:
        kept = {chunk.region: chunk for chunk in tensor.chunks}
        for other in tensor.replicas:
            yield _replica(tensor.name, kept[other.region], other)


def _replica(name: str, kept: Chunk, other: Chunk) -> Replica:
    return Replica(name, kept.tensor, other.tensor, f"rank {kept.rank}", f"rank {other.rank}")


def _is_whole(name: str, copies: Sequence[Chunk], replicated: Sequence[str]) -> bool:
    if is_training_scalar(name) or any(fnmatchcase(name, pattern) for pattern in replicated):
        return True
    return all(copy.tensor.size == 1 for copy in copies)


def _unlisted_problem(iteration: Iteration, names: Sequence[str]) -> Problem:
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return Problem(
        str(iteration.path / METADATA_FILE),
        f"nothing about {', '.join(names[:_MAX_NAMES])}{more}, which the files hold",
        "all tensors but training scalars",
        "Whether the ranks hold slices or copies of them is unknown. If every rank holds all of them, say so with "
        "--replicated PATTERN",
    )


def _text(chunk: Chunk) -> str:
    return f"{chunk.tensor.dtype} {list(chunk.tensor.shape)}"
