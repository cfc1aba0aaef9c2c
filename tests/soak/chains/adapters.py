"""Random LoRA adapters: in every family of names, with every way to say the scale."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

import numpy as np

from chains.files import write_file
from chains.networks import EMBEDDINGS, HEAD, HUGGING_FACE, MINDFORMERS, PLAIN, Network, random_values, translated
from chains.oracle import Model, Tensor, Term, fresh, stacked
from chains.storing import FILE, FOLDER, RANKS, Stored, store

ENDINGS = {
    "mindpet": ("mindpet_delta_lora_a", "mindpet_delta_lora_b"),
    "mindpet-bare": ("mindpet_delta_lora_A", "mindpet_delta_lora_B"),
    "tk": ("tk_delta_lora_a", "tk_delta_lora_b"),
    "pynative": ("lora_a", "lora_b"),
    "parallel-core": ("lora_A.weight", "lora_B.weight"),
    "peft": ("lora_A.weight", "lora_B.weight"),
}
LINEAR, EMBEDDING, EXPERTS = "linear", "embedding", "experts"
ALPHA, SCALING, YAML, CONFIG, FOUND = "--alpha", "--scaling", "YAML", "adapter_config.json", "beside"


@dataclass(frozen=True)
class Pair:
    """A and B of one weight, and DoRA's magnitudes: their names and what they hold; a scale where it has its own."""

    a_name: str
    b_name: str
    a: Tensor
    b: Tensor
    kind: str = LINEAR
    magnitudes: Tensor | None = None
    scaling: float | None = None

    @property
    def rank(self) -> int:
        """The inner size of the product."""
        return self.a.bits.shape[-1 if self.kind == EXPERTS else 0]

    def term(self, scaling: float) -> Term:
        """What is added to the weight."""
        if self.kind == EXPERTS:
            return Term(self.a, self.b, scaling)
        if self.kind == EMBEDDING:
            return Term(stacked(self.a, "transposed"), stacked(self.b, "transposed"), scaling)
        return Term(self.b, self.a, scaling)


@dataclass(frozen=True)
class Adapter:
    """An adapter.

    Attributes:
        family: How its parameters are called.
        pairs: Name of a weight in the network to A and B.
        alpha: LoRA's alpha; of `SCALING` the scale itself.
        by_root: Whether the scale is that of rsLoRA.
        alpha_pattern: Layers with another alpha, by the name that the adapter has for them.
        form: How the scale is said.
        config_path: The file that says it.
        stored: Where it lies; None while it lies in the network's file.
        weight: What all of it is multiplied with when it is merged.
        saved: Name of a weight in the network to what was trained of it as a whole, and its name here.
        spelled: Whose names its layers have.
    """

    family: str
    pairs: Mapping[str, Pair]
    alpha: float
    by_root: bool = False
    alpha_pattern: Mapping[str, float] | None = None
    form: str = ALPHA
    config_path: str = ""
    stored: Stored | None = None
    weight: float = 1.0
    saved: Mapping[str, tuple[str, Tensor]] = field(default_factory=dict)
    spelled: str = PLAIN

    def terms(self, weight: str) -> list[Term]:
        """What it adds to a weight."""
        pair = self.pairs.get(weight)
        return [] if pair is None else [pair.term(self.weight * self.scaling(weight))]

    def magnitudes(self, weight: str) -> Tensor | None:
        """DoRA's, of a weight."""
        return self.pairs[weight].magnitudes if weight in self.pairs else None

    def scaling(self, weight: str) -> float:
        """The factor of B @ A."""
        pair = self.pairs[weight]
        if pair.scaling is not None:
            return pair.scaling
        if self.form == SCALING:
            return self.alpha
        alpha = (self.alpha_pattern or {}).get(layer_of(pair.a_name, self.family), self.alpha)
        return alpha / (math.sqrt(pair.rank) if self.by_root else pair.rank)

    def options(self) -> list[str]:
        """The options that say its scale."""
        if self.form in (ALPHA, SCALING):
            return [self.form, repr(self.alpha)]
        return [] if self.form == FOUND else ["--config", self.config_path]

    def tensors(self) -> dict[str, Tensor]:
        """Its parameters by their names."""
        own = {name: tensor for pair in self.pairs.values() for name, tensor in pair_items(pair)}
        return own | dict(self.saved.values())

    @property
    def kinds(self) -> set[str]:
        """The kinds of its layers."""
        return {pair.kind for pair in self.pairs.values()}

    def with_tensors(self, model: Model, **changes: object) -> Adapter:
        """The same with other contents under the same names."""
        pairs = {}
        for weight, pair in self.pairs.items():
            a, b, *magnitudes = (model[name] for name, _ in pair_items(pair))
            pairs[weight] = replace(pair, a=a, b=b, magnitudes=magnitudes[0] if magnitudes else None)
        saved = {weight: (name, model[name]) for weight, (name, _) in self.saved.items()}
        return replace(self, pairs=pairs, saved=saved, **changes)


