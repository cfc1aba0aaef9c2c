"""`make audit` on small projects, with a service on this machine whose answers are written down here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import audit
import pytest

CI = Path(__file__).parents[2] / ".ci"
ANSWERS = dict[str, list[str]]  # the identifiers of vulnerabilities, by release
KNOWING: ANSWERS = {audit.KNOWN_VULNERABLE: ["CVE-2019-10906"]}


@contextmanager
def service(answers: ANSWERS, status: int = 200, body: bytes | None = None) -> Iterator[str]:
    """The address of a service that answers so; `body` answers every question."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            name, version = query["package"]["name"], query["version"]
            fixed = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9.0"}]}
            affected = [{"package": {"name": name, "ecosystem": "PyPI"}, "ranges": [fixed]}]
            found = [
                {"id": name_of_it, "summary": "bad", "aliases": [f"GHSA-{name_of_it}"], "affected": affected}
                for name_of_it in answers.get(f"{name}=={version}", [])
            ]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if body is not None else json.dumps({"vulns": found} if found else {}).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/query"
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with a copy of the audit, and the releases that its requirements allow."""
    shutil.copytree(CI, tmp_path / ".ci", ignore=shutil.ignore_patterns("__pycache__", "*.toml"))
    (tmp_path / ".ci" / "ignored-vulnerabilities.toml").touch()
    (tmp_path / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["builder>=1"]\n'
        '[project]\nname = "audited"\nversion = "1"\ndependencies = ["needed>=1"]\n'
        '[project.optional-dependencies]\nold = ["chosen==1"]\nnew = ["chosen==2", "needed>=2"]\n',
        encoding="utf-8",
    )
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    for name in ("builder", "needed", "chosen"):
        for version in ("1", "2", "3"):
            with zipfile.ZipFile(wheels / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
                folder = f"{name}-{version}.dist-info"
                wheel.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
                wheel.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
                wheel.writestr(f"{folder}/RECORD", "")
    return tmp_path


def run(project: Path, **environment: str) -> tuple[int, str, str]:
    """The audit's exit code, what it prints, and what it says of services."""
    clean = {name: value for name, value in os.environ.items() if name not in {"PIP_AUDIT_OSV_URL", "ADVISORIES"}}
    clean |= {"UV_NO_INDEX": "1", "UV_FIND_LINKS": str(project / "wheels"), "no_proxy": "127.0.0.1", **environment}
    done = subprocess.run(
        [sys.executable, project / ".ci" / "audit.py"], capture_output=True, text=True, check=False, env=clean
    )
    return done.returncode, done.stdout, done.stderr


def ignore(project: Path, package: str, name: str) -> None:
    (project / ".ci" / "ignored-vulnerabilities.toml").write_text(
        f'[[ignored]]\npackage = "{package}"\nids = ["{name}"]\nreason = "no release mends it"\n', encoding="utf-8"
    )


def test_every_lower_bound_is_asked_about_and_clean(project: Path) -> None:
    with service(KNOWING) as url:
        code, out, err = run(project, PIP_AUDIT_OSV_URL=url)
    # builder 1, needed 1 and 2, chosen 1 and 2.
    assert (code, out) == (0, "osv: asked about 5 lower bounds, 0 have known vulnerabilities\n"), err


@pytest.mark.parametrize("release", ["builder==1", "needed==1", "needed==2", "chosen==1", "chosen==2"])
def test_a_vulnerable_bound_fails(project: Path, release: str) -> None:
    with service(KNOWING | {release: ["CVE-1"]}) as url:
        code, out, _ = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 1
    assert f"{release}: CVE-1, mended in 9.0\n" in out


def test_a_newer_release_that_is_vulnerable_is_no_matter(project: Path) -> None:
    with service(KNOWING | {"needed==3": ["CVE-1"]}) as url:
        assert run(project, PIP_AUDIT_OSV_URL=url)[0] == 0


