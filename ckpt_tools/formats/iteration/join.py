"""Whole tensors made of chunks: what `metadata.json` says of them, held against what the files have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ckpt_tools.formats.ckpt_values import quote_name
from ckpt_tools.formats.folder import natural_key
from ckpt_tools.formats.iteration.folder import WeightsFileName
from ckpt_tools.formats.iteration.grid import cells_of, part_region, place_chunks
from ckpt_tools.formats.iteration.metadata import Holder, IterationMetadata, TensorMetadata
from ckpt_tools.formats.iteration.model import Chunk, GlobalTensor
from ckpt_tools.formats.iteration.problems import IterationProblems
from ckpt_tools.formats.model import Checkpoint
from ckpt_tools.tensors.lazy import LazyTensor, Region, full_region, region_shape

__all__ = ["ChunkJoiner", "kind_of"]

_MAX_SHOWN = 4


@dataclass(frozen=True, slots=True)
class ChunkJoiner:
    """Makes whole tensors of what `metadata.json` and the files say.

    Attributes:
        metadata: What `metadata.json` says.
        files: The headers of the files that it names, but for those that cannot be read.
        problems: Where what is wrong goes.
    """

    metadata: IterationMetadata
    files: Mapping[str, Checkpoint]
    problems: IterationProblems

    def join(self) -> dict[str, GlobalTensor]:
        """The tensors that are sound, in the order of `metadata.json`."""
        described = self.metadata.tensors
        for name, offset in self.metadata.holders:
            if name not in described or offset not in described[name].chunks:
                self.problems.add(
                    f"{self.metadata.path}, storage_data", _key_text(name, offset), "chunks of state_dict_metadata"
                )
        self._check_ranks()
        joined = ((name, self._tensor(name, entry)) for name, entry in described.items())
        return {name: tensor for name, tensor in joined if tensor is not None}

    def _check_ranks(self) -> None:
        """A file is written by one rank: with another rank it is a wrong file's name, and other slices' values."""
        ranks: dict[str, set[int]] = {}
        for holders in self.metadata.holders.values():
            for holder in holders:
                ranks.setdefault(holder.file, set()).add(holder.rank)
        for file, writers in ranks.items():
            if len(writers) > 1:
                shown = " and ".join(str(rank) for rank in sorted(writers)[:_MAX_SHOWN])
                self.problems.add(
                    f"{self.metadata.path}, storage_data", f"{file} of the ranks {shown}", "a rank a file"
                )

    def _tensor(self, name: str, entry: TensorMetadata) -> GlobalTensor | None:
        where = f"{self.metadata.path}, tensor {quote_name(name)}"
        placed = place_chunks(entry.shape, list(entry.chunks), list(entry.chunks.values()))
        if placed is None:
            self._report_cover(where, entry)
        regions = [None] * len(entry.chunks) if placed is None else placed[0]
        cells: dict[Region, list[Chunk]] = {}
        used: set[str] = set()
        for (offset, shape), region in zip(entry.chunks.items(), regions, strict=True):
            holders = self.metadata.holders.get((name, offset), ())
            if not holders:
                self.problems.add(where, f"no file for its chunk {list(offset)}", "a file in storage_data")
            for holder in sorted(holders, key=lambda holder: (holder.rank, natural_key(holder.file))):
                if holder.file in used:
                    self.problems.add(where, f"{holder.file} for several chunks", "a chunk a file")
                used.add(holder.file)
                tensor = self._stored(where, name, entry, shape, holder)
                if tensor is None or region is None:
                    continue
                self._check_layout(where, entry, region, holder)
                cells.setdefault(region, []).append(Chunk(region, tensor, holder.file, holder.rank))
        kinds = {kind_of(file) for file in used}
        if len(kinds) > 1:
            self.problems.add(where, f"it in {', '.join(sorted(used)[:_MAX_SHOWN])}", "it in files of one kind")
        if placed is None:
            return None
        chunks = tuple(cells[region][0] for region in sorted(cells))
        replicas = [copy for region in sorted(cells) for copy in cells[region][1:]]
        replicas.sort(key=lambda copy: copy.rank)
        return GlobalTensor(name, entry.dtype, entry.shape, placed[1], chunks, tuple(replicas), "".join(kinds))

    def _report_cover(self, where: str, entry: TensorMetadata) -> None:
        chunks = [f"{list(shape)} at {list(offset)}" for offset, shape in list(entry.chunks.items())[:_MAX_SHOWN]]
        more = f" and {len(entry.chunks) - _MAX_SHOWN} more" if len(entry.chunks) > _MAX_SHOWN else ""
        self.problems.add(
            where,
            f"the chunks {', '.join(chunks)}{more}",
            f"chunks that cover {list(entry.shape)} without a gap or an overlap",
            "Were all ranks saved?",
        )

    def _stored(
        self, where: str, name: str, entry: TensorMetadata, shape: tuple[int, ...], holder: Holder
    ) -> LazyTensor | None:
        """What the file holds of the tensor, if that is what it should."""
        dtype = entry.dtype
        if holder.file not in self.files:
            return None  # it cannot be read, which is said already
        tensor = self.files[holder.file].tensors.get(name)
        if tensor is None:
            self.problems.add(where, f"no such tensor in {holder.file}", f"a chunk {dtype} {list(shape)} there")
        elif (tensor.dtype, tensor.shape) != (dtype, shape):
            found = f"{tensor.dtype} {list(tensor.shape)} in {holder.file}"
            # `mindspore.save_checkpoint` gathers slices unless integrated_save is False; metadata.json does not say so.
            found += ", the whole tensor" if tensor.shape == entry.shape else ""
            self.problems.add(where, found, f"{dtype} {list(shape)}, as it says of the chunk")
            return None
        return tensor

    def _check_layout(self, where: str, entry: TensorMetadata, region: Region, holder: Holder) -> None:
        """MindFormers loads by layout and rank, and does not look at the offset: both must mean the same place.

        A tensor that several pipeline stages hold has the layout of one of them.
        """
        cell = cells_of(entry.layout).get(holder.rank) if entry.layout is not None else None
        if cell is None or entry.layout is None:
            return
        by_layout = part_region(entry.shape, entry.layout.parts, cell)
        if by_layout != region and 0 not in region_shape(region):
            place = list(map(list, by_layout)) if by_layout is not None else "no equal part"
            self.problems.add(
                where,
                f"rank {holder.rank}'s chunk at {list(map(list, region))} by its offset, at {place} by its layout",
                "one place",
            )

    def unlisted(self) -> dict[str, tuple[Chunk, ...]]:
        """Tensors of the files that are not in `metadata.json`; a copy of one that is there is a problem."""
        listed = {(holder.file, name) for (name, _), holders in self.metadata.holders.items() for holder in holders}
        ranks = {holder.file: holder.rank for holders in self.metadata.holders.values() for holder in holders}
        unlisted: dict[str, list[Chunk]] = {}
        for file, checkpoint in self.files.items():
            for name, tensor in checkpoint.tensors.items():
                if (file, name) in listed:
                    continue
                if name in self.metadata.tensors:
                    self.problems.add(
                        f"{self.metadata.path}, tensor {quote_name(name)}",
                        f"it in {file}, too",
                        "it in the files of storage_data",
                    )
                chunk = Chunk(full_region(tensor.shape), tensor, file, ranks[file])
                unlisted.setdefault(name, []).append(chunk)
        return {name: tuple(chunks) for name, chunks in unlisted.items()}


def kind_of(file: str) -> str:
    """`MODEL` or `OPTIMIZER`, as the file's name says; empty where it says nothing."""
    parts = WeightsFileName.parse(file)
    return parts.kind if parts else ""


def _key_text(name: str, offset: tuple[int, ...]) -> str:
    return f"a chunk {list(offset)[:_MAX_SHOWN]} of {quote_name(name)}"
