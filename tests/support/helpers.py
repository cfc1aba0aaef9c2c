"""What several test modules need: a laid out file as bytes in memory."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt_tools.formats.model import FileLayout, NamedTensor


def materialise(layout: FileLayout, tensors: Sequence[NamedTensor]) -> bytes:
    """The bytes of a small output file; asserts that literals and payloads cover it exactly once."""
    contents = [tensor.read_all().tobytes() for _, tensor in tensors]
    pieces = list(layout.literals)
    pieces += [(payload.offset, contents[payload.tensor][payload.start : payload.stop]) for payload in layout.payloads]
    assert [p.offset for p in layout.payloads] == sorted(p.offset for p in layout.payloads)
    assert [offset for offset, _ in layout.literals] == sorted(offset for offset, _ in layout.literals)
    result = b""
    for offset, data in sorted((piece for piece in pieces if piece[1]), key=lambda piece: piece[0]):
        assert offset == len(result), f"a gap or an overlap at byte {offset}, after {len(result)} bytes"
        result += data
    assert len(result) == layout.size
    return result
