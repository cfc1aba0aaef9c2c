"""Undoing a merge: merged model, adapters and patch -> plan -> report."""

from ckpt_tools.unmerging.operation import unmerge

__all__ = ["unmerge"]
