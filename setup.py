"""Builds the compiled kernels; everything else is in pyproject.toml.

The library in ckpt_tools/tensors is plain C, loaded with ctypes: one wheel a platform serves every version of
Python. It is optional: where no C compiler is found, the package is built without it and computes the same in numpy.
"""

from __future__ import annotations

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

FOLDER = "ckpt_tools/tensors"


class BuildLibrary(build_ext):
    """Builds a plain library, whose name says nothing of a version of Python."""

    def get_ext_filename(self, fullname: str) -> str:
        return fullname.replace(".", "/") + ".so"


class PlatformWheel(bdist_wheel):
    """A wheel for one platform and every Python."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[
        Extension(
            "ckpt_tools.tensors._native",
            sources=[f"{FOLDER}/native.c"],
            depends=[f"{FOLDER}/native_variant.h"],
            # W + delta and nothing else: a fused multiply-add would round once where numpy rounds twice.
            extra_compile_args=["-O3", "-g0", "-ffp-contract=off", "-fno-strict-aliasing"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": PlatformWheel},
)
