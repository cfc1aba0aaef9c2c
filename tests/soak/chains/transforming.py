"""pet-transform: not a bit changes but where the type does."""

from __future__ import annotations

from chains.oracle import cast
from chains.state import Chain, choose_dtype, choose_names, choose_target, prove_manifest, style_after, write


def transform(chain: Chain) -> bool:
    """The checkpoint in another format and layout, of another type, under other names."""
    has_training = len(chain.weights) < len(chain.model)
    names, renamed = (None, {}) if has_training or chain.adapter is not None else choose_names(chain)
    dtype = choose_dtype(chain) if chain.adapter is None else None
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
    return True
