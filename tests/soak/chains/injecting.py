"""pet-inject, and the training that comes after it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

import numpy as np

from chains.adapters import ALPHA, FOUND, Adapter, Pair, names_for, store_adapter
from chains.layouts import random_strategy, write_strategy
from chains.networks import HUGGING_FACE, random_values
from chains.oracle import Expected, Model, WrongTensorError, cast, compare, fresh, same
from chains.state import Chain, choose_dtype, choose_names, choose_target, moved_to, style_after, write
from chains.storing import FILE, FOLDER, RANKS, SUFFIXES, Stored, read, store
from chains.strategies import read_merged_strategy

_BLOCKS = ("layers", "blocks")


@dataclass(frozen=True)
class Base:
    """A network under the names that it is to have: its weights, whose names these are, and the option that asks."""

    weights: Model
    style: str
    options: tuple[str, ...] = ()


def inject(chain: Chain) -> bool:
    """LoRA's parameters are put into the network, which is then trained."""
    if chain.adapter is not None:
        return False
    if chain.chance(0.2):
        return _other_method(chain)
    if chain.chance(0.2):
        return _only_delta(chain, _plan(chain, Base(chain.weights, chain.style)))
    names, renamed = choose_names(chain)
    weights = {renamed[name]: tensor for name, tensor in chain.weights.items()}
    base = Base(weights, style_after(chain, names), ("--names", names) if names else ())
    plan = _plan(chain, base)
    if chain.chance(0.3):
        return _graft(chain, base, plan)
    dtype = choose_dtype(chain)
    place, found = _injected(chain, base, plan, dtype, [])
    own = {name for pair in plan.pairs.values() for name in (pair.a_name, pair.b_name)}
    if own != found.keys() - weights.keys():
        raise WrongTensorError(f"expected to be added {sorted(own)}, found {sorted(found.keys() - weights.keys())}")
    held = {name: found[name] for name in weights if name in found}
    chain.model, chain.style = compare(held, _base(weights, dtype), chain.figures), base.style
    for weight, pair in plan.pairs.items():
        _check_fresh(found, weight, pair, chain.model)
    chain.figures.tensors += len(own)
    chain.figures.elements += sum(found[name].size for name in own)
    _train(chain, plan, place, found)
    return True


def _plan(chain: Chain, base: Base) -> Adapter:
    """The layers of some kinds of cells, as MindPet names LoRA's parameters; none of a weight in FP8."""
    rng, weights = chain.rng, base.weights
    floats = {name: tensor for name, tensor in weights.items() if tensor.dtype is not None}
    linear = [name for name, tensor in floats.items() if name.endswith(".weight") and tensor.bits.ndim == 2]
    layers = [name for name in linear if ".layers." in name or name.startswith("blocks.")]
    cells = sorted({name.split(".")[-2] for name in layers})
    chosen = rng.sample(cells, rng.randint(1, min(3, len(cells))))
    rank = rng.choice([1, 2, 4])
    pairs = {}
    for weight in layers:
        if weight.split(".")[-2] in chosen:
            out, into = weights[weight].bits.shape
            dtype = weights[weight].bits.dtype
            a, b = fresh(np.zeros((rank, into), dtype)), fresh(np.zeros((out, rank), dtype))
            pairs[weight] = Pair(*names_for(weight, "mindpet"), a, b)
    config_path = f"{chain.stem('run')}.yaml"
    section: dict[str, object] = {"pet_type": "lora", "lora_rank": rank, "lora_alpha": 8.0}
    section |= {"target_modules": "|".join(f".*{cell}" for cell in chosen)}
    if base.style == HUGGING_FACE and chain.chance(0.5):
        config_path = f"{chain.stem('peft')}.json"
        section = {"peft_type": "LORA", "r": rank, "lora_alpha": 8.0, "target_modules": chosen}
    (chain.folder / config_path).write_text(json.dumps(section))
    return Adapter("mindpet", pairs, 8.0, form=ALPHA, config_path=config_path, spelled=base.style)


