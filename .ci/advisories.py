"""Answers as OSV does from a checkout of https://github.com/pypa/advisory-database: `ADVISORIES=FOLDER make audit`."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version


def parse(version: str) -> Version:
    """A version; what is none (`2.6.0-NA`) comes before all others."""
    try:
        return Version(version)
    except InvalidVersion:
        return Version("0")


def in_range(version: Version, events: list[dict[str, str]]) -> bool:
    """Whether a version is in a range, as OSV's schema defines it: the last event at or before the version decides."""
    inside = False
    for kind, bound in sorted((next(iter(event.items())) for event in events), key=lambda event: parse(event[1])):
        if version > parse(bound) or (version == parse(bound) and kind != "last_affected"):
            inside = kind == "introduced"
    return inside


def affects(advisory: dict[str, Any], package: str, version: str) -> bool:
    """Whether an advisory that was not withdrawn names the release."""
    if "withdrawn" in advisory:
        return False
    for affected in advisory["affected"]:
        if canonicalize_name(affected["package"]["name"]) != canonicalize_name(package):
            continue
        ranges = [each["events"] for each in affected.get("ranges", []) if each["type"] == "ECOSYSTEM"]
        listed = [parse(each) for each in affected.get("versions", [])]
        if parse(version) in listed or any(in_range(parse(version), events) for events in ranges):
            return True
    return False


def find(folder: Path, package: str, version: str) -> list[dict[str, Any]]:
    """The advisories in a checkout that name the release."""
    # The loader that knows text alone: to others `2.10` is a number, and a date is none that JSON can have.
    files = sorted((folder / "vulns" / canonicalize_name(package)).glob("*.yaml"))
    advisories = [yaml.BaseLoader(file.read_text(encoding="utf-8")).get_single_data() for file in files]
    return [advisory for advisory in advisories if affects(advisory, package, version)]


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    """The address of a service on this machine that answers from the checkout while the context lasts."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = find(folder, query["package"]["name"], query["version"])
            body = json.dumps({"vulns": found} if found else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

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