def pair_items(pair: Pair) -> tuple[tuple[str, Tensor], ...]:
    """A, B and magnitudes by their names."""
    both = (pair.a_name, pair.a), (pair.b_name, pair.b)
    if pair.magnitudes is None:
        return both
    return (*both, (pair.a_name.replace("lora_A.weight", "lora_magnitude_vector"), pair.magnitudes))


def layer_of(a_name: str, family: str) -> str:
    """The layer that a parameter of an adapter belongs to, as the adapter calls it."""
    return a_name.removesuffix(f".{ENDINGS[family][0]}").removeprefix("base_model.model.")


def names_for(weight: str, family: str) -> tuple[str, str]:
    """What A and B of a linear layer are called."""
    layer = weight.removesuffix(".weight")
    front = "base_model.model." if family == "peft" else ""
    first, second = ENDINGS[family]
    return f"{front}{layer}.{first}", f"{front}{layer}.{second}"


def random_adapter(
    rng: Random,
    network: Network,
    shapes: Mapping[str, tuple[int, ...]],
    style: str,
    *,
    form: str | None = None,
    is_alone: bool = True,
    has_special: bool = True,
    rank: int | None = None,
) -> Adapter:
    """An adapter of a network, not stored yet.

    Args:
        rng: What it is drawn by.
        network: The network as it was made.
        shapes: The network's weights under the names that they have in the chain.
        style: Whose names these are.
        form: How the scale is to be said.
        is_alone: Whether it is the only one of its weights, as DoRA has to be.
        has_special: Whether it may change more than linear layers.
        rank: That of all of its layers; None for any.
    """
    family = rng.choice(list(ENDINGS))
    form = form or rng.choice([ALPHA, ALPHA, SCALING, YAML, CONFIG, FOUND])
    # Names of the other library are translated by what reads the adapter.
    other = {MINDFORMERS: HUGGING_FACE, HUGGING_FACE: MINDFORMERS}.get(style)
    spelled = other if other and rng.random() < 0.25 else style
    layers = [name for name in shapes if name.removesuffix(".weight") in _layers(network, style)]
    chosen = sorted(rng.sample(layers, rng.randint(1, len(layers))))
    dtype = rng.choice(["fp32", "fp32", "bf16", "fp16"])
    has_ranks, rank = form != YAML and rank is None, rank or rng.choice([1, 2, 4, 8])
    pairs = {}
    for weight in chosen:
        if has_ranks and rng.random() < 0.1:
            rank = rng.choice([1, 2, 4, 8])
        out, into = shapes[weight]
        a_name, b_name = names_for(weight if spelled == style else translated(weight, spelled), family)
        pairs[weight] = _pair(rng, a_name, b_name, (rank, into), (out, rank), dtype, LINEAR)
    if has_special and form in (ALPHA, SCALING) and spelled == style:
        pairs |= _special(rng, shapes, style, family, rank, dtype)
    by_root = form in (CONFIG, FOUND) and rng.random() < 0.4
    adapter = Adapter(family, pairs, rng.choice([1.0, 2.5, 4.0, 16.0]), by_root, form=form, spelled=spelled)
    if family == "peft" and form in (CONFIG, FOUND) and is_alone and rng.random() < 0.5:
        pairs = {weight: _with_magnitudes(rng, pair) for weight, pair in pairs.items()}
        adapter = replace(adapter, pairs=pairs)
    if form in (CONFIG, FOUND) and rng.random() < 0.4:
        adapter = replace(adapter, alpha_pattern={layer_of(rng.choice(list(pairs.values())).a_name, family): 3.0})
    return adapter


