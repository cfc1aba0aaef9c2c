"""Which tensor of a merged checkpoint must be what: every key of all inputs is accounted for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ckpt_tools.merging.fold_plan import Fold, FoldPlan
from ckpt_tools.renaming import rename_tensors
from ckpt_tools.reports import Offender
from ckpt_tools.tensors.dtypes import DType
from ckpt_tools.tensors.lazy import LazyTensor
from surgery.errors import MismatchError
from surgery.naming import Role, classify
from surgery.near import ENOUGH_PROBLEMS, near_names

__all__ = ["Expected", "expect", "find_names", "match"]


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that must be in a merged checkpoint.

    Attributes:
        name: Its name there.
        base_name: Its name in the base.
        base: The base's tensor.
        fold: What happens to it; None where nothing does.
    """

    name: str
    base_name: str
    base: LazyTensor
    fold: Fold | None = None


def expect(weights: Mapping[str, LazyTensor], folds: FoldPlan) -> list[Expected]:
    """What a merge must give, under the base's names."""
    named = {**{name: name for name in weights}, **folds.untied}
    return [Expected(name, tied, weights[tied], folds.folds.get(name)) for name, tied in named.items()]


def find_names(expected: Sequence[Expected], found: Mapping[str, LazyTensor], names: str) -> tuple[str, list[Expected]]:
    """Give what is expected the names of a merged checkpoint.

    Args:
        expected: Under the base's names.
        found: The merged checkpoint's tensors.
        names: `auto` for those of `keep`, `hf` and `mindformers` that most of its tensors have; or one of these, or
            a JSON file of old and new names.

    Returns:
        Which names these are; what is expected, under them.
    """
    best: tuple[int, str, list[Expected]] | None = None
    for choice in ("keep", "hf", "mindformers") if names == "auto" else (names,):
        try:
            renamed, _ = rename_tensors([(one.name, one.base) for one in expected], choice)
        except MismatchError:
            if names != "auto":
                raise
            continue
        pairs = zip(renamed, expected, strict=True)
        named = [Expected(name, one.base_name, one.base, one.fold) for (name, _), one in pairs]
        count = sum(one.name in found for one in named)
        if best is None or count > best[0]:
            best = count, choice, named
    assert best is not None
    return best[1], best[2]


def match(
    expected: Sequence[Expected],
    found: Mapping[str, LazyTensor],
    base: Mapping[str, LazyTensor],
    *,
    dtype: DType | None,
    allow_missing: Sequence[str] = (),
) -> tuple[list[Expected], list[tuple[str, LazyTensor]], list[Offender]]:
    """Put what is expected beside what was found.

    Args:
        expected: Under the merged checkpoint's names.
        found: The merged checkpoint's tensors.
        base: All tensors of the base, training states too.
        dtype: The type that all floating-point tensors must have; None for the base's, or the one that all have.
        allow_missing: Patterns of names that may be missing.

    Returns:
        What can be compared; training states, which must be the base's own; what does not fit.
    """
    offenders: list[Offender] = []
    names = {one.name for one in expected}
    unexpected = [name for name in found if name not in names]
    for one in expected:
        if one.name not in found and not any(fnmatchcase(one.name, pattern) for pattern in allow_missing):
            near = near_names(one.name, unexpected) if len(offenders) < ENOUGH_PROBLEMS else []
            remedy = f"Near names: {', '.join(near)}" if near else ""
            offenders.append(Offender(one.name, "no such tensor", f"it, of shape {one.base.shape}", remedy))
    states = []
    known = frozenset(found)
    for name in unexpected:
        tensor = found[name]
        if name in base and classify(name, known).role in (Role.OPTIMIZER, Role.SCALAR):
            states.append((name, tensor))
            continue
        kind = classify(name, known).role
        what = "a tensor of no input" if kind is Role.WEIGHT else f"{kind.value}, which is no weight of a merged model"
        offenders.append(Offender(name, what, "nothing of that name", ""))
    present = [one for one in expected if one.name in found]
    wanted = _wanted_type(present, found, dtype)
    comparable = []
    for one in present:
        tensor = found[one.name]
        target = one.base.dtype if wanted is None or not one.base.dtype.is_float else wanted
        if tensor.shape != one.base.shape:
            offenders.append(Offender(one.name, f"shape {tensor.shape}", f"{one.base.shape}", ""))
        elif tensor.dtype != target:
            offenders.append(Offender(one.name, f"elements of type {tensor.dtype}", f"type {target}", ""))
        else:
            comparable.append(one)
    return comparable, states, offenders


def _wanted_type(present: Sequence[Expected], found: Mapping[str, LazyTensor], dtype: DType | None) -> DType | None:
    """The type that --dtype must have given; None where every tensor keeps the base's."""
    if dtype is not None:
        return dtype
    floats = [(one.base.dtype, found[one.name].dtype) for one in present if one.base.dtype.is_float]
    others = Counter(actual for before, actual in floats if actual != before and actual.is_float)
    if not others:
        return None
    other, _ = others.most_common(1)[0]
    as_cast = sum(actual == other for _, actual in floats)
    return other if as_cast > sum(before == actual for before, actual in floats) else None
