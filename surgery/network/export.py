"""Save during training what training changes and nothing else: MindPet's `TrainableParamsCheckPoint` as expected.

MindPet's saves optimizer states too unless it is told the network, deletes the old file before it writes the new one,
and leaves nothing that tells a merge the scale. Here each file appears whole or not at all, the oldest is deleted last,
and `adapter_config.json` lies beside.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ckpt_tools import save_checkpoint
from ckpt_tools.fingerprint import fingerprint_of_lora
from ckpt_tools.writing.beside import write_file
from surgery.adapter_facts import METADATA_FINGERPRINT
from surgery.adapter_files import CONFIG_NAME, adapter_config
from surgery.errors import MismatchError, Problem, UsageError
from surgery.network.arrays import array_of, lazy_of
from surgery.network.packages import Cell, mindspore
from surgery.pet_config import parse_pet_config
from surgery.states import is_training_scalar, split_optimizer_state

__all__ = ["DeltaCheckpoint", "base_fingerprint", "save_delta"]


class DeltaCheckpoint(mindspore.train.Callback):  # type: ignore[misc]  # MindSpore has no types
    """Saves the trained parameters of a network while it is trained.

    Files are called `PREFIX-EPOCH_STEP.ckpt`, as MindSpore's are.

    Args:
        folder: Where they go; it is made where it is missing.
        config: The method's configuration, as for `get_pet_model`.
        prefix: What their names begin with.
        every_steps: Save each time that so many steps were done; 0: at the end only.
        keep: How many to keep; 0: all. The oldest of the same prefix in the folder go first.
        format: `ckpt` or `safetensors`; the latter holds the fingerprint of what LoRA changes itself too.
        network: The network; by default what is trained without optimizer states is saved of whatever is trained.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        config: Any,
        *,
        prefix: str = "adapter",
        every_steps: int = 0,
        keep: int = 5,
        format: str = "ckpt",
        network: Cell | None = None,
    ) -> None:
        super().__init__()
        if every_steps < 0 or keep < 0:
            raise UsageError(Problem("DeltaCheckpoint", f"every_steps {every_steps}, keep {keep}", "0 or more"))
        if format not in ("ckpt", "safetensors"):
            raise UsageError(Problem("DeltaCheckpoint: format", repr(format), "ckpt or safetensors"))
        self._folder = Path(folder).absolute()
        self._config = parse_pet_config(config)
        self._prefix, self._suffix = prefix, f".{format}"
        self._every_steps, self._keep = every_steps, keep
        self._network = network
        self._fingerprint = ""
        self._saved_at = -1

    def on_train_begin(self, run_context: Any) -> None:
        """Look at the base before training changes what of it is trained."""
        network = self._of(run_context)
        self._fingerprint = base_fingerprint(network)
        self._folder.mkdir(parents=True, exist_ok=True)
        _write_config(self._folder / CONFIG_NAME, adapter_config(self._config, self._fingerprint))

    def on_train_step_end(self, run_context: Any) -> None:
        """Save, where it is time."""
        step = run_context.original_args().cur_step_num
        if self._every_steps and step % self._every_steps == 0:
            self._save(run_context)

    def on_train_end(self, run_context: Any) -> None:
        """Save the last state, unless it is saved."""
        if run_context.original_args().cur_step_num != self._saved_at:
            self._save(run_context)

    def _of(self, run_context: Any) -> Cell:
        # A cell that is a list of others is false while it is empty.
        return run_context.original_args().train_network if self._network is None else self._network

    def _save(self, run_context: Any) -> None:
        arguments = run_context.original_args()
        in_epoch = (arguments.cur_step_num - 1) % arguments.batch_num + 1
        path = self._folder / f"{self._prefix}-{arguments.cur_epoch_num}_{in_epoch}{self._suffix}"
        save_delta(self._of(run_context), path, self._config, base=self._fingerprint, force=True)
        self._saved_at = arguments.cur_step_num
        self._remove_oldest(path)

    def _remove_oldest(self, newest: Path) -> None:
        pattern = re.compile(rf"{re.escape(self._prefix)}-\d+_\d+{re.escape(self._suffix)}")
        older = [path for path in self._folder.iterdir() if pattern.fullmatch(path.name) and path != newest]
        older.sort(key=lambda path: path.stat().st_mtime_ns)
        for path in older[: max(0, len(older) + 1 - self._keep) if self._keep else 0]:
            path.unlink()


def save_delta(
    network: Cell, path: str | os.PathLike[str], config: Any, *, base: str = "", force: bool = False
) -> None:
    """Write what of a network is trained, and `adapter_config.json` beside it.

    Args:
        network: The network, or what trains it.
        path: A `.ckpt` or `.safetensors`.
        config: The method's configuration, as for `get_pet_model`.
        base: `base_fingerprint` of the network before training; by default that of its present weights.
        force: Replace an existing file.

    Raises:
        MismatchError: Nothing of the network is trained.
        OutputExistsError: The file exists and `force` is not set.
    """
    parsed, path = parse_pet_config(config), Path(path)
    trained = {one.name: one for one in _without_states(network.trainable_params())}
    if not trained:
        raise MismatchError(Problem(type(network).__name__, "nothing that is trained", "a network with a method"))
    base = base or base_fingerprint(network)
    metadata = {METADATA_FINGERPRINT: base} if base and path.suffix == ".safetensors" else None
    save_checkpoint(path, {name: array_of(one) for name, one in trained.items()}, metadata=metadata, force=force)
    _write_config(path.parent / CONFIG_NAME, adapter_config(parsed, base))


def base_fingerprint(network: Cell) -> str:
    """The fingerprint of the weights that LoRA changes, as that of their base's checkpoint; empty of other methods.

    See `ckpt_tools.fingerprint`.
    """
    return fingerprint_of_lora({one.name: lazy_of(one) for one in _without_states(network.get_parameters())})


def _without_states(parameters: Iterable[Any]) -> list[Any]:
    """Parameters of a network, without those of what trains it."""
    listed = list(parameters)
    names = {parameter.name for parameter in listed}
    return [
        parameter
        for parameter in listed
        if not is_training_scalar(parameter.name) and split_optimizer_state(parameter.name, names) is None
    ]


def _write_config(path: Path, values: Mapping[str, Any]) -> None:
    data = (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
    if not path.is_file() or path.read_bytes() != data:
        write_file(path, data, force=True)
