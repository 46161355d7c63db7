"""Reading checkpoint files without trusting them.

Pickles run code when they are read, so only torch's restricted reader opens them unless told
otherwise. And that reader checks no sums: a flipped bit inside a tensor goes unnoticed, so the
archive's own CRCs are checked first.
"""

from __future__ import annotations

import pickle
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from fastclip.errors import DataError, InputMissing
from fastclip.model.one_line import first_line

# What zipfile raises where a name, a length or a method in an archive is not what was written
_DAMAGED = (
    zipfile.BadZipFile,
    EOFError,
    ValueError,
    OverflowError,
    RuntimeError,
    struct.error,
    zlib.error,
)
# What an unpickler raises over bytes that are no pickle, or not all of one
_NO_PICKLE = (
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    LookupError,
    TypeError,
    AttributeError,
    ImportError,
)

_UNSAFE_HINT = "--unsafe-load opens it, and runs whatever code it holds"


def read_checkpoint(path: str | Path, unsafe: bool = False) -> dict[str, Any]:
    """The dict in a torch or safetensors file, tensors on the CPU.

    That is a trainer's checkpoint (`state_dict`, `epoch`, ...) or a bare state dict. `unsafe`
    allows arbitrary pickles and TorchScript archives, whose state dict is returned. InputMissing
    if the file is not there or cannot be opened, DataError if it is cut short, damaged or
    something else; both name it.
    """
    path = Path(path)
    if path.is_dir():
        raise InputMissing(f"{path}: a folder, not a checkpoint file")
    if not path.is_file():
        raise InputMissing(f"{path}: no such file")
    try:
        content = _read_safetensors(path) if path.suffix == ".safetensors" else _read(path, unsafe)
    except OSError as error:
        raise InputMissing(f"{path}: cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict) or not content:
        kind = "an empty dict" if isinstance(content, dict) else f"a {type(content).__name__}"
        raise DataError(f"{path}: holds {kind}, not a checkpoint")
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return dict(load_file(path, device="cpu"))
    except SafetensorError as error:
        raise DataError(f"{path}: not a whole safetensors file: {first_line(error)}") from error


def _read(path: Path, unsafe: bool) -> Any:
    if path.stat().st_size == 0:
        raise DataError(f"{path}: an empty file")
    is_zip = _starts_as_zip(path)
    if is_zip and _check_archive(path):
        if not unsafe:
            raise DataError(f"{path}: a TorchScript archive, as OpenAI publishes; {_UNSAFE_HINT}")
        jit: Any = torch.jit
        state = jit.load(str(path), map_location="cpu").state_dict()
        sizes = ("input_resolution", "context_length", "vocab_size")  # OpenAI's extra entries
        return {key: value for key, value in state.items() if key not in sizes}
    try:
        return torch.load(path, map_location="cpu", weights_only=not unsafe)
    except pickle.UnpicklingError as error:
        if is_zip and not unsafe:
            raise DataError(
                f"{path}: holds Python objects beside tensors, which may run code; {_UNSAFE_HINT}"
            ) from error
        raise DataError(f"{path}: not a checkpoint file") from error
    except _NO_PICKLE as error:
        raise DataError(f"{path}: not a whole checkpoint file: {first_line(error)}") from error


def _starts_as_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _check_archive(path: Path) -> bool:
    """Check every member's CRC; True for a TorchScript archive. DataError if it is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
            names = archive.namelist()
    except _DAMAGED as error:
        raise DataError(f"{path}: cut short or damaged: {first_line(error)}") from error
    if damaged is not None:
        raise DataError(f"{path}: damaged: {damaged} does not match its checksum")
    return any(name.endswith("/constants.pkl") for name in names)
