"""Tensors that are not there yet: element types, files as sources, lazy tensors, and the arithmetic of folds."""
