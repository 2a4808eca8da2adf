"""All lines of the doctor's table, in the order in which a run meets what they are about."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.doctor.benchmarks import benchmark_lines
from pipeline.doctor.line import Line
from pipeline.doctor.machine import cpu_line, disk_line, gpu_lines, memory_line, open_files_line, shared_memory_line
from pipeline.doctor.services import port_lines, ray_line, secret_lines, tracking_line
from pipeline.doctor.versions import package_lines, python_line
from pipeline.train.cluster import REPOSITORY


@dataclass(frozen=True)
class Places:
    """Where a run would read and write, as its options say."""

    data_root: Path
    storage: Path
    tracking_uri: str
    address: str | None


def examine(asked: Places) -> Iterator[Line]:
    """Looks at everything; what it has written to try a disk is gone afterwards."""
    yield python_line()
    yield from package_lines(REPOSITORY / "requirements.txt")
    yield cpu_line()
    yield memory_line()
    yield shared_memory_line()
    yield from gpu_lines()
    yield disk_line(asked.storage)
    yield open_files_line()
    yield from port_lines()
    yield ray_line(asked.address)
    yield tracking_line(asked.tracking_uri)
    yield from benchmark_lines(asked.data_root)
    yield from secret_lines()