def _injected(
    chain: Chain, base: Base, plan: Adapter, dtype: str | None, options: list[str]
) -> tuple[Stored, dict[str, np.ndarray]]:
    """Run pet-inject; where its output lies, and what it holds."""
    expected = {**_base(base.weights, dtype), **{name: same(one) for name, one in plan.tensors().items()}}
    place, target = choose_target(chain, "injected", expected)
    line = [chain.stored.path, "--config", plan.config_path, *chain.stored.options(), *base.options, *options]
    line += ["--dtype", dtype] if dtype else []
    line += ["--seed", str(chain.rng.randint(0, 9))] if not options else []
    if place.kind != RANKS or chain.chance(0.5):
        write(chain, "pet-inject", [*line, *target], place)
        return place, read(chain.folder, place)
    # A strategy of the base alone: what it lacks is worked out, and written beside the output.
    shapes = {name: tensor.bits.shape for name, tensor in base.weights.items()}
    strategy = random_strategy(chain.rng, shapes, even=True)
    path = write_strategy(chain.rng, chain.folder / chain.stem("base-strategy"), strategy)
    place = replace(place, strategy=strategy)
    write(chain, "pet-inject", [*line, "--format", place.suffix[1:], "--dst-strategy", path], place)
    written = f"{place.path}/strategy.ckpt"
    place = replace(place, strategy=read_merged_strategy(chain.folder / written), strategy_path=written)
    return place, read(chain.folder, place)


def _base(weights: Model, dtype: str | None) -> dict[str, Expected]:
    return {name: cast(tensor, dtype) for name, tensor in weights.items()}


def _check_fresh(found: dict[str, np.ndarray], weight: str, pair: Pair, model: Model) -> None:
    """B is zero, and A uniform as HeUniform(sqrt(5)) is: within 1 / sqrt(in)."""
    a, b = found[pair.a_name], found[pair.b_name]
    own = model[weight].bits.dtype
    if (a.dtype, b.dtype, a.shape, b.shape) != (own, own, pair.a.bits.shape, pair.b.bits.shape):
        raise WrongTensorError(f"{weight}: A is {a.dtype} {a.shape} and B {b.dtype} {b.shape}")
    values = np.abs(a.astype(np.float64))
    limit = 1 / np.sqrt(a.shape[1])
    if b.any() or not a.any() or values.max() > limit * (1 + 2**-7):
        raise WrongTensorError(
            f"{weight}: B has {np.count_nonzero(b)} values but 0; A is within {values.max()}, not {limit}"
        )


def _graft(chain: Chain, base: Base, plan: Adapter) -> bool:
    """A trained adapter's values in the place of fresh ones; they are rounded to the network's type."""
    dtype = chain.rng.choice(["fp32", "bf16"])
    pairs = {}
    for weight, pair in plan.pairs.items():
        a, b = (fresh(random_values(chain.rng, one.bits.shape, dtype, 0.2)) for one in (pair.a, pair.b))
        pairs[weight] = replace(pair, a=a, b=b)
    trained = replace(plan, pairs=pairs)
    stored = store_adapter(chain.rng, chain.folder, chain.stem("trained"), trained, in_ranks=True)
    assert stored.stored is not None
    options = ["--adapter", stored.stored.path, *stored.stored.options("--adapter-strategy")]
    wanted = choose_dtype(chain)
    place, found = _injected(chain, base, plan, wanted, options)
    expected = _base(base.weights, wanted)
    for weight, pair in pairs.items():
        own = wanted or base.weights[weight].dtype
        expected |= {pair.a_name: cast(pair.a, own), pair.b_name: cast(pair.b, own)}
    model = compare(found, expected, chain.figures)
    moved_to(chain, model, place, trained.with_tensors(model, stored=None))
    chain.style = base.style
    return True


