"""Whether the lower bounds of pyproject.toml have known vulnerabilities: `make audit`.

PyPI is asked, then OSV where PyPI does not answer. Two variables of the environment name one service in their place:
PIP_AUDIT_OSV_URL, pip-audit's own, the address of one that answers as OSV does, and ADVISORIES a checkout of
https://github.com/pypa/advisory-database, for a machine without a network.

Exit code 0: asked, and none are known but those that ignored-vulnerabilities.toml beside this file gives a reason for;
1: some are, and printed; 2: nobody could be asked. pip-audit by itself counts what its service has never heard of as
clean: all of it, where a mirror serves packages without their advisories. So a release known to be vulnerable is asked
about too, and a service that knows nothing of it has not answered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from contextlib import ExitStack
from itertools import zip_longest
from pathlib import Path
from typing import Any

from advisories import serve

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
IGNORED = Path(__file__).with_name("ignored-vulnerabilities.toml")
UV = str(Path(sys.executable).with_name("uv"))
KNOWN_VULNERABLE = "jinja2==2.10"  # CVE-2019-10906

Vulnerabilities = dict[str, list[dict[str, Any]]]  # by `name==version`


def lowest(*arguments: str, requirements: str | None = None) -> set[str]:
    """The lowest releases that satisfy the direct requirements, `name==version` each."""
    command = [UV, "pip", "compile", "--quiet", "--no-header", "--no-annotate", "--no-deps"]
    # Any interpreter will do, and uv would run all that are on the path to find one of that version.
    command += ["--resolution", "lowest-direct", "--python-version", "3.10", "--python", sys.executable, *arguments]
    run = subprocess.run(command, cwd=ROOT, input=requirements, stdout=subprocess.PIPE, text=True, check=True)
    return set(run.stdout.splitlines())


def rounds(releases: set[str]) -> list[list[str]]:
    """The releases in lists that have each package once, as pip-audit wants them."""
    by_name = defaultdict(list)
    for release in sorted(releases):
        by_name[release.partition("==")[0]].append(release)
    return [[release for release in column if release] for column in zip_longest(*by_name.values())]


def ask(service: str, releases: list[str]) -> Vulnerabilities | None:
    """What the service knows of each release; None where it does not answer for all of them."""
    command = [sys.executable, "-m", "pip_audit", "--vulnerability-service", service, "--format", "json"]
    command += ["--no-deps", "--disable-pip", "--progress-spinner", "off", "--timeout", "10", "--requirement"]
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(releases))
        file.flush()
        run = subprocess.run([*command, file.name], capture_output=True, text=True, check=False)
    try:
        answers = json.loads(run.stdout)["dependencies"]
    except ValueError:
        print(f"{service}: {run.stderr.strip().splitlines()[-1]}", file=sys.stderr)
        return None
    # What is skipped has a reason in the place of a version.
    known = {f"{answer['name']}=={answer['version']}": answer["vulns"] for answer in answers if "version" in answer}
    if unknown := sorted(set(releases) - set(known)):
        print(f"{service}: no answer for {', '.join(unknown)}", file=sys.stderr)
        return None
    return known


def audit(service: str, bounds: set[str]) -> Vulnerabilities | None:
    """The vulnerabilities that the service knows; None where it does not answer."""
    known: Vulnerabilities = {}
    for releases in rounds(bounds | {KNOWN_VULNERABLE}):
        answer = ask(service, releases)
        if answer is None:
            return None
        known |= answer
    if not known.pop(KNOWN_VULNERABLE):
        print(f"{service}: has no advisories, as it takes {KNOWN_VULNERABLE} for clean", file=sys.stderr)
        return None
    return known


def judge(known: Vulnerabilities, runtime: set[str], ignored: list[dict[str, Any]]) -> int:
    """Print what is known; how many releases have vulnerabilities that are not ignored.

    A requirement at run time, `runtime`, is never ignored.
    """
    reasons = {(entry["package"], name): entry["reason"] for entry in ignored for name in entry["ids"]}
    met, vulnerable = set(), set()
    for release, vulnerabilities in known.items():
        package = release.partition("==")[0]
        for vulnerability in vulnerabilities:
            names = {(package, name) for name in (vulnerability["id"], *vulnerability["aliases"])} & set(reasons)
            mended = ", ".join(vulnerability["fix_versions"]) or "no release"
            if names and release not in runtime:
                met |= names
                print(f"{release}: {vulnerability['id']} is ignored: {reasons[names.pop()]}")
            else:
                vulnerable.add(release)
                print(f"{release}: {vulnerability['id']}, mended in {mended}")
    for package, name in sorted(set(reasons) - met):
        print(f"{package}: {name} is ignored in vain, remove it from {IGNORED.name}")
    return len(vulnerable)


def main() -> int:
    """Ask the first service that answers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    ignored = tomllib.loads(IGNORED.read_text(encoding="utf-8")).get("ignored", [])
    try:
        runtime = lowest("pyproject.toml")
        bounds = runtime | lowest("-", requirements="\n".join(project["build-system"]["requires"]))
        # Each by itself, as some exclude each other, and one may ask for more of a package than another.
        for extra in project["project"].get("optional-dependencies", {}):
            bounds |= lowest("--extra", extra, "pyproject.toml")
    except subprocess.CalledProcessError:
        print("AUDIT NOT DONE: uv could not resolve the lower bounds; it says why above")
        return 2
    with ExitStack() as stack:
        if folder := os.environ.get("ADVISORIES"):
            os.environ["PIP_AUDIT_OSV_URL"] = stack.enter_context(serve(Path(folder)))
            os.environ["no_proxy"] = "127.0.0.1"
        services = ("osv",) if "PIP_AUDIT_OSV_URL" in os.environ else ("pypi", "osv")
        for service in services:
            known = audit(service, bounds)
            if known is not None:
                break
        else:
            print(f"AUDIT NOT DONE: {' and '.join(services)} did not answer, so nobody knows about these lower bounds")
            return 2
    vulnerable = judge(known, runtime, ignored)
    print(f"{service}: asked about {len(known)} lower bounds, {vulnerable} have known vulnerabilities")
    return 1 if vulnerable else 0


if __name__ == "__main__":
    sys.exit(main())
