"""Some chains of commands with every push, and proof that a chain fails where something is wrong."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from chains.chain import ChainError, run_chain
from chains.files import metadata_of, read_file, write_file
from chains.methods import Combination, Update, combined
from chains.oracle import (
    FLOATS,
    Tally,
    Tensor,
    Term,
    WrongTensorError,
    cast,
    compare,
    folded,
    fresh,
    rounded,
    same,
)
from chains.running import Figures, Shell
from merge_cases import NUMPY, random
from soak import examples

from surgery.draws import uniform_draws

FIRST_SEED = 7000
SUFFIXES = (".ckpt", ".safetensors")


@pytest.mark.parametrize("seed", range(FIRST_SEED, FIRST_SEED + examples(3)))
def test_a_random_chain_of_commands_gives_what_arithmetic_says(seed: int, tmp_path: Path) -> None:
    figures = Figures()
    run_chain(seed, tmp_path, figures)
    assert figures.tensors > 0
    assert list(tmp_path.iterdir()) == []


def test_a_seed_gives_the_same_commands_again(tmp_path: Path) -> None:
    first, again = (run_chain(FIRST_SEED, tmp_path, Figures()) for _ in range(2))
    assert len(first) >= 3
    assert first == again


class SpoilingShell(Shell):
    """Doubles the first element of the largest float tensor that a command wrote, in all copies of it."""

    program = ""

    def run(self, program: str, *arguments: str, code: int = 0, outputs: tuple[str, ...] = ()) -> str:
        printed = super().run(program, *arguments, code=code, outputs=outputs)
        if program == self.program and not code and "--ranks" not in arguments and "--dry-run" not in arguments:
            self._spoil(self.folder / outputs[0])
        return printed

    def _spoil(self, output: Path) -> None:
        files = [path for path in ([output] if output.is_file() else output.rglob("*")) if path.suffix in SUFFIXES]
        held = {path: read_file(path) for path in files if path.name != "strategy.ckpt"}
        sizes = {
            name: array.size for arrays in held.values() for name, array in arrays.items() if array.dtype in FLOATS
        }
        name = max(sizes, key=lambda one: sizes[one])
        for path, arrays in held.items():
            if name in arrays:
                spoilt = np.array(arrays[name], order="C")
                place = np.unravel_index(np.argmax(np.abs(spoilt)), spoilt.shape)
                spoilt[place] = spoilt[place] * 2
                metadata = metadata_of(path) if path.suffix == ".safetensors" else None
                write_file(path, {**arrays, name: spoilt}, metadata=metadata)


class SpoilingTransforms(SpoilingShell):
    program = "pet-transform"


class SpoilingMerges(SpoilingShell):
    program = "pet-merge"


class SpoilingSplits(SpoilingShell):
    program = "pet-split"


class SpoilingInjections(SpoilingShell):
    program = "pet-inject"


class OtherScaleShell(Shell):
    """Merges by another alpha than the adapter has."""

    def run(self, program: str, *arguments: str, code: int = 0, outputs: tuple[str, ...] = ()) -> str:
        changed = list(arguments)
        if program == "pet-merge":
            for place, argument in enumerate(arguments[:-1]):
                if argument in ("--alpha", "--scaling"):
                    changed[place + 1] = repr(2 * float(arguments[place + 1]))
        return super().run(program, *changed, code=code, outputs=outputs)


class OtherDensityShell(Shell):
    """Keeps another share of the elements than it is asked for."""

    def run(self, program: str, *arguments: str, code: int = 0, outputs: tuple[str, ...] = ()) -> str:
        changed = list(arguments)
        if program == "pet-merge" and "--density" in changed:
            place = changed.index("--density") + 1
            changed[place] = repr(float(changed[place]) / 2)
        return super().run(program, *changed, code=code, outputs=outputs)


SPOILING = (
    SpoilingTransforms,
    SpoilingMerges,
    SpoilingSplits,
    SpoilingInjections,
    OtherScaleShell,
    OtherDensityShell,
)


@pytest.mark.parametrize("shell", SPOILING)
def test_a_chain_fails_where_an_output_is_wrong(shell: type[Shell], tmp_path: Path) -> None:
    """The first of some seeds, as not every chain has every command."""
    seeds = range(FIRST_SEED, FIRST_SEED + 6)
    seed, message = next((seed, message) for seed in seeds if (message := _failure(seed, tmp_path, shell)))
    assert f"seed {seed}: " in message
    assert "elements are wrong" in message or "is within" in message
    folder = tmp_path / f"chain-{seed}"
    assert f"cd {folder}\n" in message
    assert "pet-" in (folder / "chain.sh").read_text()


def _failure(seed: int, work: Path, shell: type[Shell]) -> str:
    try:
        run_chain(seed, work, Figures(), shell)
    except ChainError as error:
        return str(error)
    return ""


def test_one_bit_of_a_tensor_that_no_step_changes_is_found() -> None:
    array = random(1, 8, 8, dtype="bf16")
    expected = {"w": same(fresh(array))}
    compare({"w": array}, expected, Tally())
    for bit in range(16):
        other = array.copy()
        other.view(np.uint16)[3, 4] ^= 1 << bit
        with pytest.raises(WrongTensorError, match=r"w\[3, 4\]"):
            compare({"w": other}, expected, Tally())


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_a_merged_weight_that_was_rounded_twice_or_in_the_wrong_direction_is_found(dtype: str) -> None:
    weight, a, b = fresh(random(1, 32, 32, dtype=dtype)), fresh(random(2, 4, 32)), fresh(random(3, 32, 4))
    exact = weight.ideal + 2.0 * (b.ideal @ a.ideal)
    expected = {"w": folded(weight, [Term(b, a, 2.0)], None)}
    compare({"w": rounded(exact, dtype)}, expected, Tally())
    wrong = {"rounded down": rounded(np.trunc(exact * 2**6) / 2**6, dtype), "not changed": weight.bits}
    wrong["another scale"] = rounded(weight.ideal + 2.02 * (b.ideal @ a.ideal), dtype)
    for array in wrong.values():
        with pytest.raises(WrongTensorError, match="elements are wrong"):
            compare({"w": array}, expected, Tally())


def test_what_roundings_lead_away_is_bounded_along_the_chain() -> None:
    """From float32 by way of bf16 to fp16: a step is exact, and the bound knows of the one before."""
    whole = fresh(random(1, 16, 16))
    once = compare({"w": rounded(whole.ideal, "bf16")}, {"w": cast(whole, "bf16")}, Tally())["w"]
    assert 0 < once.bound.max() <= 2.0**-9
    twice = cast(once, "fp16")
    assert np.all(np.abs(twice.near.astype(np.float64) - whole.ideal) <= twice.bound)
    other = Tensor(once.bits, whole.ideal + 1.0, once.bound)
    with pytest.raises(WrongTensorError, match="elements are wrong"):
        compare({"w": once.bits}, {"w": same(other)}, Tally())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_the_oracles_rounding_is_that_of_the_types(dtype: str) -> None:
    values = np.random.default_rng(1).integers(0, 2**32, 100_000, np.uint32).view(np.float32)
    values = values[np.abs(values) < 60_000]
    assert rounded(values.astype(np.float64), dtype).tobytes() == values.astype(NUMPY[dtype]).tobytes()
    between = np.float64(1 + 2**-8 + 2**-40)  # by way of float32 it is a tie, which goes to 1
    assert rounded(np.array([between]), "bf16").astype(np.float64)[0] == 1 + 2**-7
    assert np.array([between]).astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)[0] == 1


FOUR, LAST = np.array([[4.0, -1.0, 2.0, -3.0]]), np.array([[-1.0, -2.0, 6.0, 5.0]])


@pytest.mark.parametrize(
    ("how", "tasks", "expected"),
    [
        (Combination("linear"), [FOUR, LAST], [3, -3, 8, 2]),
        (Combination("magnitude_prune", 0.5), [FOUR, LAST], [4, 0, 6, 2]),
        (Combination("ties", 0.5), [FOUR, LAST], [4, 0, 6, 5]),
        (Combination("ties", 0.25), [np.ones((1, 4)), -np.ones((1, 4))], [1, 0, 0, 0]),
        (Combination("ties"), [np.full((1, 1), value) for value in (-5.0, 1.0, 2.0)], [-5]),
        (Combination("ties", by_count=True), [np.full((1, 1), value) for value in (-5.0, 1.0, 2.0)], [1.5]),
    ],
)
def test_the_oracle_combines_as_the_papers_say(
    how: Combination, tasks: list[np.ndarray], expected: list[float]
) -> None:
    updates = [Update(number, np.ones((1, 1)), task, 1.0, 1.0) for number, task in enumerate(tasks)]
    assert combined(updates, how, 1, "layer").right.tolist() == [expected]


def test_the_oracle_weighs_a_factor_by_the_root_and_gives_a_the_sign() -> None:
    product = combined([Update(0, np.ones((2, 1)), FOUR, 2.0, -2.0)], Combination("linear"), 1, "layer")
    assert product.right.tolist() == (-2 * FOUR).tolist()
    assert product.left.tolist() == [[2], [2]]


def test_the_oracle_drops_by_the_draws_of_seed_layer_and_adapter() -> None:
    updates = [Update(number, np.ones((2, 1)), np.ones((1, 50)), 1.0, 1.0) for number in (0, 2)]
    product = combined(updates, Combination("dare_linear_svd", 0.5, seed=3), 2, "layer")
    kept = [uniform_draws(3, f"layer {number} 0", 0, 100).reshape(50, 2).T < 0.5 for number in (0, 2)]
    assert np.allclose(product.left @ product.right, 2.0 * np.sum(kept, axis=0))


def test_the_oracle_cuts_to_the_largest_singular_values() -> None:
    update = Update(0, np.diag([3.0, 2.0, 1.0]), np.eye(3), 1.0, 1.0)
    for how in (Combination("cat", rank=2), Combination("svd", energy=13 / 14 - 0.01)):
        product = combined([update], how, 3, "layer")
        assert np.allclose(product.left @ product.right, np.diag([3.0, 2.0, 0.0]))
        assert product.ranks == (2, 2)
        assert 0 < product.off.max() < 1e-5


def test_the_oracle_allows_for_what_float32_may_decide_otherwise() -> None:
    """Two elements of the whole update that differ by less than a rounding: either may be the largest."""
    near = Update(0, np.eye(2), np.array([[1.0, 0.5], [0.25, 1.0 + 2.0**-26]]), 1.0, 1.0)
    clear = Update(0, np.eye(2), np.array([[1.0, 0.5], [0.25, 1.5]]), 1.0, 1.0)
    how = Combination("magnitude_prune_svd", 0.25, rank=2)
    assert combined([near], how, 2, "layer").off.max() > 1
    assert combined([clear], how, 2, "layer").off.max() < 1e-5


@pytest.mark.parametrize("names", [{"a"}, {"a", "b", "c"}])
def test_a_tensor_that_is_missing_or_too_many_is_found(names: set[str]) -> None:
    expected = {name: same(fresh(random(1, 4))) for name in ("a", "b")}
    with pytest.raises(WrongTensorError, match="missing"):
        compare({name: random(1, 4) for name in names}, expected, Tally())
