"""What an inspection of a folder of adapters found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AdapterSimilarity", "ServedAdapter"]


@dataclass(frozen=True, slots=True)
class ServedAdapter:
    """One adapter of a folder that serves several.

    Attributes:
        name: Its folder's name, by which it is asked for.
        method: `LoRA`, `DoRA`, or what else its parameters show; empty where it cannot be read.
        families: How its parameters are spelled.
        layers: How many layers it changes.
        targets: The last components of their names.
        ranks: Its ranks, each once.
        scalings: The factors in front of B @ A, each once; empty where alpha is not known.
        elements: How many numbers its matrices have.
        nbytes: Bytes of their contents.
        norm: The Frobenius norm of all that it adds to the base; None where that is not known.
        saved: How many tensors it replaces as a whole.
        base: What its configuration calls the base.
        base_fingerprint: That of the base's weights behind its matrices, where it is known.
        config: The file that the scale is from.
        names: What was done to its names to compare it with the first adapter.
        problems: What is wrong with it, a sentence each.
    """

    name: str
    method: str = ""
    families: tuple[str, ...] = ()
    layers: int = 0
    targets: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    scalings: tuple[float, ...] = ()
    elements: int = 0
    nbytes: int = 0
    norm: float | None = None
    saved: int = 0
    base: str = ""
    base_fingerprint: str = ""
    config: str = ""
    names: str = ""
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterSimilarity:
    """How alike the updates of two adapters are.

    Attributes:
        first: The name of one.
        other: The name of the other.
        common_layers: How many layers both change.
        cosine: The cosine of the angle between all that they add to the base: 1 where one is a multiple of the other,
            0 where they have nothing to do with each other, -1 where one takes back the other; layers that one of them
            does not change count as zeros. None where one adds nothing.
        closest_layer: The common layer whose updates have the largest cosine, by its magnitude; empty where there is
            none.
        closest_cosine: That cosine.
    """

    first: str
    other: str
    common_layers: int
    cosine: float | None
    closest_layer: str = ""
    closest_cosine: float | None = None
