"""Detached signatures of outputs, as OpenSSF's `model-signing` makes and checks them, with keys that lie in files.

The package is an extra. Nothing here needs a network: the keys are elliptic-curve keys in PEM files.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

from ckpt_tools.writing.atomic import writing_failed
from ckpt_tools.writing.beside import write_file
from ckpt_tools.writing.leftovers import sweep_published
from ckpt_tools.writing.scratch import scratch_folder
from surgery.errors import (
    CorruptInputError,
    InputMissingError,
    MissingExtraError,
    OutputExistsError,
    Problem,
    UsageError,
    VerificationError,
)

__all__ = ["PASSWORD_VARIABLE", "check_signature", "sign_output", "signature_path"]

PASSWORD_VARIABLE = "PET_SURGERY_KEY_PASSWORD"
"""The environment variable with the password of an encrypted private key."""


def signature_path(output: Path, given: Path | None) -> Path:
    """Where an output's signature lies: where the user says, or beside it as `<output>.sig`."""
    return given if given is not None else output.parent / f"{output.resolve().name}.sig"


def sign_output(output: Path, private_key: Path, signature: Path) -> None:
    """Sign all files of an output.

    Raises:
        MissingExtraError: `model-signing` is not installed.
        InputMissingError: The key is not there.
        UsageError: It is no private key, or its password is wrong; the signature would lie in the output.
        OutputExistsError: The signature is there already.
        OutputLockedError: Another run writes it.
        ResourceError: It cannot be written.
    """
    model_signing = _load("--sign-key")
    _check_key("--sign-key", private_key)
    if os.path.lexists(signature):
        sweep_published(signature)
        taken = Problem(str(signature), "it exists already", "a free path", "Remove it, or --signature")
        raise OutputExistsError(taken)
    if output.is_dir() and output.resolve() in signature.resolve().parents:
        found = "a place within the output, which it signs"
        raise UsageError(Problem(f"--signature {signature}", found, "a place outside of it"))
    try:
        password = os.environ.get(PASSWORD_VARIABLE)
        # As bytes, whatever its annotation says: it hands them to `cryptography` as they are.
        config = model_signing.signing.Config().use_elliptic_key_signer(
            private_key=private_key, password=None if password is None else os.fsencode(password)
        )
    except (ValueError, TypeError) as error:
        remedy = f"An encrypted key's password goes into {PASSWORD_VARIABLE}"
        raise UsageError(Problem(f"--sign-key {private_key}", _first(error), "a private key in PEM", remedy)) from error
    # The package opens the path that it is given, and would follow a link there: so in a folder that nobody else has.
    with scratch_folder() as folder:
        config.sign(output, folder / "signature")
        data = (folder / "signature").read_bytes()
    try:
        write_file(signature, data, force=False)
    except OSError as error:
        raise writing_failed(signature, error) from error


def check_signature(output: Path, public_key: Path, signature: Path) -> None:
    """Make sure that the holder of a key signed all files of an output as they are.

    Raises:
        MissingExtraError: `model-signing` is not installed.
        InputMissingError: The key or the signature is not there.
        UsageError: The key is no public key.
        CorruptInputError: The signature is none.
        VerificationError: The files are others than those that were signed, or another key signed them.
    """
    model_signing = _load("--public-key")
    _check_key("--public-key", public_key)
    if not signature.is_file():
        remedy = "Name it with --signature, or make one with --sign-key"
        raise InputMissingError(Problem(str(signature), "no such file", "the signature of the output", remedy))
    try:
        config = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (ValueError, TypeError) as error:
        where = f"--public-key {public_key}"
        raise UsageError(Problem(where, _first(error), "an elliptic-curve public key in PEM")) from error
    try:
        config.verify(output, signature)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise CorruptInputError(Problem(str(signature), f"no signature ({_first(error)})", "a signature")) from error
    except ValueError as error:
        if type(error) is not ValueError:  # JSON and protobuf have errors of their own below it
            found = f"no signature ({_first(error)})"
            raise CorruptInputError(Problem(str(signature), found, "a signature")) from error
        raise VerificationError(Problem(str(output), _first(error), f"what {signature} signs")) from error
    except Exception as error:
        # The package lets the errors of the libraries below it through: of protobuf, and of an invalid signature.
        kind = type(error).__name__
        if kind == "InvalidSignature":
            raise VerificationError(Problem(str(signature), "a signature that does not hold")) from error
        if kind == "ParseError":
            raise CorruptInputError(Problem(str(signature), _first(error), "a signature")) from error
        raise


def _load(option: str) -> Any:
    try:
        return importlib.import_module("model_signing")
    except ImportError as error:
        remedy = "pip install 'pet-surgery[sign]'"
        raise MissingExtraError(Problem(option, f"model-signing is not there: {error}", remedy=remedy)) from error


def _check_key(option: str, key: Path) -> None:
    if not key.is_file():
        raise InputMissingError(Problem(f"{option} {key}", "no such file", "a key in PEM"))


def _first(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(". ")
