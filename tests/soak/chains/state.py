"""Where a chain stands, and what its steps share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import numpy as np

from chains.adapters import Adapter
from chains.files import write_file
from chains.networks import HEAD, HUGGING_FACE, MINDFORMERS, PLAIN, Network, dtypes, random_network, translated
from chains.oracle import Expected, Model, WrongTensorError, compare, fresh
from chains.running import EXISTS, Figures, Shell
from chains.storing import FILE, FOLDER, ITERATION, RANKS, Stored, is_training_only, read, store, target

_EARLIER = {"earlier": np.zeros(3, np.float32)}


@dataclass
class Chain:
    """A chain of commands.

    Attributes:
        rng: What everything is drawn by.
        folder: Where all files lie.
        shell: What runs commands.
        network: The network as it was made.
        style: Whose names its parameters have.
        model: All tensors of the checkpoint with which the chain goes on.
        stored: Where it lies.
        adapter: An adapter that waits to be merged; it is in `model` where it has no place of its own.
        is_moved: Whether the base's values changed since the adapter was cut out.
    """

    rng: Random
    folder: Path
    shell: Shell
    network: Network
    style: str
    model: Model
    stored: Stored
    adapter: Adapter | None = None
    is_moved: bool = False
    number: int = field(default=0)

    @property
    def figures(self) -> Figures:
        """Where it is counted what was done."""
        return self.shell.figures

    @property
    def is_combined(self) -> bool:
        """Whether the checkpoint holds an adapter."""
        return self.adapter is not None and self.adapter.stored is None

    @property
    def weights(self) -> Model:
        """The network's own tensors, without adapter, optimizer states and training scalars."""
        own = set(self.adapter.tensors()) if self.adapter is not None and self.is_combined else set()
        return {name: one for name, one in self.model.items() if name not in own and not is_training_only(name)}

    def stem(self, what: str) -> str:
        """A name that no file of the chain has."""
        self.number += 1
        return f"{self.number:02}-{what}"

    def chance(self, probability: float) -> bool:
        """Whether something is done that is done now and then."""
        return self.rng.random() < probability

    def check(self, stored: Stored, expected: Mapping[str, Expected]) -> Model:
        """Read an output back and hold it to what it must be."""
        return compare(read(self.folder, stored), expected, self.figures)


def begin(rng: Random, folder: Path, shell: Shell) -> Chain:
    """A random network in a random place."""
    network = random_network(rng)
    stored = store(rng, folder, "00-base", network.tensors)
    if stored.kind == FOLDER and network.style == HUGGING_FACE:
        config = {"architectures": ["LlamaForCausalLM"], "tie_word_embeddings": HEAD not in network.tensors}
        (folder / stored.path / "config.json").write_text(json.dumps(config))
    model = {name: fresh(array) for name, array in network.tensors.items()}
    return Chain(rng, folder, shell, network, network.style, model, stored)


def choose_names(chain: Chain) -> tuple[str | None, Mapping[str, str]]:
    """What `--names` is given, or None, and the new name of each tensor."""
    if chain.chance(0.65):
        return None, {name: name for name in chain.weights}
    if chain.style == PLAIN or chain.chance(0.3):
        return _renamed_by_file(chain)
    style = chain.rng.choice([MINDFORMERS, HUGGING_FACE])
    return style, {name: translated(name, style) for name in chain.weights}


def _renamed_by_file(chain: Chain) -> tuple[str | None, Mapping[str, str]]:
    """Two tensors that are alike and no layers swap their names, if there are two."""
    # Integers stay where they are: an adapter that waits may have trained what has the name.
    plain = sorted(name for name, one in chain.weights.items() if one.bits.ndim == 1 and one.dtype is not None)
    first = chain.rng.choice(plain)
    shape = chain.weights[first].bits.shape
    second = chain.rng.choice([name for name in plain if chain.weights[name].bits.shape == shape])
    if first == second:
        return None, {name: name for name in chain.weights}
    path = f"{chain.stem('names')}.json"
    swapped = {first: second, second: first}
    (chain.folder / path).write_text(json.dumps(swapped))
    return path, {name: swapped.get(name, name) for name in chain.weights}


