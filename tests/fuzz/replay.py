"""Let every reader read the inputs of `corpus/` and `finds/` once more, without atheris: `replay.py SCRATCH_FOLDER`.

The process's memory is limited. It prints how many inputs each target has and what was found, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "support"))

from fuzz_limits import examine, limit_memory  # noqa: E402
from fuzz_targets import TARGETS  # noqa: E402


def main(scratch: Path) -> None:
    """Read them all."""
    results: dict[str, dict[str, object]] = {}
    limit_memory()
    for name, target in TARGETS.items():
        folder = scratch / name / "input"
        folder.mkdir(parents=True)
        target.prepare(folder)
        inputs = [path for kind in ("corpus", "finds") for path in sorted((HERE / kind / name).glob("*"))]
        found = {path: examine(target, folder, path.read_bytes()) for path in inputs}
        finds = [f"{path}: {find.text}" for path, find in found.items() if find is not None]
        results[name] = {"inputs": len(inputs), "finds": finds}
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
