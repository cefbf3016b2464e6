"""What a safetensors file says of itself: its header, read without torch and without its data."""

import json
import struct
from pathlib import Path
from typing import NamedTuple


class Header(NamedTuple):
    """The beginning of a safetensors file."""

    raw: bytes
    tensors: dict[str, dict]  # name -> dtype, shape, data_offsets (first, end) from `begin`
    begin: int  # where the data begins, bytes


def read_header(path: str | Path) -> Header:
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        raw = file.read(length)
    tensors = json.loads(raw)
    tensors.pop("__metadata__", None)
    return Header(raw, tensors, 8 + length)
