"""What .ci/advisories.py finds in a checkout of the advisories, and answers as OSV does."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from advisories import affects, find, serve

FIXED = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "1.10"}]}
TWICE = {
    "type": "ECOSYSTEM",
    "events": [{"introduced": "2.0"}, {"fixed": "2.3"}, {"introduced": "0"}, {"fixed": "1.5"}],
}
LAST = {"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}, {"last_affected": "2.0"}]}
OPEN = {"type": "ECOSYSTEM", "events": [{"introduced": "1.0"}]}
NO_VERSION = {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"last_affected": "2.6.0-NA"}]}
COMMITS = {"type": "GIT", "events": [{"introduced": "0"}]}


@pytest.mark.parametrize(
    ("affected", "version", "expected"),
    [
        ({"ranges": [FIXED]}, "1.9", True),
        ({"ranges": [FIXED]}, "1.10", False),
        ({"ranges": [TWICE]}, "1.4", True),
        ({"ranges": [TWICE]}, "1.5", False),
        ({"ranges": [TWICE]}, "2.0", True),
        ({"ranges": [TWICE]}, "2.3", False),
        ({"ranges": [LAST]}, "0.9", False),
        ({"ranges": [LAST]}, "2.0", True),
        ({"ranges": [LAST]}, "2.0.1", False),
        ({"ranges": [OPEN]}, "9", True),
        ({"ranges": [NO_VERSION]}, "2.13.0", False),
        ({"ranges": [COMMITS]}, "1.0", False),
        ({"ranges": [FIXED], "versions": ["3.0.0"]}, "3.0", True),
        ({"versions": ["1.0"]}, "1.1", False),
    ],
)
def test_a_release_is_affected_by_its_ranges_and_by_its_list(
    affected: dict[str, object], version: str, expected: bool
) -> None:
    advisory = {"affected": [{"package": {"name": "Sample_Package"}, **affected}]}
    assert affects(advisory, "sample-package", version) is expected


def test_what_affects_another_package_does_not_affect_this_one() -> None:
    assert not affects({"affected": [{"package": {"name": "other"}, "versions": ["1.0"]}]}, "sample", "1.0")


def test_a_withdrawn_advisory_affects_nothing() -> None:
    advisory = {"withdrawn": "2026-01-01T00:00:00Z", "affected": [{"package": {"name": "a"}, "versions": ["1.0"]}]}
    assert not affects(advisory, "a", "1.0")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "vulns" / "sample"
    folder.mkdir(parents=True)
    # Unquoted: to a reader that knows numbers, 2.10 is 2.1.
    (folder / "PYSEC-2026-1.yaml").write_text(
        "id: PYSEC-2026-1\npublished: 2026-07-01T12:00:00Z\naffected:\n- package: {name: sample, ecosystem: PyPI}\n"
        "  versions: [2.10]\n",
        encoding="utf-8",
    )
    return tmp_path


def test_versions_and_dates_of_a_checkout_are_text(checkout: Path) -> None:
    (advisory,) = find(checkout, "Sample", "2.10")
    assert advisory["published"] == "2026-07-01T12:00:00Z"
    assert find(checkout, "sample", "2.1") == []
    assert find(checkout, "unheard-of", "1.0") == []


def test_the_service_answers_as_osv_does(checkout: Path) -> None:
    def post(version: str) -> object:
        query = {"package": {"name": "sample", "ecosystem": "PyPI"}, "version": version}
        with urllib.request.urlopen(urllib.request.Request(url, json.dumps(query).encode())) as answer:
            return json.load(answer)

    with serve(checkout) as url:
        assert post("2.10") == {"vulns": find(checkout, "sample", "2.10")}
        assert post("2.11") == {}
