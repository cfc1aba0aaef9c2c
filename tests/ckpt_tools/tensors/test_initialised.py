"""Fresh values: spread by the definition, and a function of seed, name and place alone."""

from __future__ import annotations

import hashlib
import math
import pickle
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lazy_cases import regions, shapes, sliced

from ckpt_tools.tensors.dtypes import BY_NAME
from ckpt_tools.tensors.initialised import Initialised, uniform_bound
from ckpt_tools.tensors.lazy import Region
from ckpt_tools.tensors.normal import inverse_normal

RANDOM = ("normal", "uniform", "he_uniform", "xavier_uniform")


def tensor(
    kind: str, *shape: int, scale: float = 0.5, dtype: str = "fp32", name: str = "w", seed: int = 0
) -> Initialised:
    return Initialised(name, seed, kind, scale, BY_NAME[dtype], shape)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Initialised, Region]:
    kind = draw(st.sampled_from(["zeros", "ones", "arange", "normal", "uniform"]))
    dtype = "int64" if kind == "arange" else draw(st.sampled_from(["fp16", "bf16", "fp32"]))
    shape = draw(shapes(max_axes=3, max_size=9))
    return tensor(kind, *shape, dtype=dtype, seed=draw(st.integers(-(2**70), 2**70))), draw(regions(shape))


@given(cases())
def test_a_rectangle_has_the_bits_that_it_has_in_the_whole(case: tuple[Initialised, Region]) -> None:
    lazy, region = case
    whole, part = lazy.read_all(), lazy.read(region)
    assert part.dtype == lazy.dtype.numpy
    assert part.flags.c_contiguous
    assert part.tobytes() == np.ascontiguousarray(sliced(whole, region)).tobytes()


def test_the_bits_are_these_on_every_machine_and_with_every_numpy() -> None:
    found = tensor("normal", 2, 3, name="model.layers.0.attention.wq.mindpet_delta_lora_a", scale=0.01).read_all()
    assert found.tobytes().hex() == GOLDEN_NORMAL
    found = tensor("he_uniform", 2, 3, scale=math.sqrt(5), seed=7).read_all()
    assert found.tobytes().hex() == GOLDEN_UNIFORM


# Written by this implementation; the definition in the module's docstring is what they stand for.
GOLDEN_NORMAL = "58e82ebace59b03c2c42273c8cc7a4bbb4d863bba3718939"
GOLDEN_UNIFORM = "0445093daa2f04bed913a9be8e7043bd6e67c4be1146cebe"


def test_a_value_follows_from_the_definition() -> None:
    """The steps of the docstring, once more and one by one."""
    key = np.frombuffer(hashlib.sha256(b"3\0w").digest()[:16], "<u8").astype(np.uint64)
    for index in (0, 1, 5, 6, 11):
        word = int(np.random.Philox(counter=index // 4, key=key).random_raw(4)[index % 4])
        unit = ((word >> 12) + 0.5) / 2**52
        uniform = tensor("uniform", 3, 4, seed=3).read_all().reshape(-1)
        normal = tensor("normal", 3, 4, seed=3, scale=2.0).read_all().reshape(-1)
        assert uniform[index] == np.float32((2 * unit - 1) * 0.5)
        assert normal[index] == pytest.approx(2.0 * statistics.NormalDist().inv_cdf(unit), rel=1e-6)


@pytest.mark.parametrize("change", [{"seed": 1}, {"name": "v"}, {"seed": -1}])
@pytest.mark.parametrize("kind", RANDOM)
def test_another_seed_or_name_gives_other_values(kind: str, change: dict[str, object]) -> None:
    one, other = tensor(kind, 40, 50).read_all(), tensor(kind, 40, 50, **change).read_all()  # type: ignore[arg-type]
    assert not np.isin(one, other).all()
    assert abs(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]) < 0.1


@pytest.mark.parametrize("kind", RANDOM)
def test_values_are_distributed_as_the_definition_says(kind: str) -> None:
    """Kolmogorov-Smirnov against the exact distribution: for 200,000 draws 0.0044 is its critical value at 0.1 %."""
    values = np.sort(tensor(kind, 500, 400, scale=0.5).read_all().reshape(-1).astype(np.float64))
    if kind == "normal":
        normal = statistics.NormalDist(0, 0.5)
        expected = np.array([normal.cdf(value) for value in values[::50]])
        found = np.arange(values.size)[::50] / values.size
    else:
        bound = uniform_bound(kind, 0.5, (500, 400))
        assert -bound <= values[0] < -0.999 * bound
        assert 0.999 * bound < values[-1] <= bound
        expected, found = (values + bound) / (2 * bound), np.arange(values.size) / values.size
    assert np.abs(expected - found).max() < 0.0044


@pytest.mark.parametrize(
    ("kind", "scale", "shape", "bound"),
    [
        ("uniform", 0.25, (7,), 0.25),
        ("he_uniform", math.sqrt(5), (8, 4096), 1 / 64),  # PyTorch's kaiming_uniform(a=sqrt(5)): 1 / sqrt(fan_in)
        ("he_uniform", 0.0, (3, 24), 0.5),
        ("he_uniform", 0.0, (3, 6, 2, 2), 0.5),
        ("xavier_uniform", 0.0, (10, 14), 0.5),
    ],
)
def test_bounds_are_those_of_the_papers(kind: str, scale: float, shape: tuple[int, ...], bound: float) -> None:
    assert uniform_bound(kind, scale, shape) == pytest.approx(bound)


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_values_of_a_narrow_type_are_those_of_fp32_rounded_once(dtype: str) -> None:
    wide, narrow = tensor("normal", 30, 7), tensor("normal", 30, 7, dtype=dtype)
    assert narrow.read_all().tobytes() == wide.read_all().astype(BY_NAME[dtype].numpy).tobytes()


def test_the_inverse_of_the_normal_distribution_is_that_of_the_standard_library() -> None:
    middle = np.random.default_rng(0).random(5000)
    tails = np.concatenate([10.0 ** -np.arange(1, 17), 1 - 10.0 ** -np.arange(1, 16), [2.0**-53, 1 - 2.0**-53]])
    units = np.concatenate([middle, tails])
    expected = [statistics.NormalDist().inv_cdf(float(unit)) for unit in units]
    np.testing.assert_allclose(inverse_normal(units), expected, rtol=2e-15)
    half = np.array([0.5, 0.25, 0.75])
    assert inverse_normal(half)[0] == 0
    assert inverse_normal(half)[1] == -inverse_normal(half)[2]


def test_a_worker_that_gets_the_tensor_by_pickle_draws_the_same() -> None:
    lazy = tensor("normal", 30, 7, seed=3)
    assert pickle.loads(pickle.dumps(lazy)).read_all().tobytes() == lazy.read_all().tobytes()


def test_a_plans_digest_tells_fresh_tensors_apart() -> None:
    assert repr(tensor("normal", 3)) != repr(tensor("normal", 3, seed=1))
    assert repr(tensor("normal", 3)) == repr(tensor("normal", 3))