def _other_method(chain: Chain) -> bool:
    """Another method's parameters go in, and pet-split takes the same ones out again."""
    rng, weights = chain.rng, chain.weights
    rule = {"target_modules": ".*dense|.*wq|.*w2|.*q_proj|.*down"}
    section = rng.choice(
        [
            {"pet_type": "adapter", "bottleneck_size": rng.choice([2, 6]), **rule},
            {"pet_type": "low_rank_adapter", "reduction_factor": 4, "low_rank_size": 2, **rule},
            {"pet_type": "ptuning2", "pre_seq_len": 4, **_heads(chain)},
            {"pet_type": "prefixtuning", "prefix_token_num": 4, "mid_dim": 6, **_heads(chain)},
        ]
    )
    config = chain.folder / f"{chain.stem('run')}.yaml"
    config.write_text(json.dumps(section))
    place = Stored(f"{chain.stem('injected')}{rng.choice(SUFFIXES)}", FILE, "")
    line = [chain.stored.path, "--config", config.name, *chain.stored.options()]
    write(chain, "pet-inject", line, place)
    found = read(chain.folder, place)
    compare({name: found[name] for name in weights if name in found}, _base(weights, None), chain.figures)
    added = {name: same(fresh(array)) for name, array in found.items() if name not in weights}
    if not added:
        raise WrongTensorError(f"{section['pet_type']} added nothing")
    delta = Stored(f"{chain.stem('delta')}{rng.choice(SUFFIXES)}", FILE, "")
    write(chain, "pet-split", [place.path], delta)
    chain.check(delta, added)
    return True


def _heads(chain: Chain) -> dict[str, int]:
    blocks = {
        name.split(".")[name.split(".").index(part) + 1]
        for name in chain.weights
        for part in _BLOCKS
        if part in name.split(".")
    }
    return {"num_layers": len(blocks), "num_heads": 4, "kv_channels": 4}


def _only_delta(chain: Chain, plan: Adapter) -> bool:
    """The new parameters alone, which a merge finds to change nothing."""
    suffix = chain.rng.choice(["", *SUFFIXES])
    place = Stored(f"{chain.stem('fresh')}{suffix}", FILE if suffix else FOLDER, suffix)
    line = [chain.stored.path, "--config", plan.config_path, *chain.stored.options(), "--only-delta"]
    write(chain, "pet-inject", line, place)
    found = read(chain.folder, place)
    if found.keys() != plan.tensors().keys():
        raise WrongTensorError(f"expected {sorted(plan.tensors())} alone, found {sorted(found)}")
    for weight, pair in plan.pairs.items():
        _check_fresh(found, weight, pair, chain.model)
    model = {name: fresh(array) for name, array in found.items()}
    moved_to(chain, chain.model, chain.stored, plan.with_tensors(model, stored=place, form=FOUND))
    return True


def _train(chain: Chain, plan: Adapter, place: Stored, found: dict[str, np.ndarray]) -> None:
    """What training makes of it: other A and B, and with them optimizer states and training scalars."""
    rng = chain.rng
    trained: dict[str, np.ndarray] = {}
    for weight, pair in plan.pairs.items():
        dtype = str(chain.model[weight].dtype)
        for name in (pair.a_name, pair.b_name):
            trained[name] = random_values(rng, found[name].shape, dtype, 0.1)
    arrays = {**found, **trained}
    if rng.random() < 0.7:
        for name, array in trained.items():
            arrays |= {f"{state}.{name}": random_values(rng, array.shape, "fp32") for state in ("adam_m", "adam_v")}
        arrays |= {"global_step": np.array(7, np.int32), "epoch_num": np.array([1], np.int32)}
        arrays |= {"loss_scale": np.array([1024], np.float32)} if rng.random() < 0.5 else {}
    stem = chain.stem("trained")
    stored = store(rng, chain.folder, stem, arrays)
    chain.shell.note(f"{place.path} is trained, and is {stored.path} then")
    model = {name: chain.model.get(name) or fresh(array) for name, array in arrays.items()}
    moved_to(chain, model, stored, plan.with_tensors(model, stored=None))
