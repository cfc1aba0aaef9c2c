"""Whatever is wrong with a file, its reader says where, what was expected, what was found, and what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from malformed import FILES, FLIPPED

from ckpt_tools import open_checkpoint
from surgery.errors import CorruptInputError, EncryptedInputError


@pytest.mark.parametrize("label", [one for one in FILES if one != FLIPPED])
def test_a_malformed_file_is_told_of_in_full(tmp_path: Path, label: str) -> None:
    path = tmp_path / f"input{Path(label).suffix}"
    path.write_bytes(FILES[label])
    with pytest.raises(CorruptInputError) as caught:
        open_checkpoint(path)
    for problem in caught.value.problems:
        assert problem.where.startswith(str(path))
        assert problem.found
        assert problem.expected or isinstance(caught.value, EncryptedInputError)  # what it is says all
        assert problem.remedy