@pytest.mark.parametrize(
    ("answers", "status", "body", "reason"),
    [
        ({}, 200, None, "has no advisories"),
        (KNOWING, 404, None, "ServiceError"),
        (KNOWING, 503, None, "ServiceError"),
        (KNOWING, 200, b"<html>log in</html>", "JSONDecodeError"),
    ],
)
def test_a_service_that_does_not_answer_is_told_of(
    project: Path, answers: ANSWERS, status: int, body: bytes | None, reason: str
) -> None:
    with service(answers, status, body) as url:
        code, out, err = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 2
    assert out.startswith("AUDIT NOT DONE: osv did not answer")
    assert reason in err


def test_a_service_that_is_not_there_is_told_of(project: Path) -> None:
    with service(KNOWING) as url:
        pass
    code, out, err = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 2
    assert out.startswith("AUDIT NOT DONE: osv did not answer")
    assert "refused" in err


def test_a_bound_that_no_release_meets_is_told_of(project: Path) -> None:
    (project / "wheels" / "builder-1-py3-none-any.whl").unlink()
    shutil.copy(project / "pyproject.toml", project / "before.toml")
    text = (project / "before.toml").read_text(encoding="utf-8")
    (project / "pyproject.toml").write_text(text.replace("chosen==2", "chosen==7"), encoding="utf-8")
    code, out, err = run(project)
    assert code == 2
    assert out.startswith("AUDIT NOT DONE: uv could not resolve")
    assert "chosen==7" in err


def test_what_pip_audit_skips_is_no_answer(capsys: pytest.CaptureFixture[str]) -> None:
    assert audit.ask("osv", ["sample @ https://127.0.0.1/sample.whl"]) is None
    assert "no answer for sample" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["CVE-1", "GHSA-CVE-1"])
def test_an_ignored_vulnerability_is_printed_with_its_reason(project: Path, name: str) -> None:
    ignore(project, "chosen", name)
    with service(KNOWING | {"chosen==1": ["CVE-1"]}) as url:
        code, out, _ = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 0
    assert "chosen==1: CVE-1 is ignored: no release mends it\n" in out


def test_an_ignored_vulnerability_hides_no_other(project: Path) -> None:
    ignore(project, "chosen", "CVE-1")
    with service(KNOWING | {"chosen==1": ["CVE-1", "CVE-2"], "builder==1": ["CVE-1"]}) as url:
        code, out, _ = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 1
    assert "chosen==1: CVE-2, mended" in out
    assert "builder==1: CVE-1, mended" in out


def test_what_is_required_at_run_time_is_never_ignored(project: Path) -> None:
    ignore(project, "needed", "CVE-1")
    with service(KNOWING | {"needed==1": ["CVE-1"]}) as url:
        code, out, _ = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 1
    assert "needed==1: CVE-1, mended" in out


def test_what_is_ignored_in_vain_is_told_of(project: Path) -> None:
    ignore(project, "chosen", "CVE-1")
    with service(KNOWING) as url:
        code, out, _ = run(project, PIP_AUDIT_OSV_URL=url)
    assert code == 0
    assert "chosen: CVE-1 is ignored in vain" in out


def test_a_checkout_of_the_advisories_answers_in_the_place_of_a_service(project: Path) -> None:
    for name, version in (("jinja2", "2.10"), ("needed", "1")):
        folder = project / "vulns" / name
        folder.mkdir(parents=True)
        (folder / "PYSEC-1.yaml").write_text(
            f"id: PYSEC-1\npublished: 2026-07-01T12:00:00Z\naffected:\n"
            f"- package: {{name: {name}, ecosystem: PyPI}}\n  versions: ['{version}']\n",
            encoding="utf-8",
        )
    code, out, _ = run(project, ADVISORIES=str(project))
    assert code == 1
    assert "needed==1: PYSEC-1, mended in no release\n" in out


def test_a_folder_without_advisories_is_no_answer(project: Path) -> None:
    code, out, err = run(project, ADVISORIES=str(project / "nothing"))
    assert code == 2
    assert out.startswith("AUDIT NOT DONE")
    assert "has no advisories" in err