def choose_dtype(chain: Chain) -> str | None:
    """What `--dtype` is given, or None."""
    return chain.rng.choice(dtypes()) if chain.chance(0.25) else None


def style_after(chain: Chain, names: str | None) -> str:
    """Whose names the tensors have behind `--names`."""
    return names if names in (MINDFORMERS, HUGGING_FACE) else chain.style


def choose_target(chain: Chain, what: str, expected: Mapping[str, Expected]) -> tuple[Stored, list[str]]:
    """Where an output goes, and the options that say so."""
    shapes = {name: one.near.shape for name, one in expected.items()}
    return target(chain.rng, chain.folder, chain.stem(what), shapes)


def common(chain: Chain) -> list[str]:
    """Options that change nothing of what comes out."""
    options = ["--threads", str(chain.rng.randint(1, 3))] if chain.chance(0.4) else []
    options += ["--max-memory", chain.rng.choice(["130MB", "200MB", "1GB"])] if chain.chance(0.2) else []
    return options + chain.rng.choice([["-q"], ["--json"], []])


def write(chain: Chain, program: str, arguments: list[str], place: Stored, *others: str, whole: bool = False) -> None:
    """Run a command that writes an output: at once, over an earlier one, or in parts.

    Args:
        chain: Where the chain stands.
        program: The command.
        arguments: All but the output.
        place: The output.
        others: What else it writes; then it is not written in parts.
        whole: Whether it cannot be written in parts.
    """
    shell, outputs = chain.shell, (place.path, *others)
    line = [*arguments, "-o", place.path, *common(chain)]
    if chain.chance(0.08):
        shell.run(program, *line, "--dry-run")
    has_parts = place.kind == RANKS and place.strategy is not None and place.strategy.ranks > 1
    if has_parts and not others and not whole and chain.chance(0.25):
        _write_parts(chain, program, line, place)
        return
    if chain.chance(0.15):
        earlier = chain.folder / place.path
        write_file(earlier if place.kind == FILE else earlier / "model.safetensors", _EARLIER)
        shell.note(f"{place.path} is there already")
        shell.run(program, *line, code=EXISTS)
        line.append("--force")
    shell.run(program, *line, outputs=outputs)


def _write_parts(chain: Chain, program: str, line: list[str], place: Stored) -> None:
    assert place.strategy is not None
    cut = chain.rng.randrange(1, place.strategy.ranks)
    parts = [f"0-{cut - 1}", f"{cut}-{place.strategy.ranks - 1}"]
    chain.rng.shuffle(parts)
    of_parts = [option for option in line if option != "--verify"]
    for part in parts[: chain.rng.randint(1, 2)]:
        chain.shell.run(program, *of_parts, "--ranks", part, outputs=(place.path,))
    chain.shell.run(program, *line, outputs=(place.path,))


def check_config(chain: Chain, place: Stored) -> None:
    """A folder that is made of one with a `config.json` has it too, and it says whether the output head is tied."""
    before, after = (chain.folder / one.path / "config.json" for one in (chain.stored, place))
    if place.kind != FOLDER or not before.exists():
        return
    is_tied = json.loads(after.read_text())["tie_word_embeddings"]
    if is_tied != (HEAD not in read(chain.folder, place)):
        raise WrongTensorError(f"{after}: tie_word_embeddings is {is_tied}")


def prove_manifest(chain: Chain, stored: Stored) -> None:
    """An output is what its manifest says."""
    options = [] if stored.kind == ITERATION else stored.options()
    chain.shell.run("pet-verify", stored.path, *options)


def moved_to(chain: Chain, model: Model, stored: Stored, adapter: Adapter | None) -> None:
    """The chain goes on with another checkpoint, and an adapter that waits."""
    chain.model, chain.stored, chain.adapter, chain.is_moved = model, stored, adapter, False
