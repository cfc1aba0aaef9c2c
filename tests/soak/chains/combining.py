"""pet-merge --adapters-only: several adapters to one, or one to another rank; and methods of combination in merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from merge_cases import hugging_face_name

from chains.adapters import (
    EMBEDDING,
    EXPERTS,
    FOUND,
    LINEAR,
    Adapter,
    Pair,
    names_for,
    pair_items,
    random_adapter,
    saved_name,
    spelled_as,
    store_adapter,
    with_saved,
)
from chains.forms import (
    FORMS,
    PLAIN_FORMS,
    adapter_place,
    nested,
    new_family,
    new_spelling,
    renamed_pair,
    renamed_weight,
)
from chains.methods import FACTORS, Combination, Product, Update, combined, random_combination
from chains.networks import dtypes
from chains.oracle import Expected, Term, WrongTensorError, cast, compare, fresh, same, unit
from chains.running import MISFIT
from chains.state import Chain, write
from chains.storing import read

SUM = Combination("cat")


def choose_combination(chain: Chain) -> Combination:
    """A method in a merge."""
    return random_combination(chain.rng) if chain.chance(0.45) else SUM


def is_taken(adapters: Sequence[Adapter], how: Combination, *, is_folded: bool = True) -> bool:
    """Whether a method takes the adapters: those on A and B want one rank, and DoRA's magnitudes their own update."""
    if (is_folded or len(adapters) > 1) and has_magnitudes(adapters) and not (is_folded and how.is_sum):
        return False
    weights = {weight for one in adapters for weight in one.pairs}
    ranks = [{one.pairs[weight].rank for one in adapters if weight in one.pairs} for weight in weights]
    return how.of != FACTORS or all(len(of_layer) == 1 for of_layer in ranks)


def has_magnitudes(adapters: Sequence[Adapter]) -> bool:
    """Whether one is DoRA's."""
    return any(pair.magnitudes is not None for one in adapters for pair in one.pairs.values())


def terms_of(weight: str, adapters: Sequence[Adapter], how: Combination) -> list[Term]:
    """What adapters add to a weight."""
    if how.is_sum:
        return [term for adapter in adapters for term in adapter.terms(weight)]
    products = products_of(weight, adapters, how)
    if not products:
        return []
    kind = _first_pair(weight, adapters).kind
    rank = max(product.left.shape[1] for product in products)
    left = np.stack([_wide(product.left, rank) for product in products])
    right = np.stack([_wide(product.right.T, rank).T for product in products])
    off = np.stack([product.off for product in products])
    if kind == EXPERTS:
        return [Term(fresh(left), fresh(right), 1.0, off)]
    if kind == EMBEDDING:
        return [Term(fresh(right[0].T), fresh(left[0].T), 1.0, off[0].T)]
    return [Term(fresh(left[0]), fresh(right[0]), 1.0, off[0])]


def products_of(weight: str, adapters: Sequence[Adapter], how: Combination) -> list[Product]:
    """The combined update of a weight, of experts one of each; none where no adapter changes it."""
    owners = [(number, one) for number, one in enumerate(adapters) if weight in one.pairs]
    if not owners:
        return []
    kind = _first_pair(weight, adapters).kind
    layer = hugging_face_name(weight)
    layer = layer if kind == EXPERTS else layer.rpartition(".")[0]
    matrices = [_matrices(one.pairs[weight]) for _, one in owners]
    usual = max(pair.rank for one in adapters for pair in one.pairs.values())
    products = []
    for number, of_adapters in enumerate(zip(*matrices, strict=True)):
        updates = [
            Update(place, left, right, one.scaling(weight), one.weight)
            for (place, one), (left, right) in zip(owners, of_adapters, strict=True)
        ]
        products.append(combined(updates, how, usual, layer, number))
    return products


