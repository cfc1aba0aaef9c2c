"""Tests of what only the classic pair of packages has: `make test-classic`.

MindFormers writes its logs below the working folder unless told otherwise, and does so when it is imported.
"""

from __future__ import annotations

import os
import tempfile

_LOGS = tempfile.TemporaryDirectory(prefix="mindformers-logs-")
os.environ.setdefault("LOG_MF_PATH", _LOGS.name)
