"""Random networks, small, with the names of MindFormers, of Hugging Face, or none in particular."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

import ml_dtypes
import numpy as np
from merge_cases import HUGGING_FACE_PARTS, NUMPY, hugging_face_name

from chains.oracle import rounded

MINDFORMERS, HUGGING_FACE, PLAIN = "mindformers", "hf", "plain"
HEAD = "lm_head.weight"
EMBEDDINGS = {MINDFORMERS: "model.tok_embeddings.embedding_weight", HUGGING_FACE: "model.embed_tokens.weight"}

FP8 = (ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2)

# What could be tripped over: a scalar, a name as in a merged strategy, one beyond ASCII, one with a space.
_ODD: Mapping[str, tuple[int, ...]] = {"logit_scale": (), "0-gate.gamma": (8,), "größe.beta": (4,), "a b.gamma": (6,)}


@dataclass(frozen=True)
class Network:
    """What a network is made of.

    Attributes:
        style: Whose names it has.
        tensors: Its parameters.
        layers: The weights of its linear layers.
        experts: Stacks of experts' weights, (experts, in, out).
    """

    style: str
    tensors: Mapping[str, np.ndarray]
    layers: tuple[str, ...]
    experts: tuple[str, ...]


def random_values(rng: Random, shape: tuple[int, ...], dtype: str, size: float = 0.1) -> np.ndarray:
    """Normal values, among them now and then zeros of both signs and subnormal ones."""
    generator = np.random.default_rng(rng.getrandbits(64))
    values = generator.normal(0, size, shape)
    if rng.random() < 0.3:
        values = np.where(generator.random(shape) < 0.05, generator.choice([0.0, -0.0, 1e-7, -6e-8, 1e-40]), values)
    return rounded(values, dtype)


def random_network(rng: Random) -> Network:
    """A network of one to three layers."""
    style = rng.choice([MINDFORMERS, MINDFORMERS, HUGGING_FACE, PLAIN])
    dtype = rng.choice(["bf16", "bf16", "fp16", "fp32", "fp64"])
    shapes, layers, experts = (_plain if style == PLAIN else _llama)(rng)
    norms = rng.choice([dtype, "fp32"])
    tensors = {name: random_values(rng, shape, norms if len(shape) == 1 else dtype) for name, shape in shapes.items()}
    if rng.random() < 0.3:
        tensors["model.positions" if style != PLAIN else "positions"] = np.arange(12)
        tensors["mask"] = np.array([True, False, True, True])
        tensors["codes"] = np.arange(32, dtype=np.int8).reshape(8, 4)
    if rng.random() < 0.3:
        tensors |= {name: random_values(rng, shape, norms) for name, shape in _ODD.items()}
    if rng.random() < 0.3:
        tensors |= _quantised(rng, "blocks.0" if style == PLAIN else "model.layers.0")
    if style == HUGGING_FACE:
        tensors = {hugging_face_name(name): array for name, array in tensors.items()}
        layers = [hugging_face_name(name) for name in layers]
    return Network(style, tensors, tuple(layers), tuple(experts))


def _quantised(rng: Random, block: str) -> dict[str, np.ndarray]:
    """A weight of a layer in FP8, and all that a byte can be in it; neither is computed with."""
    dtype = rng.choice(FP8)
    weight = random_values(rng, (8, 8), "fp32").astype(dtype)
    return {f"{block}.router.weight": weight, "fp8_codes": np.arange(256, dtype=np.uint8).view(dtype)}


def translated(name: str, style: str) -> str:
    """The name of a LLaMA's parameter in another library."""
    if style == HUGGING_FACE:
        return hugging_face_name(name)
    for part, other in HUGGING_FACE_PARTS.items():
        name = name.replace(other, part) if other != "model.norm" else name.replace("model.norm.", "model.norm_out.")
    return name


def dtypes() -> tuple[str, ...]:
    """What `--dtype` may be."""
    return tuple(name for name in NUMPY if name != "fp64")


def _llama(rng: Random) -> tuple[dict[str, tuple[int, ...]], list[str], list[str]]:
    hidden, inner, vocabulary = (rng.choice([8, 12, 16, 24, 32]) for _ in range(3))
    keys = rng.choice([hidden, 8])
    shapes: dict[str, tuple[int, ...]] = {EMBEDDINGS[MINDFORMERS]: (vocabulary, hidden)}
    layers, experts = [], []
    biased, has_experts = rng.random() < 0.3, rng.random() < 0.2
    for layer in range(rng.randint(1, 3)):
        cells = {"attention.wq": hidden, "attention.wk": keys, "attention.wv": keys}
        own = {f"{cell}.weight": (rows, hidden) for cell, rows in cells.items()}
        own |= {"attention.wo.weight": (hidden, hidden), "feed_forward.w1.weight": (inner, hidden)}
        own |= {"feed_forward.w2.weight": (hidden, inner), "feed_forward.w3.weight": (inner, hidden)}
        layers += [f"model.layers.{layer}.{name}" for name in own]
        own |= {f"{cell}.bias": (rows,) for cell, rows in cells.items()} if biased else {}
        own |= {"attention_norm.weight": (hidden,), "ffn_norm.weight": (hidden,)}
        if has_experts:
            own["mlp.experts.weight1"] = (rng.choice([2, 4]), hidden, inner)
            experts.append(f"model.layers.{layer}.mlp.experts.weight1")
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in own.items()}
    shapes["model.norm_out.weight"] = (hidden,)
    if rng.random() < 0.6:  # else it is tied to the embedding
        shapes[HEAD] = (vocabulary, hidden)
    return shapes, layers, experts


def _plain(rng: Random) -> tuple[dict[str, tuple[int, ...]], list[str], list[str]]:
    width, inner = rng.choice([8, 12, 16]), rng.choice([8, 20, 24])
    shapes: dict[str, tuple[int, ...]] = {}
    cells = {"dense": (width, width), "mlp.up": (inner, width), "mlp.down": (width, inner)}
    for block in range(rng.randint(1, 3)):
        for cell, (out, into) in cells.items():
            shapes[f"blocks.{block}.{cell}.weight"] = (out, into)
            shapes[f"blocks.{block}.{cell}.bias"] = (out,)
    layers = [name for name in shapes if name.endswith("weight")]
    shapes |= {"blocks.0.norm.gamma": (width,), "blocks.0.norm.beta": (width,)}
    return shapes, layers, []
