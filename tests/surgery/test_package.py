"""What `surgery` itself hands out."""

from __future__ import annotations

import subprocess
import sys

import pytest

import surgery


def test_without_mindspore_networks_are_refused_with_the_command_that_installs_it() -> None:
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('mindspore', 'mindformers', 'mindpet')))\n"  # as if they were not installed
        "import surgery\n"
        "try:\n"
        "    surgery.get_pet_model\n"
        "except surgery.errors.MissingExtraError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'pet-surgery[mindspore]'" in done.stdout, done.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'get_pet_modle'"):
        _ = surgery.get_pet_modle
