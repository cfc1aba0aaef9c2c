"""What training on eight devices leaves: rank folders and strategy files of a small LLaMA under MindFormers' names.

    python -m examples.train_on_eight run                        2 data parallel x 4 model parallel, parallel optimizer
    python -m examples.train_on_eight run --stages 2             2 pipeline stages of 4 model parallel
    python -m examples.train_on_eight run --lora                 LoRA; base, adapter and its states in the same files

No training takes place: the numbers are random, and the same on every run. Nothing here needs MindSpore.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ckpt_tools import save_checkpoint
from ckpt_tools.layout import Layout
from examples.strategy_files import write_strategy

__all__ = ["Run", "main", "model"]

_DEVICES, _MODEL_PARALLEL = 8, 4
_HIDDEN, _INNER, _VOCABULARY, _LAYERS, _RANK = 32, 64, 128, 2, 4
_STEPS = (50, 100)

_COLUMNS = (".wo.", ".w2.")
_ADAPTED = (".wq.", ".wv.")

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Run:
    """A training run.

    Attributes:
        stages: Pipeline stages, 1 or 2; data parallel is what is left of the eight devices.
        lora: Whether LoRA is trained, and the base frozen.
        trainable_only: Whether the strategy leaves frozen parameters out, as MindSpore does by default.
        remove_redundancy: Whether each slice is saved by one rank only.
        format: `ckpt` or `safetensors`.
    """

    stages: int = 1
    lora: bool = False
    trainable_only: bool = False
    remove_redundancy: bool = False
    format: str = "ckpt"

    @property
    def data_parallel(self) -> int:
        """How many ranks of a stage would hold the same slice, but for the parallel optimizer."""
        return _DEVICES // self.stages // _MODEL_PARALLEL


def model(step: int = _STEPS[-1], lora: bool = False) -> Arrays:
    """The whole network at a step, `(out, in)` for linear layers; float32, as training keeps its weights."""
    generator = np.random.default_rng(step)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return generator.standard_normal((rows, columns), np.float32) * np.float32(0.1)

    shapes = {
        **{f"attention.{cell}": (_HIDDEN, _HIDDEN) for cell in ("wq", "wk", "wv", "wo")},
        "feed_forward.w1": (_INNER, _HIDDEN),
        "feed_forward.w2": (_HIDDEN, _INNER),
        "feed_forward.w3": (_INNER, _HIDDEN),
    }
    tensors = {"model.tok_embeddings.embedding_weight": matrix(_VOCABULARY, _HIDDEN)}
    for number in range(_LAYERS):
        layer = f"model.layers.{number}"
        tensors |= {f"{layer}.{cell}.weight": matrix(*shape) for cell, shape in shapes.items()}
        tensors |= {f"{layer}.{norm}.weight": np.ones(_HIDDEN, np.float32) for norm in ("attention_norm", "ffn_norm")}
    tensors |= {"model.norm_out.weight": np.ones(_HIDDEN, np.float32), "lm_head.weight": matrix(_VOCABULARY, _HIDDEN)}
    if lora:
        for cell in [name.removesuffix(".weight") for name in tensors if any(part in name for part in _ADAPTED)]:
            tensors[f"{cell}.mindpet_delta_lora_a"] = matrix(_RANK, _HIDDEN)
            tensors[f"{cell}.mindpet_delta_lora_b"] = matrix(_HIDDEN, _RANK) * np.float32(0.03)
    return tensors


def write_run(folder: Path, run: Run) -> None:
    """Write `checkpoint/rank_N/`, with a file for each step, and `strategy/`, as MindFormers lays its output out.

    With LoRA also `checkpoint_trainable/rank_N/`, the adapter by itself: MindFormers' `save_trainable_params`.
    """
    for step in _STEPS:
        weights = model(step, run.lora)
        tensors = weights | _states(weights, run)
        scalars = {"global_step": np.array([step], np.int32), "loss_scale": np.array(1, np.float32)}
        _write_ranks(folder / "checkpoint", f"-1_{step}", tensors, scalars, run)
        if run.lora:
            adapter = {name: array for name, array in weights.items() if not _is_frozen(name, run)}
            _write_ranks(folder / "checkpoint_trainable", f"-trainable_params-1_{step}", adapter, {}, run)
    for rank in range(_DEVICES):
        stage = rank // (_DEVICES // run.stages)
        layouts = {
            name: _layout(name, array, run)
            for name, array in tensors.items()
            if stage in _stages(name, run) and not (run.trainable_only and _is_frozen(name, run))
        }
        write_strategy(folder / "strategy" / f"ckpt_strategy_rank_{rank}.ckpt", layouts, stage)


def _write_ranks(folder: Path, name_end: str, tensors: Arrays, scalars: Arrays, run: Run) -> None:
    metadata = {"format": "ms", "remove_redundancy": str(run.remove_redundancy)}
    seen: set[tuple[str, bytes]] = set()
    for rank in range(_DEVICES):
        held = dict(_held(tensors, rank, run))
        if run.remove_redundancy:
            places = {name: (name, _place(name, tensors[name], rank, run)) for name in held}
            held = {name: array for name, array in held.items() if places[name] not in seen}
            seen |= set(places.values())
        path = folder / f"rank_{rank}" / f"llama_rank_{rank}{name_end}.{run.format}"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(path, held | scalars, metadata=metadata if run.format == "safetensors" else None, force=True)


def write_inference_strategy(path: Path) -> None:
    """Write the strategy of two devices that serve the model: model parallel 2, no optimizer."""
    layouts = {name: Layout((1, 2), _tensor_map(name, array)) for name, array in model().items()}
    write_strategy(path, layouts)


def _states(weights: Mapping[str, np.ndarray], run: Run) -> Arrays:
    """What AdamW keeps of each trained parameter."""
    trained = {name: array for name, array in weights.items() if not _is_frozen(name, run)}
    return {f"{kind}.{name}": array * array for kind in ("adam_m", "adam_v") for name, array in trained.items()}


def _is_frozen(name: str, run: Run) -> bool:
    return run.lora and "mindpet_delta_lora" not in name


def _stages(name: str, run: Run) -> range:
    """The pipeline stages that hold a parameter: the first half of the layers is in the first."""
    if run.stages == 1 or "tok_embeddings" in name or ".layers.0." in name:
        return range(1)
    return range(1, 2)


def _tensor_map(name: str, array: np.ndarray) -> tuple[tuple[int, ...], ...]:
    """The device axis, 0 for model parallel, that cuts each axis: most layers by rows, `wo` and `w2` by columns.

    LoRA's A has no axis in common with a layer's rows, nor B with its columns: those stay whole.
    """
    if array.ndim < 2:
        return ((),) * array.ndim
    if any(part in name for part in _COLUMNS):
        return ((), ()) if name.endswith("_b") else ((), (0,))
    return ((), ()) if name.endswith("_a") else ((0,), ())


def _layout(name: str, array: np.ndarray, run: Run) -> Layout:
    matrix = (run.data_parallel, _MODEL_PARALLEL)
    if run.lora or run.data_parallel == 1 or array.ndim < 2:
        return Layout(matrix, _tensor_map(name, array))
    # The parallel optimizer: ranks that would hold the same slice share its rows.
    return Layout(matrix, _tensor_map(name, array), shard_step=_MODEL_PARALLEL, shard_size=run.data_parallel)


def _held(tensors: Mapping[str, np.ndarray], rank: int, run: Run) -> Iterator[tuple[str, np.ndarray]]:
    """What a rank holds: the slices of its stage's parameters."""
    of_stage = rank % (_DEVICES // run.stages)
    data, part = divmod(of_stage, _MODEL_PARALLEL)
    for name, array in tensors.items():
        if rank // (_DEVICES // run.stages) not in _stages(name, run):
            continue
        layout = _layout(name, array, run)
        found = array
        for axis, cuts in enumerate(layout.tensor_map):
            if cuts:
                found = np.split(found, _MODEL_PARALLEL, axis)[part]
        yield name, np.split(found, layout.shard_size)[data] if layout.shard_size else found


def _place(name: str, array: np.ndarray, rank: int, run: Run) -> bytes:
    """What tells slices of a parameter apart: where they lie in it."""
    numbers = np.arange(array.size).reshape(array.shape)
    return dict(_held({name: numbers}, rank, run))[name].tobytes()


def main(arguments: list[str] | None = None) -> None:
    """Write a run, and `infer.json`, the strategy that the model is to be served with, beside it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--stages", type=int, choices=(1, 2), default=1)
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--trainable-only", action="store_true")
    parser.add_argument("--remove-redundancy", action="store_true")
    parser.add_argument("--format", choices=("ckpt", "safetensors"), default="ckpt")
    options = vars(parser.parse_args(arguments))
    output: Path = options.pop("output")
    write_run(output, Run(**options))
    write_inference_strategy(output / "infer.json")


if __name__ == "__main__":
    main()
