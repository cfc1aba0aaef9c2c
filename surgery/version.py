"""The version of this tool, as reports, metadata and `--version` tell it."""

__version__ = "0.1.0"
