"""A folder of adapters, as SLoRA and vLLM serve them, in one go: what each is, and how alike they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from ckpt_tools.combining import Part
from ckpt_tools.combining.layers import layer_matrices
from ckpt_tools.distributed import open_whole
from ckpt_tools.joining.renaming import layer_under, names_like
from ckpt_tools.merging.adapters import Adapter, ScaleOption, load_adapter, scale_of, scale_origin
from ckpt_tools.merging.refusals import unfoldable
from ckpt_tools.progress import Progress
from ckpt_tools.reports import AdapterSimilarity, ServedAdapter
from surgery.documents import read_json
from surgery.errors import MismatchError, PetSurgeryError
from surgery.grouping import LoraPair
from surgery.lowrank import inner_products

__all__ = ["Served", "inspect_served", "is_adapter_folder", "served_folders"]

_TABLE = "lora_adapter.json"
_CONFIGS = ("adapter_config.json", "mindformers_adapter_config.json")
_WEIGHTS = (".ckpt", ".safetensors")


@dataclass(frozen=True, slots=True)
class Served:
    """What is in a folder of adapters.

    Attributes:
        adapters: The adapters, in the order of their names.
        similarities: All pairs of those that are sound.
        warnings: What the user ought to know, a sentence each.
    """

    adapters: tuple[ServedAdapter, ...]
    similarities: tuple[AdapterSimilarity, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Update:
    """A layer of one sound adapter, under the first one's names."""

    layer: str
    pair: LoraPair
    part: Part


def is_adapter_folder(path: Path) -> bool:
    """Whether a folder holds folders of adapters, and no weights itself."""
    return path.is_dir() and bool(served_folders(path))


def served_folders(path: Path) -> list[Path]:
    """The folders of adapters in a folder, in the order of their names; none where it holds weights itself."""
    try:
        entries = sorted(path.iterdir())
    except OSError:
        return []
    if any(entry.suffix in _WEIGHTS for entry in entries):
        return []
    named = set(_table(path)) if (path / _TABLE).is_file() else set()
    return [entry for entry in entries if entry.is_dir() and (entry.name in named or _has_config(entry))]


def _has_config(folder: Path) -> bool:
    return any((folder / name).is_file() for name in _CONFIGS)


def _table(path: Path) -> dict[str, object]:
    """SLoRA's table of names and places; the places are those of another machine, and only the names are used."""
    return dict(read_json(path / _TABLE))


def inspect_served(
    path: Path, config: Path | None, selects: Callable[[str], bool], threads: int, progress: Progress
) -> Served:
    """Read all adapters of a folder, and compare their updates.

    What is wrong with one of them is said of it and keeps none of the others from being read.

    Args:
        path: The folder.
        config: Where alpha is read from; None for what lies beside each adapter.
        selects: Which layers, by the names of their weights, are looked at.
        threads: Of the products.
        progress: Told how far the comparison is, in bytes of matrices.

    Raises:
        CorruptInputError: SLoRA's table is no JSON object.
    """
    folders = served_folders(path)
    warnings = []
    if (path / _TABLE).is_file():
        named = _table(path)
        missing = sorted(set(named) - {folder.name for folder in folders})
        warnings += [f"{path / _TABLE} names {name}, which is no folder beside it" for name in missing]
        unnamed = [folder.name for folder in folders if folder.name not in named]
        warnings += [f"{name} is not in {path / _TABLE}, so SLoRA will not serve it" for name in unnamed]
    described: list[ServedAdapter] = []
    sound: list[tuple[int, Adapter]] = []
    for number, folder in enumerate(folders):
        facts, adapter = _describe(folder, config)
        described.append(facts)
        if adapter is not None:
            sound.append((number, adapter))
    updates: dict[int, list[_Update]] = {}
    for number, adapter in sound:
        described[number], updates[number] = _renamed(described[number], number, sound[0][1], adapter, selects)
    progress.start(sum(_nbytes(update) for found in updates.values() for update in found), "comparing adapters")
    try:
        with threadpool_limits(threads, "blas"), np.errstate(over="ignore", invalid="ignore"):
            norms, similarities = _compare([one.name for one in described], updates, progress)
    finally:
        progress.finish()
    warnings += [
        f"{described[number].name}: values beyond the range of float32, so there is neither a norm nor a cosine"
        for number, found in updates.items()
        if found and number not in norms
    ]
    adapters = tuple(replace(one, norm=norms.get(number)) for number, one in enumerate(described))
    bases = {one.base for one in adapters if one.base}
    if len(bases) > 1:
        warnings.append(f"the adapters' configurations name several bases: {', '.join(sorted(bases))}")
    return Served(adapters, similarities, tuple(warnings))


