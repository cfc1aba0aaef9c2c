"""What P-Tuning v2 and Prefix-Tuning share: keys and values that are trained and put before those of every attention.

MindFormers encodes both by the same cell: an embedding of the prefix's tokens, and behind it two dense layers with a
tanh between them. Its parameters are float16 whatever the network's are, and have no prefix of the network's name.
"""

from __future__ import annotations

from surgery.methods.base import Initialiser, NetworkShape, NewParameter

__all__ = ["LONG_PREFIX", "long_prefix_warning", "prefix_parameters"]

LONG_PREFIX = 60
_ENCODER_DTYPE = "fp16"


def long_prefix_warning(name: str, length: int) -> tuple[str, ...]:
    """The feature card's advice on the length of a prefix."""
    if length <= LONG_PREFIX:
        return ()
    return (
        f"{name} is {length}: the length of a prefix must suit the size of the data set. With 5,000 samples, one "
        f"longer than {LONG_PREFIX} converges badly and predicts garbage",
    )


def prefix_parameters(
    method: str, length: int, projection: int | None, network: NetworkShape
) -> tuple[NewParameter, ...]:
    """The parameters of a prefix's encoder.

    Args:
        method: What stands behind `mindpet_delta_`.
        length: Tokens of the prefix.
        projection: The width between the two dense layers; None for an encoder without them.
        network: The network that the prefix is for.
    """
    width, stem = network.prefix_width, f"mindpet_delta_{method}"
    # `nn.Dense` draws from HeUniform(sqrt(5)) and its bias from U(-1/sqrt(in), 1/sqrt(in)).
    he_uniform = Initialiser("he_uniform", 5**0.5)
    tokens = NewParameter(f"{stem}_prefix", (length,), "int64", Initialiser("arange"), is_trained=False)
    normal = Initialiser("normal", 0.01)
    embedding = NewParameter(f"{stem}_embedding.embedding_table", (length, width), _ENCODER_DTYPE, normal)
    if projection is None:
        return tokens, embedding
    into, out = f"{stem}_trans.0", f"{stem}_trans.2"
    return (
        tokens,
        embedding,
        NewParameter(f"{into}.weight", (projection, width), _ENCODER_DTYPE, he_uniform),
        NewParameter(f"{into}.bias", (projection,), _ENCODER_DTYPE, Initialiser("uniform", width**-0.5)),
        NewParameter(f"{out}.weight", (width, projection), _ENCODER_DTYPE, he_uniform),
        NewParameter(f"{out}.bias", (width,), _ENCODER_DTYPE, Initialiser("uniform", projection**-0.5)),
    )
