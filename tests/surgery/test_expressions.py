"""Expressions mean what `re` says they mean, and none takes longer than anyone waits."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable

import pytest

from surgery import expressions
from surgery.config import LoraConfig, Selection
from surgery.errors import CorruptInputError
from surgery.targets import selects

LAYER = "model.layers.0.self_attn." + "a" * 40
ENDLESS = r"(.*\.)?(a+)+$b"


@pytest.mark.parametrize("how", ["match", "fullmatch", "search"])
@pytest.mark.parametrize("pattern", ["a", ".*a", "b", r".*\.(q|a+)$", "(?P<x>m).*"])
def test_an_expression_finds_what_re_finds(how: str, pattern: str) -> None:
    ours, theirs = getattr(expressions, how)(pattern, LAYER), getattr(re, how)(pattern, LAYER)
    assert (ours and (ours.span(), ours.groupdict())) == (theirs and (theirs.span(), theirs.groupdict()))


@pytest.mark.parametrize(
    "use",
    [
        lambda: selects(LoraConfig("c", target_modules=ENDLESS), LAYER),
        lambda: selects(LoraConfig("c", target_modules=("q",), exclude_modules=ENDLESS), LAYER),
        lambda: selects(LoraConfig("c", target_modules=("q",), modules_to_save=("(a+)+b",)), LAYER),
        lambda: selects(LoraConfig("c", target_modules="(a+)+$b", selection=Selection.MINDFORMERS), LAYER),
        lambda: selects(LoraConfig("c", target_modules="(a+)+$b", selection=Selection.MINDFORMERS_PYNATIVE), LAYER),
        lambda: LoraConfig("c", rank_pattern={"(a+)+b": 4}).rank_of(LAYER),
        lambda: LoraConfig("c", alpha_pattern={"(a+)+b": 4}).alpha_of(LAYER),
    ],
)
def test_an_expression_that_would_take_years_is_corrupt(use: Callable[[], object]) -> None:
    handler = signal.getsignal(signal.SIGVTALRM)
    with pytest.raises(CorruptInputError, match="takes longer"):
        use()
    assert signal.getsignal(signal.SIGVTALRM) == handler
    assert signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