def draw_adapters(chain: Chain, *, is_joined: bool = False) -> list[Adapter]:
    """The adapter that waits, or one to three random ones.

    Args:
        chain: Where the chain stands.
        is_joined: Whether they become one adapter, of one spelling, in which not every kind of layer has a name; then
            others may come to the one that waits.
    """
    rng = chain.rng
    shapes = {name: tensor.bits.shape for name, tensor in chain.weights.items()}
    waiting = [] if chain.adapter is None else [chain.adapter]
    count = rng.choices([1, 2, 3], [45, 35, 20])[0]
    if waiting and (not is_joined or has_magnitudes(waiting)):
        return waiting
    # Several say their scale in the same way, as an option is given once for each.
    form = FOUND if waiting else None
    ranks = [pair.rank for one in waiting for pair in one.pairs.values()] or [1, 2, 4, 8]
    # Methods on A and B want one rank.
    rank = rng.choice(ranks) if count > 1 and chain.chance(0.6) else None
    drawn: list[Adapter] = []
    for _ in range(count - len(waiting)):
        drawn.append(
            random_adapter(
                rng,
                chain.network,
                shapes,
                chain.style,
                form=drawn[0].form if drawn else form,
                is_alone=count == 1,
                has_special=not is_joined or count == 1,
                rank=rank,
            )
        )
    drawn = _some_saved(chain, drawn, [*waiting, *drawn])
    if count > 1 or chain.chance(0.2):
        weights = [1.0, 0.3, -0.7, 2.5] if chain.chance(0.7) else [1.0]
        is_fixed = [bool(one.saved) or has_magnitudes([one]) for one in drawn]
        drawn = [
            one if fixed else replace(one, weight=rng.choice(weights))
            for one, fixed in zip(drawn, is_fixed, strict=True)
        ]
    in_ranks = count == 1
    return [
        *waiting,
        *(store_adapter(rng, chain.folder, chain.stem("adapter"), one, in_ranks=in_ranks) for one in drawn),
    ]


def _some_saved(chain: Chain, drawn: list[Adapter], every: list[Adapter]) -> list[Adapter]:
    """Now and then one of them has tensors that were trained whole, which no other one changes."""
    taken = {weight for one in every for weight in (*one.pairs, *one.saved)}
    # Names that were exchanged may have made a bias of integers, which nothing trains.
    floats = {name: one for name, one in chain.weights.items() if one.dtype is not None}
    shapes = {name: one.bits.shape for name, one in floats.items() if name not in taken}
    if not drawn or not chain.chance(0.5):
        return drawn
    number = chain.rng.randrange(len(drawn))
    return [
        with_saved(chain.rng, one, chain.style, shapes) if place == number else one for place, one in enumerate(drawn)
    ]


def adapter_options(adapters: Sequence[Adapter]) -> list[str]:
    """The options that say how adapters are cut, what their scale is and what they weigh."""
    options = []
    for adapter in adapters:
        options += [] if adapter.stored is None else adapter.stored.options("--adapter-strategy")
    options += [word for adapter in adapters for word in adapter.options()]
    if any(adapter.weight != 1 for adapter in adapters):
        options += [word for adapter in adapters for word in ("--weight", repr(adapter.weight))]
    return options


def combine(chain: Chain) -> bool:
    """Adapters become one, which then waits to be merged."""
    if chain.adapter is not None and (chain.is_combined or chain.adapter.kinds != {LINEAR}):
        return False
    adapters = draw_adapters(chain, is_joined=True)
    how = random_combination(chain.rng)
    paths = [one.stored.path for one in adapters if one.stored is not None]
    line = ["--adapters-only", *paths, *adapter_options(adapters), *how.options()]
    if not is_taken(adapters, how, is_folded=False):
        chain.shell.run("pet-merge", *line, "-o", chain.stem("refused"), code=MISFIT)
        return True
    kinds = {kind for one in adapters for kind in one.kinds}
    form = chain.rng.choice(FORMS if kinds == {LINEAR} and not has_magnitudes(adapters) else PLAIN_FORMS)
    form = "keep" if form == "slora" and not _has_one_rank(adapters, how) else form
    dtype = chain.rng.choice(dtypes()) if chain.chance(0.35) else None
    assert adapters[0].stored is not None
    place = adapter_place(chain, form, adapters[0].stored.suffix)
    line += ["--format", form, *(["--dtype", dtype] if dtype else [])]
    write(chain, "pet-merge", line, place, whole=True)
    place = nested(place, form)
    result = _checked(chain, adapters, how, form, dtype, read(chain.folder, place))
    chain.adapter = replace(result, stored=place)
    return True


