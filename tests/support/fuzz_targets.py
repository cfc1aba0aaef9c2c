"""All readers of files that nobody vouches for, as targets for fuzzing."""

from __future__ import annotations

from fuzz_documents import DOCUMENTS
from fuzz_weights import WEIGHTS

__all__ = ["TARGETS"]

TARGETS = {**WEIGHTS, **DOCUMENTS}
"""A name to its reader."""
