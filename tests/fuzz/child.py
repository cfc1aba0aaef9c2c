"""One fuzzing process, which `run.py` starts: `child.py TARGET FINDS [libFuzzer's arguments]`."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from pathlib import Path
from random import Random

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests/support")]

with atheris.instrument_imports(include=["ckpt_tools", "surgery", "json"]):
    import fuzz_limits
    from fuzz_targets import TARGETS


def main(name: str, finds: Path, *arguments: str) -> None:
    """Fuzz until libFuzzer ends the process."""
    target = TARGETS[name]
    finds.mkdir(parents=True, exist_ok=True)
    scratch = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    folder = Path(scratch.name, "input")
    folder.mkdir()
    target.prepare(folder)
    seen: set[str] = set()

    def examine(data: bytes) -> None:
        find = fuzz_limits.examine(target, folder, data)
        if find is None or find.signature in seen:
            return
        seen.add(find.signature)
        stem = hashlib.sha256(find.signature.encode()).hexdigest()[:12]
        (finds / f"{stem}.input").write_bytes(data)
        (finds / f"{stem}.txt").write_text(f"{find.signature}\n\n{find.text}", "utf-8", "backslashreplace")

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        assert target.mutate is not None
        changed = target.mutate(data, Random(seed), lambda part: bytes(atheris.Mutate(part, max(len(part) + 64, 64))))
        return changed[:max_size]

    fuzz_limits.limit_memory()
    options = {"custom_mutator": mutate} if target.mutate is not None else {}
    atheris.Setup([sys.argv[0], *arguments], examine, **options)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), *sys.argv[3:])