def _describe(folder: Path, config: Path | None) -> tuple[ServedAdapter, Adapter | None]:
    """What an adapter is, and the adapter itself where its updates can be compared."""
    facts = ServedAdapter(folder.name)
    try:
        adapter = load_adapter(open_whole(folder, None).base, ScaleOption(config=config), is_combined=False)
    except PetSurgeryError as error:
        return _with_problems(facts, error), None
    group = adapter.group
    tensors = [adapter.tensors[key] for pair in group.pairs for key in (pair.a, pair.b)]
    dora = any(pair.magnitude is not None for pair in group.pairs)
    facts = replace(
        facts,
        method="DoRA" if dora else "LoRA" if group.pairs else group.methods[0].method if group.methods else "",
        families=adapter.families,
        layers=len(group.pairs),
        targets=tuple(dict.fromkeys(pair.layer.rpartition(".")[2] for pair in group.pairs)),
        ranks=tuple(sorted({pair.rank for pair in group.pairs})),
        elements=sum(tensor.size for tensor in tensors),
        nbytes=sum(tensor.nbytes for tensor in tensors),
        saved=len(group.weights),
        base=adapter.config.base_model_name if adapter.config is not None else "",
        base_fingerprint=adapter.base_fingerprint,
        config=scale_origin(adapter),
    )
    problems = [str(problem) for problem in group.problems]
    if group.methods:
        problems.append(f"{group.methods[0].name}: {unfoldable(group.methods[0])}")
    elif not group.pairs:
        problems.append("no LoRA matrices")
    try:
        scalings = {scale_of(adapter, pair).scaling for pair in group.pairs}
        facts = replace(facts, scalings=tuple(sorted(scalings)))
    except MismatchError as error:
        problems += [str(problem) for problem in error.problems]
    facts = replace(facts, problems=tuple(problems))
    return facts, None if problems else adapter


def _with_problems(facts: ServedAdapter, error: PetSurgeryError) -> ServedAdapter:
    return replace(facts, problems=(*facts.problems, *map(str, error.problems)))


def _renamed(
    facts: ServedAdapter, number: int, first: Adapter, adapter: Adapter, selects: Callable[[str], bool]
) -> tuple[ServedAdapter, list[_Update]]:
    """What is said of an adapter, and its updates under the first one's names; none where these fit in several ways."""
    try:
        updates, rule = _updates(number, first, adapter, selects)
    except MismatchError as error:
        return _with_problems(facts, error), []
    return replace(facts, names=rule), updates


def _updates(
    number: int, first: Adapter, adapter: Adapter, selects: Callable[[str], bool]
) -> tuple[list[_Update], str]:
    """All layers of an adapter under the first adapter's names.

    Raises:
        MismatchError: The names fit in several ways.
    """
    rename, rule = (str, "") if adapter is first else names_like(first.group, adapter.group)
    found = []
    for pair in adapter.group.pairs:
        if not selects(rename(pair.bases[0])):
            continue
        tensors = adapter.tensors
        part = Part(number, tensors[pair.a], tensors[pair.b], 1.0, scale_of(adapter, pair).scaling, pair.rank)
        found.append(_Update(layer_under(pair, rename), pair, part))
    return found, rule


def _compare(
    names: Sequence[str], updates: dict[int, list[_Update]], progress: Progress
) -> tuple[dict[int, float], tuple[AdapterSimilarity, ...]]:
    """The norm of each adapter's updates, and the similarity of each pair of adapters; a layer is read at a time.

    Values beyond float32 make norms and cosines that are not finite: there are none of these.
    """
    by_layer: dict[tuple[str, str, tuple[int, ...]], list[_Update]] = {}
    for found in updates.values():
        for update in found:
            by_layer.setdefault((update.layer, update.pair.kind, _shape(update)), []).append(update)
    count = len(names)
    total, common = np.zeros((count, count)), np.zeros((count, count), np.int64)
    closest: dict[tuple[int, int], tuple[float, str]] = {}
    for (layer, kind, _), found in by_layer.items():
        members = [update.part.adapter for update in found]
        products = np.zeros((len(found), len(found)))
        scalings = [update.part.scaling for update in found]
        for matrices in zip(*(layer_matrices(kind, update.part) for update in found), strict=True):
            products += inner_products([left for left, _ in matrices], [right for _, right in matrices], scalings)
        progress.advance(sum(map(_nbytes, found)))
        total[np.ix_(members, members)] += products
        common[np.ix_(members, members)] += 1
        for i, j in combinations(range(len(found)), 2):
            cosine = _cosine(products[i, j], products[i, i], products[j, j])
            pair = members[i], members[j]
            if cosine is not None and abs(cosine) > abs(closest.get(pair, (0.0, ""))[0]):
                closest[pair] = cosine, layer
    compared = sorted(number for number, found in updates.items() if found)
    squares = {number: max(float(total[number, number]), 0.0) for number in compared}
    norms = {number: math.sqrt(square) for number, square in squares.items() if math.isfinite(square)}
    similarities = []
    for i, j in combinations(compared, 2):
        cosine, layer = closest.get((i, j), (None, ""))
        whole = _cosine(total[i, j], total[i, i], total[j, j])
        similarities.append(AdapterSimilarity(names[i], names[j], int(common[i, j]), whole, layer, cosine))
    return norms, tuple(similarities)


def _nbytes(update: _Update) -> int:
    return update.part.a.nbytes + update.part.b.nbytes


def _shape(update: _Update) -> tuple[int, ...]:
    """The shape of the weight: updates of others under the same name are of another base, and share nothing."""
    a, b = update.part.a.shape, update.part.b.shape
    return (a[0], a[1], b[2]) if update.pair.kind == "expert" else (b[0], *a[1:])


def _cosine(product: float, first: float, other: float) -> float | None:
    """The cosine of two updates; None where one is zero, or beyond what can be computed with."""
    squares = first * other
    if not (first > 0 and other > 0 and np.isfinite(product) and np.isfinite(squares)):
        return None
    return float(np.clip(product / np.sqrt(squares), -1.0, 1.0))
