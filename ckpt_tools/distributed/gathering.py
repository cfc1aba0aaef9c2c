"""The whole tensors behind the files of all ranks: proven to be covered by their slices, from headers alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import overload

from ckpt_tools.formats import Checkpoint
from ckpt_tools.formats.ranks import RankFolder
from ckpt_tools.formats.safetensors import HeaderTensors
from ckpt_tools.layout.expanded import folded_slice
from ckpt_tools.layout.model import Layout, Strategy
from ckpt_tools.layout.slices import Cut, cell_region, cut_evenly, cut_of
from ckpt_tools.tensors.assembled import Assembled, FileParts
from ckpt_tools.tensors.lazy import LazyTensor, region_shape
from ckpt_tools.tensors.sources import Source
from surgery.errors import MismatchError, Problem
from surgery.states import is_training_scalar

__all__ = ["Gathered", "RankReplicas", "Replica", "gather"]

_MAX_PROBLEMS = 50
_MAX_NAMES = 3


@dataclass(frozen=True, slots=True)
class Replica:
    """Two tensors that have to hold the same values, and where each of them comes from."""

    name: str
    kept: LazyTensor
    other: LazyTensor
    kept_from: str
    other_from: str

    def pairs(self) -> Iterator[Replica]:
        """The pair itself."""
        yield self


@dataclass(frozen=True, slots=True)
class RankParts(FileParts):
    """The parts of a tensor in the files of ranks.

    Attributes:
        ranks: The files of all ranks.
        name: The tensor's name.
        holders: For each cell, in C order, the number within its stage of the rank that it is taken from.
        first_rank: The stage's first rank.
    """

    ranks: Sequence[Checkpoint]
    name: str
    holders: tuple[int, ...]
    first_rank: int

    def __len__(self) -> int:
        return len(self.holders)

    @overload
    def __getitem__(self, index: int) -> LazyTensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[LazyTensor]: ...
    def __getitem__(self, index: int | slice) -> LazyTensor | Sequence[LazyTensor]:
        if isinstance(index, slice):
            return [self.of(number) for number in self.holders[index]]
        return self.of(self.holders[index])

    def __repr__(self) -> str:
        return f"RankParts({list(self)})"  # what is read, as a plan's digest has to tell; not all that the files hold

    def of(self, number: int) -> LazyTensor:
        """What a rank of the stage holds."""
        return self.ranks[self.first_rank + number].tensors[self.name]

    def files(self) -> Iterator[Source]:
        return (source for number in self.holders for source in self.ranks[self.first_rank + number].sources)


@dataclass(frozen=True, slots=True)
class RankReplicas:
    """The same cells of a tensor in the files of several ranks.

    Attributes:
        parts: What is taken.
        holders: For each cell, in C order, the numbers within the stage of the ranks that hold it.
    """

    parts: RankParts
    holders: Mapping[tuple[int, ...], tuple[int, ...]]

    @property
    def name(self) -> str:
        """The tensor's name."""
        return self.parts.name

    def pairs(self) -> Iterator[Replica]:
        """What is taken with each other one."""
        for first, *others in self.holders.values():
            kept, kept_from = self.parts.of(first), f"rank {self.parts.first_rank + first}"
            for other in others:
                other_from = f"rank {self.parts.first_rank + other}"
                yield Replica(self.name, kept, self.parts.of(other), kept_from, other_from)


