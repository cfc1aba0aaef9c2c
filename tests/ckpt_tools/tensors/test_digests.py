"""A tensor's digest is that of its definition, whatever the stretches that it is made of."""

from __future__ import annotations

import itertools
import random
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt_tools.tensors.digests import CHUNK_BYTES, TensorDigest
from ckpt_tools.tensors.dtypes import BY_NAME

UINT8 = BY_NAME["uint8"]


def of_definition(content: bytes, dtype: str, shape: tuple[int, ...]) -> str:
    chunks = [content[start : start + CHUNK_BYTES] for start in range(0, len(content), CHUNK_BYTES)]
    header = f"{dtype}\0{','.join(map(str, shape))}\0".encode()
    return blake3(header + b"".join(blake3(chunk).digest() for chunk in chunks)).hexdigest()


def test_a_golden_digest_stays_what_it_is() -> None:
    digest = TensorDigest(UINT8, (5,), 5)
    digest.add(0, memoryview(b"hello"))
    assert digest.hexdigest() == of_definition(b"hello", "uint8", (5,))
    assert digest.hexdigest() == "d279224ec14b11a25bd5bdaa5dc084fab4c565e3314dbcb7de22e6a41cb14053"


def test_a_tensor_without_elements_has_the_digest_of_its_type_and_shape() -> None:
    assert TensorDigest(UINT8, (0, 3), 0).hexdigest() == blake3(b"uint8\x000,3\0").hexdigest()


@given(
    size=st.integers(1, 4 * CHUNK_BYTES + 5),
    cuts=st.lists(st.integers(0, 4 * CHUNK_BYTES), max_size=8),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=200, deadline=None)
def test_stretches_in_any_order_make_the_same_digest(size: int, cuts: list[int], order: random.Random) -> None:
    content = random.Random(size).randbytes(size)
    edges = sorted({0, size, *(cut for cut in cuts if cut < size)})
    stretches = list(itertools.pairwise(edges))
    order.shuffle(stretches)
    digest = TensorDigest(UINT8, (size,), size)
    for start, stop in stretches:
        assert digest.hexdigest() is None, "content is missing"
        digest.add(start, memoryview(content)[start:stop])
    assert digest.hexdigest() == of_definition(content, "uint8", (size,))


def test_what_comes_twice_or_overlaps_counts_once() -> None:
    content = random.Random(1).randbytes(3 * CHUNK_BYTES + 7)
    digest = TensorDigest(UINT8, (len(content),), len(content))
    for start, stop in ((10, 100), (0, 60), (0, 20), (90, CHUNK_BYTES + 3), (0, CHUNK_BYTES), (CHUNK_BYTES, 10**9)):
        digest.add(start, memoryview(content)[start:stop])
    assert digest.hexdigest() == of_definition(content, "uint8", (len(content),))


def test_threads_may_bring_the_stretches() -> None:
    content = random.Random(2).randbytes(2**22 + 1)
    starts = range(0, len(content), 10_007)
    for _ in range(5):
        digest = TensorDigest(UINT8, (len(content),), len(content))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(digest.add, starts, [memoryview(content)[start : start + 10_007] for start in starts]))
        assert digest.hexdigest() == of_definition(content, "uint8", (len(content),))


@pytest.mark.parametrize("other", [("int8", (5,)), ("uint8", (1, 5)), ("uint8", (5, 1))])
def test_type_and_shape_are_part_of_it(other: tuple[str, tuple[int, ...]]) -> None:
    assert of_definition(b"hello", *other) != of_definition(b"hello", "uint8", (5,))
    digest = TensorDigest(BY_NAME[other[0]], other[1], 5)
    digest.add(0, memoryview(b"hello"))
    assert digest.hexdigest() == of_definition(b"hello", *other)