def with_saved(rng: Random, adapter: Adapter, style: str, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """The same with one or two tensors that were trained whole (`modules_to_save`), which no adapter may change too."""
    whole = {HEAD, EMBEDDINGS.get(style, "")} if HEAD in shapes else set()
    ends = (".weight", ".bias", ".gamma", ".beta")
    names = [name for name, shape in shapes.items() if name in whole or (len(shape) == 1 and name.endswith(ends))]
    saved = {}
    for weight in rng.sample(names, min(len(names), rng.randint(1, 2))):
        name = spelled_as(weight, adapter.spelled)
        values = random_values(rng, shapes[weight], rng.choice(["fp32", "bf16", "fp16"]))
        saved[weight] = saved_name(name, adapter.family, rng.random() < 0.5), fresh(values)
    return replace(adapter, saved=saved)


def spelled_as(weight: str, style: str) -> str:
    """A weight's name in a style; in none in particular it keeps its own."""
    return weight if style == PLAIN else translated(weight, style)


def saved_name(name: str, family: str, is_copied: bool = False) -> str:
    """What a tensor that was trained whole is called; of PEFT also as a model has it that is not saved yet."""
    if family != "peft":
        return name
    layer, _, leaf = name.rpartition(".")
    return f"base_model.model.{layer}.modules_to_save.default.{leaf}" if is_copied else f"base_model.model.{name}"


def store_adapter(rng: Random, folder: Path, stem: str, adapter: Adapter, *, in_ranks: bool) -> Adapter:
    """Write an adapter, and the file that says its scale."""
    arrays = {name: tensor.bits for name, tensor in adapter.tensors().items()}
    kinds = [FILE, FILE, FOLDER] + ([RANKS] if in_ranks and adapter.form != FOUND else [])
    kind = FILE if adapter.form == FOUND else rng.choice(kinds)
    if adapter.form == FOUND and adapter.family == "peft" and rng.random() < 0.5:
        write_file(folder / stem / "adapter_model.safetensors", arrays, metadata={"format": "pt"})
        (folder / stem / "adapter_config.json").write_text(json.dumps(_peft_config(adapter)))
        return replace(adapter, stored=Stored(stem, FOLDER, ".safetensors"))
    stored = store(rng, folder, stem, arrays, kind)
    config_path = ""
    if adapter.form == YAML:
        config_path = f"{stem}.yaml"
        section = {"pet_type": "lora", "lora_rank": _rank(adapter), "lora_alpha": adapter.alpha}
        document = {"model": {"model_config": {"pet_config": {**section, "target_modules": _rule(adapter)}}}}
        (folder / config_path).write_text(json.dumps(document))
    elif adapter.form in (CONFIG, FOUND):
        config_path = f"{stem}.adapter_config.json" if adapter.form == FOUND else f"{stem}-config.json"
        (folder / config_path).write_text(json.dumps(_peft_config(adapter)))
    return replace(adapter, stored=stored, config_path=config_path)


def _peft_config(adapter: Adapter) -> dict[str, object]:
    layers = [layer_of(pair.a_name, adapter.family) for pair in adapter.pairs.values()]
    config: dict[str, object] = {"peft_type": "LORA", "r": _rank(adapter), "lora_alpha": adapter.alpha}
    if adapter.alpha_pattern:
        config["alpha_pattern"] = dict(adapter.alpha_pattern)
    ranks = {
        layer_of(pair.a_name, adapter.family): pair.rank
        for pair in adapter.pairs.values()
        if pair.rank != _rank(adapter)
    }
    config |= {"rank_pattern": ranks} if ranks else {}
    has_magnitudes = any(pair.magnitudes is not None for pair in adapter.pairs.values())
    if adapter.saved:
        names = [spelled_as(weight, adapter.spelled) for weight in adapter.saved if not weight.endswith(".bias")]
        config["modules_to_save"] = sorted({name.rpartition(".")[0] for name in names})
    return {**config, "use_rslora": adapter.by_root, "use_dora": has_magnitudes, "target_modules": layers}


def _rule(adapter: Adapter) -> str:
    """MindFormers' rule: a pattern of the names that cells have in their parents."""
    layers = (layer_of(pair.a_name, adapter.family) for pair in adapter.pairs.values())
    return "|".join(sorted({f".*{layer.rpartition('.')[2]}" for layer in layers}))


def _rank(adapter: Adapter) -> int:
    return next(iter(adapter.pairs.values())).rank


def _layers(network: Network, style: str) -> set[str]:
    renamed = (translated(name, style) if style != PLAIN else name for name in network.layers)
    return {name.removesuffix(".weight") for name in renamed}


def _special(
    rng: Random, shapes: Mapping[str, tuple[int, ...]], style: str, family: str, rank: int, dtype: str
) -> dict[str, Pair]:
    """Adapters of an embedding, of the output head that may be tied to it, and of stacks of experts."""
    found: dict[str, Pair] = {}
    embedding = EMBEDDINGS.get(style, "")
    if embedding in shapes and rng.random() < 0.5:
        entries, width = shapes[embedding]
        # PEFT names an embedding on Hugging Face's networks alone.
        if (family == "pynative" or (family == "peft" and style == HUGGING_FACE)) and rng.random() < 0.5:
            layer = embedding.rpartition(".")[0]
            names = (f"{layer}.lora_a", f"{layer}.lora_b")
            if family == "peft":
                names = tuple(f"base_model.model.{layer}.lora_embedding_{one}" for one in "AB")
            found[embedding] = _pair(rng, *names, (rank, entries), (width, rank), dtype, EMBEDDING)
        else:
            found[HEAD] = _pair(rng, *names_for(HEAD, family), (rank, width), (entries, rank), dtype, LINEAR)
    experts = [name for name, shape in shapes.items() if len(shape) == 3]
    if family == "pynative" and experts and rng.random() < 0.7:
        name = rng.choice(experts)
        count, into, out = shapes[name]
        shape_a, shape_b = (count, into, rank), (count, rank, out)
        found[name] = _pair(rng, f"{name}_lora_a", f"{name}_lora_b", shape_a, shape_b, dtype, EXPERTS)
    return found


def _with_magnitudes(rng: Random, pair: Pair) -> Pair:
    """The same with the norms that DoRA gives the rows of a weight."""
    values = np.abs(random_values(rng, (len(pair.b.bits),), "fp32", 0.3)) + np.float32(0.1)
    return replace(pair, magnitudes=fresh(values))


def _pair(rng: Random, a_name: str, b_name: str, a: tuple[int, ...], b: tuple[int, ...], dtype: str, kind: str) -> Pair:
    size = rng.choice([0.3, 0.03, 0.003])
    left, right = (fresh(random_values(rng, shape, dtype, np.sqrt(size))) for shape in (a, b))
    return Pair(a_name, b_name, left, right, kind)