@dataclass(frozen=True, slots=True)
class Gathered:
    """Whole tensors.

    Attributes:
        tensors: Name to whole tensor, in the order of the ranks' files.
        parts: Name to the number of parts on each axis; a tensor that every rank holds whole has ones.
        unlisted: The names among them that are in no layout, and that each rank is to hold whole.
        replicas: What the files hold more than once.
        left_out: Names that are in no layout, and that the caller has no use for.
        absent: Names in the strategy that no file holds.
        warnings: What is odd but legal, a sentence each.
    """

    tensors: Mapping[str, LazyTensor]
    parts: Mapping[str, tuple[int, ...]]
    unlisted: frozenset[str] = frozenset()
    replicas: tuple[Replica | RankReplicas, ...] = ()
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def gather(
    folder: RankFolder,
    strategy: Strategy,
    replicated: Sequence[str] = (),
    may_leave_out: Callable[[str], bool] = lambda name: False,
) -> Gathered:
    """Put the slices of all ranks together.

    Args:
        folder: The files of all ranks.
        strategy: What the slices are.
        replicated: Patterns of names that the strategy may lack, since every rank holds all of them.
        may_leave_out: Whether the caller has no use for a tensor that the strategy lacks.

    Raises:
        MismatchError: Files and strategy do not fit together; all problems at once.
    """
    if len(folder.ranks) != strategy.ranks:
        stages = (
            f"{len(strategy.stages)} stages of {strategy.stage_devices}" if len(strategy.stages) > 1 else "one stage"
        )
        raise MismatchError(
            Problem(
                str(folder.path),
                str(len(folder.ranks)),
                f"{strategy.ranks} rank folders, as in the strategy {strategy.path} ({stages})",
                "Pass the strategy that this run saved; of a pipeline, the folder with the files of all stages",
            )
        )
    work = _Gathering(folder, strategy, replicated, may_leave_out)
    work.run()
    return work.result()


