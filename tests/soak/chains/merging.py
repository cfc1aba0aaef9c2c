"""pet-merge, and what goes with it: the proof of pet-verify, and the way back by an un-merge patch."""

from __future__ import annotations

from chains.adapters import Adapter
from chains.combining import SUM, adapter_options, choose_combination, draw_adapters, is_taken, terms_of
from chains.methods import Combination
from chains.networks import EMBEDDINGS, HEAD
from chains.oracle import Expected, Model, bits_of, cast, folded, same
from chains.running import DIFFERENT, MISFIT, USAGE
from chains.splitting import extract
from chains.state import (
    Chain,
    check_config,
    choose_dtype,
    choose_names,
    choose_target,
    prove_manifest,
    style_after,
    write,
)
from chains.storing import Stored


def merge(chain: Chain) -> bool:
    """Base and adapters become one checkpoint; the chain goes on with that."""
    adapters = draw_adapters(chain)
    weights = chain.weights
    dtype = choose_dtype(chain)
    names, renamed = choose_names(chain)
    inputs = merge_inputs(chain, adapters)
    how = choose_combination(chain)
    if not is_taken(adapters, how):
        chain.shell.run("pet-merge", *inputs, *how.options(), "-o", chain.stem("refused"), code=MISFIT)
        how = SUM
    inputs += how.options()
    expected = {name: _merged(name, weights, adapters, how, dtype) for name in weights}
    expected |= _untied(chain, weights, adapters, how, dtype)
    renamed = {**renamed, HEAD: HEAD}
    expected = {renamed[name]: one for name, one in expected.items()}
    place, target = choose_target(chain, "merged", expected)
    options = ["--dtype", dtype] if dtype else []
    options += ["--names", names] if names else []
    options += ["--verify"] if chain.chance(0.2) else []
    patch = f"{place.path.split('.')[0]}-patch" if not chain.is_combined and chain.chance(0.25) else ""
    others = ("--unmerge-patch", patch) if patch else ()
    if patch and not how.is_sum:
        chain.shell.run("pet-merge", *inputs, *target, *options, *others, "-o", place.path, code=USAGE)
        patch, others = "", ()
    outputs = [patch] if patch else []
    write(chain, "pet-merge", [*inputs, *target, *options, *others], place, *outputs, whole=not how.is_sum)
    model = chain.check(place, expected)
    check_config(chain, place)
    if chain.chance(0.4):
        proof = [*inputs[: 1 + _separate(adapters)], place.path, *inputs[1 + _separate(adapters) :]]
        proof += place.options("--merged-strategy")
        proof += ["--dtype", dtype] if dtype else []
        proof += ["--names", names] if names else []
        chain.shell.run("pet-verify", *proof, *chain.rng.choice([["--strict"], []]))
    if chain.chance(0.2):
        prove_manifest(chain, place)
    if patch:
        _undo(chain, adapters, place, patch, weights)
    base, is_alone = chain.stored, not chain.is_combined
    chain.model, chain.stored, chain.style = model, place, style_after(chain, names)
    chain.adapter, chain.is_moved = None, False
    is_alike = is_alone and dtype is names is None and model.keys() == weights.keys()
    if is_alike and chain.chance(0.3):
        extract(chain, weights, base)
    if is_alike and chain.chance(0.2):
        differs = any((bits_of(tensor.bits) != bits_of(weights[name].bits)).any() for name, tensor in model.items())
        compared = [base.path, place.path, *base.options(), *place.options("--other-strategy")]
        chain.shell.run("pet-inspect", *compared, "--exit-code", code=DIFFERENT if differs else 0)
    return True


def merge_inputs(chain: Chain, adapters: list[Adapter]) -> list[str]:
    """BASE and ADAPTERs, then the options that say how they are cut and what the scale is."""
    separate = [one.stored for one in adapters if one.stored is not None]
    options = [*chain.stored.options(), *adapter_options(adapters)]
    options += ["--allow-other-base"] if chain.is_moved else []
    return [chain.stored.path, *(stored.path for stored in separate), *options]


def _separate(adapters: list[Adapter]) -> int:
    return sum(one.stored is not None for one in adapters)


def _merged(name: str, weights: Model, adapters: list[Adapter], how: Combination, dtype: str | None) -> Expected:
    saved = [adapter.saved[name][1] for adapter in adapters if name in adapter.saved]
    if saved:
        return cast(saved[0], dtype or weights[name].dtype)
    terms = terms_of(name, adapters, how)
    magnitudes = next((found for adapter in adapters if (found := adapter.magnitudes(name)) is not None), None)
    return folded(weights[name], terms, dtype, magnitudes) if terms else cast(weights[name], dtype)


def _untied(
    chain: Chain, weights: Model, adapters: list[Adapter], how: Combination, dtype: str | None
) -> dict[str, Expected]:
    """The output head, where the base has it only as its embedding, and an adapter changes one of the two."""
    embedding = weights.get(EMBEDDINGS.get(chain.style, ""))
    if embedding is None or HEAD in weights:
        return {}
    terms = terms_of(HEAD, adapters, how)
    if terms:
        return {HEAD: folded(embedding, terms, dtype)}
    # Without a `config.json` nobody knows that the network has a head.
    is_known = (chain.folder / chain.stored.path / "config.json").exists()
    is_changed = any(adapter.terms(EMBEDDINGS[chain.style]) for adapter in adapters)
    return {HEAD: cast(embedding, dtype)} if is_known and is_changed else {}


def _undo(chain: Chain, adapters: list[Adapter], merged: Stored, patch: str, weights: Model) -> None:
    """The base's bits come back."""
    expected = {name: same(tensor) for name, tensor in weights.items()}
    place, target = choose_target(chain, "restored", expected)
    separate = [one.stored for one in adapters if one.stored is not None]
    chain.rng.shuffle(separate)
    options = [*merged.options(), *(part for one in separate for part in one.options("--adapter-strategy"))]
    write(
        chain,
        "pet-merge",
        ["--unmerge", patch, merged.path, *(one.path for one in separate), *options, *target],
        place,
        whole=True,
    )
    chain.check(place, expected)
