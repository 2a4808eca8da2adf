"""What is sent to the cluster: the checkout as `ray job submit --working-dir .` would pack it, and a note of its commit."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from mgmrn.errors import UserError
from pipeline.tracking.environment import SHIPPED_STATE, GitState


@dataclass(frozen=True)
class Package:
    """A zip to be unpacked where the job runs."""

    file: Path
    names: frozenset[str]
    """Paths within."""
    digest: str
    """sha256 of names and contents; the note of the commit takes no part, as it changes nothing that is run."""

    @property
    def kib(self) -> int:
        """Size of the upload."""
        return round(self.file.stat().st_size / 1024)

    def check_holds(self, file: str) -> None:
        """Refuses a config file that would stay behind.

        Raises:
            UserError: when the file, as it was named in the checkout's own folder, is not in the package.
        """
        if os.path.normpath(file) not in self.names:
            raise UserError(
                f"{file} is not among the files that are sent to the cluster",
                hint="put it at the top of the checkout or below pipeline/config/configs, and name it from there",
            )


def make_package(checkout: Path, state: GitState, folder: Path) -> Package:
    """Packs a checkout; the same files give the same bytes, which are then not sent twice.

    Args:
        checkout: whose `.gitignore` and `.rayignore` are followed, by Ray's own reading of them.
        state: what the runs will say of their code.
        folder: an empty one, where the zip is made.
    """
    digest, names = hashlib.sha256(), []
    packed = folder / "code.zip"
    with ZipFile(packed, "w", ZIP_DEFLATED) as made:
        for name, content in _shipped(checkout, folder):
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            names.append(name)
            _write(made, name, content)
        _write(made, SHIPPED_STATE, state.to_json().encode())
    return Package(packed, frozenset(names), digest.hexdigest())


def _shipped(checkout: Path, folder: Path) -> Iterator[tuple[str, bytes]]:
    """Files by name. Which ones is asked of the function that Ray packs with itself: there is no public one."""
    from ray._private.runtime_env.packaging import create_package

    plain = folder / "plain.zip"
    quiet = logging.getLogger(__name__)
    create_package(str(checkout), plain, include_gitignore=True, logger=quiet)
    with ZipFile(plain) as packed:
        yield from sorted((name, packed.read(name)) for name in packed.namelist() if not name.endswith("/"))
    plain.unlink()


def _write(made: ZipFile, name: str, content: bytes) -> None:
    entry = ZipInfo(name)
    entry.compress_type = ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    made.writestr(entry, content)
