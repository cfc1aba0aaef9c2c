"""JSON from files that nobody vouches for: UTF-8, no key twice, no half characters, no NaN, no endless depth."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import NoReturn

from ckpt_tools.formats.ckpt_values import quote_name
from surgery.errors import CorruptInputError, Problem

__all__ = ["MAX_JSON_BYTES", "is_encodable", "parse_json"]

MAX_JSON_BYTES = 100_000_000
"""The limit that safetensors sets to its header: an index of a million tensors; the largest models have some 10^5."""

_REMEDY = "It is damaged, or was changed by hand: copy it again from where it was written, or write it again"


def is_encodable(text: str) -> bool:
    """Whether a text is Unicode that UTF-8 can hold: without half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def parse_json(
    data: bytes | bytearray, where: str, on_object: Callable[[dict[str, object]], object] | None = None
) -> object:
    """The value that a JSON text stands for.

    Args:
        data: The text, UTF-8.
        where: What to call the text in an error.
        on_object: Turns each object, the innermost first, into what takes its place.

    Raises:
        CorruptInputError: It is no UTF-8, no JSON, too deeply nested, holds half a surrogate pair, or an object holds a
            key twice.
    """
    # Raw bytes of half a surrogate pair are no UTF-8; only an escape can smuggle one in.
    has_escapes = b"\\u" in data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CorruptInputError(Problem(where, f"byte {error.start} is not UTF-8", "UTF-8 text", _REMEDY)) from error
    del data  # a large document need not be there twice while its values take shape

    def unique(pairs: list[tuple[str, object]]) -> object:
        members = dict(pairs)
        if len(members) != len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
            raise CorruptInputError(Problem(where, f"the key {quote_name(twice)} twice", "each key once", _REMEDY))
        if has_escapes:
            for text in (text for pair in pairs for text in pair if isinstance(text, str) and not is_encodable(text)):
                raise CorruptInputError(
                    Problem(where, f"half a surrogate pair in {quote_name(text)}", "Unicode", _REMEDY)
                )
        return members if on_object is None else on_object(members)

    def refuse(constant: str) -> NoReturn:
        raise ValueError(f"{constant} is no JSON")

    try:
        return json.loads(text, object_pairs_hook=unique, parse_constant=refuse)
    except RecursionError:
        # Without its cause: a traceback of the exhausted stack helps nobody.
        raise CorruptInputError(Problem(where, "JSON nested too deep", "a few levels", _REMEDY)) from None
    except ValueError as error:
        raise CorruptInputError(Problem(where, f"broken JSON ({error})", "JSON", _REMEDY)) from error