def _checked(
    chain: Chain,
    adapters: Sequence[Adapter],
    how: Combination,
    form: str,
    dtype: str | None,
    found: dict[str, np.ndarray],
) -> Adapter:
    """Hold an adapter to what it was made of; the adapter."""
    first = adapters[0]
    types = {str(t.dtype) for one in adapters for pair in one.pairs.values() for t in (pair.a, pair.b)}
    own = dtype or (types.pop() if len(types) == 1 else "fp32")
    expected: dict[str, Expected] = {}
    pairs = {}
    for weight in dict.fromkeys(weight for one in adapters for weight in one.pairs):
        pair = renamed_pair(chain, weight, _named_as(first, weight, _first_pair(weight, adapters)), form)
        a, b = found.get(pair.a_name), found.get(pair.b_name)
        if a is None or b is None:
            raise WrongTensorError(f"expected {pair.a_name} and {pair.b_name}, found {sorted(found)}")
        products = products_of(weight, adapters, how)
        _check_pair(weight, replace(pair, a=fresh(a), b=fresh(b)), products, own)
        magnitudes = None if pair.magnitudes is None else fresh(cast(pair.magnitudes, dtype).near)
        pairs[weight] = replace(pair, a=fresh(a), b=fresh(b), magnitudes=magnitudes, scaling=1.0)
        expected |= {name: same(tensor) for name, tensor in pair_items(pairs[weight])}
    saved: dict[str, str] = {}
    for one in adapters:
        for weight, (name, tensor) in one.saved.items():
            is_alike = (one.family, one.spelled) == (first.family, first.spelled)
            own = name if is_alike else saved_name(spelled_as(weight, first.spelled), first.family)
            saved[weight] = renamed_weight(chain, weight, own, form, first.family)
            expected[saved[weight]] = cast(tensor, dtype)
    model = compare(found, expected, chain.figures)
    result = Adapter(
        new_family(form, first.family), pairs, 1.0, form=FOUND, spelled=new_spelling(chain, form, first.spelled)
    )
    return replace(result, saved={weight: (name, model[name]) for weight, name in saved.items()})


def _has_one_rank(adapters: Sequence[Adapter], how: Combination) -> bool:
    """Whether all layers of the result have one rank, and nothing but A and B is in it."""
    weights = {weight for one in adapters for weight in one.pairs}
    ranks = {rank for weight in weights for product in products_of(weight, adapters, how) for rank in product.ranks}
    return len(ranks) == 1 and not any(one.saved for one in adapters)


def _first_pair(weight: str, adapters: Sequence[Adapter]) -> Pair:
    return next(one.pairs[weight] for one in adapters if weight in one.pairs)


def _named_as(first: Adapter, weight: str, pair: Pair) -> Pair:
    """A pair under the names that the first adapter's spelling has for it."""
    if weight in first.pairs:
        return first.pairs[weight]
    a_name, b_name = names_for(spelled_as(weight, first.spelled), first.family)
    return replace(pair, a_name=a_name, b_name=b_name)


def _matrices(pair: Pair) -> list[tuple[np.ndarray, np.ndarray]]:
    """Left and right factors, as float32 has them, in float64; of experts one of each expert."""
    a, b = (one.bits.astype(np.float32).astype(np.float64) for one in (pair.a, pair.b))
    return list(zip(a, b, strict=True)) if pair.kind == EXPERTS else [(b, a)]


def _wide(values: np.ndarray, rank: int) -> np.ndarray:
    return np.pad(values, [(0, 0), (0, rank - values.shape[1])])


def _check_pair(weight: str, pair: Pair, products: Sequence[Product], dtype: str) -> None:
    """A and B of the result: their type, the rank, and what they multiply to; of methods on A and B each of them."""
    if (pair.a.dtype, pair.b.dtype) != (dtype, dtype):
        raise WrongTensorError(f"{weight}: expected {dtype}, found {pair.a.dtype} and {pair.b.dtype}")
    least, most = (max(product.ranks[end] for product in products) for end in (0, 1))
    if not least <= pair.rank <= most:
        raise WrongTensorError(f"{weight}: expected a rank of {least} to {most}, found {pair.rank}")
    for (left, right), product in zip(_matrices(pair), products, strict=True):
        if product.off_left is not None and product.off_right is not None:
            for what, one, near, off in (
                ("A", right, product.right, product.off_right),
                ("B", left, product.left, product.off_left),
            ):
                _refuse_far(f"{weight}, {what}", one, near, off + 0.5 * unit(np.abs(near) + off, dtype))
        off_left, off_right = (0.5 * unit(np.abs(one), dtype) for one in (left, right))
        lost = off_left @ np.abs(right) + np.abs(left) @ off_right + off_left @ off_right
        near = product.left @ product.right
        _refuse_far(f"{weight}, B @ A", left @ right, near, product.off + 1.01 * lost + 2.0**-44 * np.abs(near))


def _refuse_far(what: str, found: np.ndarray, near: np.ndarray, allowed: np.ndarray) -> None:
    if found.shape != near.shape:
        raise WrongTensorError(f"{what}: expected {near.shape}, found {found.shape}")
    wrong = ~(np.abs(found - near) <= allowed)
    if wrong.any():
        place = tuple(int(index) for index in np.argwhere(wrong)[0])
        told = f"expected {near[place]!r} within {allowed[place]:.3g}, found {found[place]!r}"
        raise WrongTensorError(f"{what}{list(place)}: {told}; {int(wrong.sum())} of {wrong.size} elements are wrong")
