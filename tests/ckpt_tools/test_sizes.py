"""Sizes as people write and read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt_tools.sizes import format_size, given_bytes, parse_size
from surgery.errors import UsageError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("1", 1),
        ("4096B", 4096),
        ("5GB", 5 * 1000**3),
        ("5 gb", 5 * 1000**3),
        ("2KB", 2000),
        ("1.5MB", 1_500_000),
        ("0.1TB", 10**11),
        ("1KiB", 1024),
        ("300MIB", 300 * 2**20),
        (" 1.5GiB ", 3 * 2**29),
        ("1TiB", 2**40),
        ("9007199254740993", 2**53 + 1),
    ],
)
def test_a_size_is_read_with_decimal_and_binary_units(text: str, count: int) -> None:
    assert parse_size(text) == count


def test_a_number_of_bytes_is_held_to_the_same() -> None:
    assert (given_bytes(None), given_bytes(4096), given_bytes("4KiB")) == (None, 4096, 4096)
    for size in (0, -1):
        with pytest.raises(UsageError):
            given_bytes(size)


@pytest.mark.parametrize(
    "text", ["", "0", "0GB", "0.1B", "-1", "5G", "GB", "1e9", "5 G B", "1,5GB", "inf", "٣GB", "9" * 99]
)
def test_what_is_no_size_above_zero_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(UsageError, match="GiB"):
        parse_size(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (999_499, "999 KB"),
        (999_500, "1 MB"),
        (1_480_000_000, "1.48 GB"),
        (13_500_000_000, "13.5 GB"),
        (512 * 2**20, "537 MB"),
        (7 * 10**15, "7000 TB"),
    ],
)
def test_bytes_are_shown_in_decimal_units_with_three_digits(count: int, text: str) -> None:
    assert format_size(count) == text


@given(st.integers(1, 10**15))
def test_what_is_shown_reads_back_within_its_three_digits(count: int) -> None:
    assert abs(parse_size(format_size(count)) - count) <= 0.005 * count
