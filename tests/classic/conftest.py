"""Tests of what only the classic pair of packages has: `make test-classic`."""
