"""pet-transform: not a bit changes but where the type does."""

from __future__ import annotations

from dataclasses import replace

from chains.networks import HUGGING_FACE, MINDFORMERS
from chains.oracle import cast
from chains.state import Chain, choose_dtype, choose_names, choose_target, prove_manifest, style_after, write


def transform(chain: Chain) -> bool:
    """The checkpoint in another format and layout, of another type, under other names."""
    names, renamed = choose_names(chain) if len(chain.weights) == len(chain.model) else (None, {})
    dtype = choose_dtype(chain)
    expected = {renamed.get(name, name): cast(tensor, dtype) for name, tensor in chain.model.items()}
    place, options = choose_target(chain, "transformed", expected)
    options += ["--dtype", dtype] if dtype else []
    options += ["--names", names] if names else []
    options += ["--check-replicas"] if chain.chance(0.2) else []
    options += ["--check-crc"] if chain.chance(0.2) else []
    before = chain.stored
    write(chain, "pet-transform", [before.path, *before.options(), *options], place)
    chain.model = chain.check(place, expected)
    if chain.chance(0.3):
        prove_manifest(chain, place)
    if dtype is None and names is None and chain.chance(0.3):
        compared = [*before.options(), *place.options("--other-strategy")]
        chain.shell.run("pet-inspect", before.path, place.path, *compared, "--exit-code")
    chain.stored, chain.style = place, style_after(chain, names)
    if chain.adapter is not None and chain.adapter.stored is None:
        chain.adapter = chain.adapter.with_tensors(chain.model)
    elif chain.adapter is not None:
        # It knows its base by the values, which the cast changed; names are for the merge to translate.
        chain.is_moved = chain.is_moved or dtype is not None
        pairs = {renamed.get(weight, weight): pair for weight, pair in chain.adapter.pairs.items()}
        # Tensors that a file gave each other's names are found by the names that the adapter has for them.
        is_other = names in (MINDFORMERS, HUGGING_FACE)
        saved = {renamed[weight] if is_other else weight: one for weight, one in chain.adapter.saved.items()}
        chain.adapter = replace(chain.adapter, pairs=pairs, saved=saved)
    return True
