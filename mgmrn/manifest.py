"""Manifest of a folder: size and digest of each file, written last, which reveals damage.

It guards against disks, copies and interrupted programs, not against attackers: the digest is the CRC-32 of the CRC-32s
of a file's blocks, which several threads compute at the speed of memory.
"""

from __future__ import annotations

import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from mgmrn.atomic_file import replacing

MANIFEST_FILE = "manifest.json"
BLOCK = 2**22
"""Bytes that a thread reads at a time."""


@dataclass(frozen=True)
class Entry:
    """Size and digest of one file."""

    size: int
    """In bytes."""
    crc32: str


_MANIFEST = TypeAdapter(dict[str, Entry])


def write_manifest(folder: Path) -> None:
    """Writes the manifest of a folder's files. Raises OSError when one cannot be read or the manifest not be written."""
    entries = {path.name: Entry(path.stat().st_size, _digest(path)) for path in sorted(folder.iterdir())}
    with replacing(folder / MANIFEST_FILE) as file:
        file.write(_MANIFEST.dump_json(entries))


def find_damage(folder: Path) -> str | None:
    """Damage of a folder's files, by size first, then by content, or None. Raises OSError for a failing disk."""
    try:
        entries = _MANIFEST.validate_json((folder / MANIFEST_FILE).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValidationError):
        return f"{MANIFEST_FILE} is missing or unreadable"
    try:
        for name, entry in entries.items():
            if (size := (folder / name).stat().st_size) != entry.size:
                return f"{name} has {size} bytes instead of {entry.size}"
        for name, entry in entries.items():
            if _digest(folder / name) != entry.crc32:
                return f"{name} is not as it was written"
    except FileNotFoundError:
        return f"{name} is missing"
    return None


def _digest(path: Path) -> str:
    with path.open("rb") as file, ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        starts = range(0, os.fstat(file.fileno()).st_size, BLOCK)
        blocks = pool.map(lambda start: zlib.crc32(os.pread(file.fileno(), BLOCK, start)), starts)
        return f"{zlib.crc32(b''.join(block.to_bytes(4) for block in blocks)):08x}"
