"""Whether the lower bounds of pyproject.toml have known vulnerabilities: `make audit`.

Exit code 0: asked, and none are known. 1: some are, and printed. 2: nobody could be asked. pip-audit by itself
counts what its service has never heard of as clean: all of it, where a mirror serves packages without their advisories.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Apart, as MindSpore's two generations exclude each other.
EXTRAS = (("html", "sign", "ray", "mindspore", "test", "docs"), ("classic",))
SERVICES = ("pypi", "osv")
UV = str(Path(sys.executable).with_name("uv"))


def lower_bounds(extras: tuple[str, ...]) -> str:
    """The lowest releases that satisfy the direct requirements with these extras, `name==version` a line."""
    command = [UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps"]
    command += ["--resolution", "lowest-direct", "--python-version", "3.10"]
    command += [*(f"--extra={extra}" for extra in extras), "pyproject.toml"]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def ask(service: str, requirements: str) -> list[dict[str, Any]] | None:
    """What the service knows of each package; None where it does not answer for all of them."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10", "--requirement"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write(requirements)
        file.flush()
        run = subprocess.run([*command, file.name], capture_output=True, text=True, check=False)
    try:
        packages: list[dict[str, Any]] = json.loads(run.stdout)["dependencies"]
    except ValueError:
        print(f"{service}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if unknown:
        print(f"{service}: no answer for {', '.join(unknown)}", file=sys.stderr)
        return None
    return packages


def audit(service: str, bounds: list[str]) -> dict[str, list[dict[str, Any]]] | None:
    """The vulnerabilities that the service knows, by package; None where it does not answer."""
    known = {}
    for requirements in bounds:
        packages = ask(service, requirements)
        if packages is None:
            return None
        known.update({f"{package['name']}=={package['version']}": package["vulns"] for package in packages})
    return known


def main() -> int:
    """Ask the first service that answers."""
    try:
        bounds = [lower_bounds(extras) for extras in EXTRAS]
    except subprocess.CalledProcessError:
        print("AUDIT NOT DONE: uv could not resolve the lower bounds; it says why above")
        return 2
    for service in SERVICES:
        known = audit(service, bounds)
        if known is not None:
            break
    else:
        print(f"AUDIT NOT DONE: {' and '.join(SERVICES)} did not answer, so nobody knows about these lower bounds")
        return 2
    vulnerable = [package for package, vulnerabilities in known.items() if vulnerabilities]
    for package in vulnerable:
        for vulnerability in known[package]:
            print(f"{package}: {vulnerability['id']}, mended in {', '.join(vulnerability['fix_versions']) or 'none'}")
    print(f"{service}: asked about {len(known)} lower bounds, {len(vulnerable)} have known vulnerabilities")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