@dataclass(slots=True)
class _Gathering:
    folder: RankFolder
    strategy: Strategy
    replicated: Sequence[str]
    may_leave_out: Callable[[str], bool]
    tensors: dict[str, LazyTensor] = field(default_factory=dict)
    parts: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unlisted: dict[str, int] = field(default_factory=dict)  # to the first rank that holds it
    replicas: list[Replica | RankReplicas] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    left_out: dict[str, None] = field(default_factory=dict)
    single: dict[str, None] = field(default_factory=dict)

    def run(self) -> None:
        for stage, layouts in enumerate(self.strategy.stages):
            ranks = range(stage * self.strategy.stage_devices, (stage + 1) * self.strategy.stage_devices)
            alike = self._are_alike(ranks)
            looked_at = ranks[:1] if alike else ranks
            names = dict.fromkeys(name for rank in looked_at for name in self.folder.ranks[rank].tensors)
            unknown = []
            for name in names:
                if name in layouts and alike and not layouts[name].split_shape:
                    self._assemble_alike(name, layouts[name], ranks)
                elif name in layouts:
                    self._assemble(name, layouts[name], ranks)
                elif self._may_be_unlisted(name, ranks):
                    self._keep_unlisted(name, ranks)
                elif self.may_leave_out(name):
                    self.left_out[name] = None
                else:
                    unknown.append(name)
            if unknown:
                self._refuse_unlisted(unknown)

    def result(self) -> Gathered:
        if self.problems:
            more = len(self.problems) - _MAX_PROBLEMS
            rest = [Problem(str(self.folder.path), f"{more} more problems of these kinds")] if more > 0 else []
            raise MismatchError([*self.problems[:_MAX_PROBLEMS], *rest])
        return Gathered(
            self.tensors,
            self.parts,
            frozenset(self.unlisted),
            tuple(self.replicas),
            tuple(self.left_out),
            absent=tuple(dict.fromkeys(n for stage in self.strategy.stages for n in stage if n not in self.tensors)),
            warnings=tuple(self._warnings()),
        )

    def _warnings(self) -> Iterator[str]:
        if self.single:
            yield (
                f"{self.folder.path}: each part of {len(self.single)} tensors such as {next(iter(self.single))} is on "
                "one rank alone, though the strategy has it on several: as if saved with remove_redundancy"
            )

    def _held(self, name: str, ranks: Sequence[int]) -> Iterator[tuple[int, LazyTensor]]:
        """The ranks among these that hold a tensor, and what they hold."""
        for rank in ranks:
            tensor = self.folder.ranks[rank].tensors.get(name)
            if tensor is not None:
                yield rank, tensor

    def _where(self, name: str, rank: int) -> str:
        return f"{self.folder.ranks[rank].path}, {name}"

    def _assemble(self, name: str, layout: Layout, ranks: range) -> None:
        held = dict(self._held(name, ranks))
        first_rank, first = next(iter(held.items()))
        if any((tensor.shape, tensor.dtype) != (first.shape, first.dtype) for tensor in held.values()):
            first_rank = _usual(held)
            first = held[first_rank]
        layout = folded_slice(layout, first.shape)
        try:
            cut = cut_of(layout, len(first.shape), self._where(name, first_rank))
            edges = cut_evenly(_whole_shape(first.shape, cut, layout), cut.parts, layout.split_shape, name)
        except MismatchError as error:
            self.problems += error.problems
            return
        problems = self._misfits(name, cut, edges, ranks, held, first_rank) + self._gaps(name, cut, ranks, held)
        if problems:
            self.problems += problems
            return
        holders = [[ranks[number] for number in group if ranks[number] in held] for group in cut.holders.values()]
        cells = tuple(held[group[0]] for group in holders)
        whole = cells[0] if len(cells) == 1 else Assembled(edges, cells)
        for group in holders:
            for rank in group[1:]:
                self._add_replica(name, held[group[0]], held[rank], f"rank {group[0]}", f"rank {rank}")
        self._add(name, whole, cut.parts, ranks)

    def _are_alike(self, ranks: range) -> bool:
        """Whether all ranks' files have the same names, types and shapes, for they have the same header."""
        tensors = [self.folder.ranks[rank].tensors for rank in ranks]
        places = [held.places for held in tensors if isinstance(held, HeaderTensors)]
        return len(places) == len(tensors) and all(held is places[0] for held in places)

    def _assemble_alike(self, name: str, layout: Layout, ranks: range) -> None:
        """As `_assemble`, without a look at each rank: in an even cut by files that are alike all cells fit."""
        first = self.folder.ranks[ranks[0]].tensors[name]
        layout = folded_slice(layout, first.shape)
        try:
            cut = cut_of(layout, len(first.shape), self._where(name, ranks[0]))
            edges = cut_evenly(_whole_shape(first.shape, cut, layout), cut.parts, (), name)
        except MismatchError as error:
            self.problems += error.problems
            return
        parts = RankParts(self.folder.ranks, name, cut.first_holders, ranks.start)
        self._add(name, first if len(parts) == 1 else Assembled(edges, parts), cut.parts, ranks)
        if len(parts) < len(ranks):
            self.replicas.append(RankReplicas(parts, cut.holders))

    def _misfits(
        self,
        name: str,
        cut: Cut,
        edges: tuple[tuple[int, ...], ...],
        ranks: range,
        held: Mapping[int, LazyTensor],
        reference: int,
    ) -> list[Problem]:
        """The ranks whose tensor is of another shape than the reference's has it, or of another type."""
        problems = []
        for number, cell in enumerate(cut.cells):
            tensor = held.get(ranks[number])
            if tensor is None:
                continue
            expected = region_shape(cell_region(edges, cell))
            if tensor.shape != expected:
                found, wanted = (
                    f"shape {_text(tensor.shape)}",
                    f"{_text(expected)}, by the strategy and the other ranks",
                )
                problems.append(Problem(self._where(name, ranks[number]), found, wanted))
            elif tensor.dtype != held[reference].dtype:
                found, wanted = f"type {tensor.dtype}", f"{held[reference].dtype}, as on rank {reference}"
                problems.append(Problem(self._where(name, ranks[number]), found, wanted))
        return problems

    def _gaps(self, name: str, cut: Cut, ranks: range, held: Mapping[int, LazyTensor]) -> list[Problem]:
        """The parts that no rank holds, and the ranks that should hold a copy of one."""
        if len(held) == len(ranks):
            return []
        problems = []
        groups = cut.holders
        # A .ckpt does not say whether redundancy was removed from it: then each part is on one rank alone.
        is_single = all(sum(ranks[number] in held for number in group) == 1 for group in groups.values())
        for cell, group in groups.items():
            members = [ranks[number] for number in group]
            lacking = [rank for rank in members if rank not in held]
            if len(lacking) == len(members):
                found, wanted = f"part {_text(cell)} on none of {_ranks(lacking)}", "a rank that holds each part"
                problems.append(Problem(f"{self.folder.path}, {name}", found, wanted, "Copy the files again"))
                continue
            wanted = f"it, as on {_ranks([rank for rank in members if rank in held])}"
            said = {rank: self.folder.ranks[rank].metadata.get("remove_redundancy", "").lower() for rank in lacking}
            if is_single and not all(said.values()):
                self.single[name] = None
            problems += [
                Problem(self._where(name, rank), "not in the file", wanted, "Copy the file again")
                for rank in lacking
                if said[rank] != "true" and not (is_single and not said[rank])
            ]
        return problems

    def _add(self, name: str, whole: LazyTensor, parts: tuple[int, ...], ranks: Sequence[int]) -> None:
        known = self.tensors.get(name)
        if known is None:
            self.tensors[name], self.parts[name] = whole, parts
        elif (known.shape, known.dtype) != (whole.shape, whole.dtype):
            found = f"{_text(whole.shape)} of {whole.dtype} in the stage of rank {ranks[0]}"
            wanted = f"{_text(known.shape)} of {known.dtype}, as in a stage before"
            self.problems.append(Problem(f"{self.folder.path}, {name}", found, wanted))
        else:
            self._add_replica(name, known, whole, "a stage before", f"the stage of rank {ranks[0]}")

    def _add_replica(self, name: str, kept: LazyTensor, other: LazyTensor, kept_from: str, other_from: str) -> None:
        self.replicas.append(Replica(name, kept, other, kept_from, other_from))

    def _may_be_unlisted(self, name: str, ranks: Sequence[int]) -> bool:
        if is_training_scalar(name) or any(fnmatchcase(name, pattern) for pattern in self.replicated):
            return True
        return all(tensor.size == 1 for _, tensor in self._held(name, ranks))

    def _keep_unlisted(self, name: str, ranks: Sequence[int]) -> None:
        for rank, tensor in self._held(name, ranks):
            first = self.unlisted.setdefault(name, rank)
            if first == rank:
                self._add(name, tensor, (1,) * len(tensor.shape), ranks)
                continue
            known = self.tensors[name]
            if (known.shape, known.dtype) != (tensor.shape, tensor.dtype):
                found, wanted = f"{_text(tensor.shape)} of {tensor.dtype}", f"{_text(known.shape)} of {known.dtype}"
                self.problems.append(Problem(self._where(name, rank), found, f"{wanted}, as on rank {first}"))
            else:
                self._add_replica(name, known, tensor, f"rank {first}", f"rank {rank}")

    def _refuse_unlisted(self, names: list[str]) -> None:
        listed = ", ".join(names[:_MAX_NAMES]) + (
            f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
        )
        self.problems.append(
            Problem(
                str(self.strategy.path),
                f"no layout of {listed}, which the files hold",
                "a strategy of all parameters",
                "Whether the ranks hold slices or copies of them is unknown: save the strategy again with "
                "parallel.strategy_ckpt_config.only_trainable_params: False. If every rank holds all of them, say so "
                "with --replicated PATTERN",
            )
        )


def _whole_shape(slice_shape: tuple[int, ...], cut: Cut, layout: Layout) -> tuple[int, ...]:
    shape = tuple(size * count for size, count in zip(slice_shape, cut.parts, strict=True))
    if layout.split_shape and shape and cut.parts[0] > 1:
        return (sum(layout.split_shape), *shape[1:])
    return shape


def _usual(held: Mapping[int, LazyTensor]) -> int:
    """The first rank whose tensor is of the shape and type that most have: rather the many than the first are right."""
    usual, _ = Counter((tensor.shape, tensor.dtype) for tensor in held.values()).most_common(1)[0]
    return next(rank for rank, tensor in held.items() if (tensor.shape, tensor.dtype) == usual)


def _text(shape: Sequence[int]) -> str:
    return f"({', '.join(map(str, shape))})"


def _ranks(numbers: Sequence[int]) -> str:
    listed = ", ".join(map(str, numbers[:_MAX_NAMES])) + (", ..." if len(numbers) > _MAX_NAMES else "")
    return f"rank {listed}" if len(numbers) == 1 else f"ranks {listed}"
