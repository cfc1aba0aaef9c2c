"""Signatures are model-signing's own: made here and checked there, and the other way round; nothing else passes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import model_signing
import pytest
from merge_cases import BASE, write, write_folder

from ckpt_tools import transform
from ckpt_tools.verifying import verify_output
from ckpt_tools.verifying.signatures import PASSWORD_VARIABLE
from surgery.errors import (
    CorruptInputError,
    InputMissingError,
    OutputExistsError,
    ResourceError,
    UsageError,
    VerificationError,
)


def make_keys(folder: Path, name: str, *options: str) -> tuple[Path, Path]:
    """A private and a public key, as OpenSSL makes them."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub.pem"
    plain = folder / f"{name}.plain.pem"
    subprocess.run(
        ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", plain],
        check=True,
        capture_output=True,
    )
    subprocess.run(["openssl", "ec", "-in", plain, "-pubout", "-out", public], check=True, capture_output=True)
    subprocess.run(["openssl", "ec", "-in", plain, *options, "-out", private], check=True, capture_output=True)
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return make_keys(tmp_path, "key")


@pytest.fixture(params=["folder", "out.ckpt", "out.safetensors"])
def output(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    if request.param == "folder":
        write_folder(tmp_path / "base", BASE)
        transform(tmp_path / "base", output=tmp_path / "folder")
    else:
        write(tmp_path / "base.ckpt", BASE)
        transform(tmp_path / "base.ckpt", output=tmp_path / request.param)
    return tmp_path / request.param


def test_what_was_signed_is_checked_with_the_public_key(output: Path, keys: tuple[Path, Path]) -> None:
    signed = verify_output(output, sign_key=keys[0])
    assert signed.signature == str(output.parent / f"{output.name}.sig")
    assert verify_output(output, public_key=keys[1]).signature == signed.signature


def test_model_signing_itself_accepts_the_signature(output: Path, keys: tuple[Path, Path]) -> None:
    verify_output(output, sign_key=keys[0])
    verifier = model_signing.verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    verifier.verify(output, output.parent / f"{output.name}.sig")


def test_a_signature_of_model_signing_itself_is_accepted(output: Path, keys: tuple[Path, Path]) -> None:
    place = output.parent / "elsewhere.sig"
    model_signing.signing.Config().use_elliptic_key_signer(private_key=keys[0]).sign(output, place)
    assert verify_output(output, public_key=keys[1], signature=place).signature == str(place)


def test_another_key_and_other_files_are_refused(tmp_path: Path, output: Path, keys: tuple[Path, Path]) -> None:
    verify_output(output, sign_key=keys[0])
    with pytest.raises(VerificationError, match="Key mismatch"):
        verify_output(output, public_key=make_keys(tmp_path, "other")[1])
    file = output if output.is_file() else output / "pet-manifest.json"
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises((VerificationError, CorruptInputError)) as caught:
        verify_output(output, public_key=keys[1])
    assert caught.value.exit_code in (4, 6)


def test_what_is_not_as_its_manifest_says_is_not_signed(output: Path, keys: tuple[Path, Path]) -> None:
    file = output if output.is_file() else next(output.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-2] ^= 1
    file.write_bytes(data)
    with pytest.raises(VerificationError):
        verify_output(output, sign_key=keys[0])
    assert not list(output.parent.glob("*.sig"))


def test_a_signature_is_not_replaced_and_not_put_into_what_it_signs(output: Path, keys: tuple[Path, Path]) -> None:
    verify_output(output, sign_key=keys[0])
    with pytest.raises(OutputExistsError):
        verify_output(output, sign_key=keys[0])
    if output.is_dir():
        with pytest.raises(UsageError, match="outside of it"):
            verify_output(output, sign_key=keys[0], signature=output / "inside.sig")


def test_missing_and_broken_keys_and_signatures_are_told_apart(
    tmp_path: Path, output: Path, keys: tuple[Path, Path]
) -> None:
    with pytest.raises(InputMissingError, match="no such file"):
        verify_output(output, public_key=keys[1])
    with pytest.raises(InputMissingError, match="a key in PEM"):
        verify_output(output, sign_key=tmp_path / "nowhere.pem")
    with pytest.raises(UsageError, match="a private key in PEM"):
        verify_output(output, sign_key=keys[1])
    for text in ("", "{}", "x", "[]", '{"verificationMaterial": 3}'):
        (tmp_path / "bad.sig").write_text(text)
        with pytest.raises(CorruptInputError, match=r"bad\.sig"):
            verify_output(output, public_key=keys[1], signature=tmp_path / "bad.sig")
    with pytest.raises(UsageError, match="public key in PEM"):
        verify_output(output, public_key=keys[0], signature=tmp_path / "bad.sig")


def test_an_encrypted_key_takes_its_password_from_the_environment(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = make_keys(tmp_path, "locked", "-aes256", "-passout", "pass:secret")
    with pytest.raises(UsageError, match=PASSWORD_VARIABLE):
        verify_output(output, sign_key=private)
    monkeypatch.setenv(PASSWORD_VARIABLE, "secret")
    verify_output(output, sign_key=private)
    verify_output(output, public_key=public)


def test_a_link_in_the_place_of_a_temporary_file_is_not_followed(output: Path, keys: tuple[Path, Path]) -> None:
    precious = output.parent / "precious"
    precious.write_text("years")
    for name in (f".{output.name}.sig.part", f".{output.name}.sig"):
        (output.parent / name).symlink_to(precious)
    before = {path.name for path in output.parent.iterdir()}
    verify_output(output, sign_key=keys[0])
    assert precious.read_text() == "years"
    assert {path.name for path in output.parent.iterdir()} == before | {f"{output.name}.sig"}


def test_a_place_that_cannot_be_written_to_is_told(output: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ResourceError, match="/proc"):
        verify_output(output, sign_key=keys[0], signature="/proc/none/out.sig")


def test_what_a_killed_signer_left_is_removed_by_the_next(output: Path, keys: tuple[Path, Path]) -> None:
    hidden = output.parent / f".{output.name}.sig.pet-surgery"
    (hidden / "parts").mkdir(parents=True)
    verify_output(output, sign_key=keys[0])
    assert not hidden.exists()
    (hidden / "parts").mkdir(parents=True)  # killed when the signature was in its place
    with pytest.raises(OutputExistsError):
        verify_output(output, sign_key=keys[0])
    assert not hidden.exists()
