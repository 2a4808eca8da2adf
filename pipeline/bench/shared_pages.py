"""Memory of several processes that read the same cached maps.

Each maps the files of the cache; pages that several have mapped exist once. Linux says of every mapping what this process's share
of it is when each page is divided among those that have it (Pss). So the shares of all readers add up to what they really take.

`python -m pipeline.bench.shared_pages SPEC-AS-JSON` is one reader. It reads, prints a line, and says its share for every line that it is given.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch

from mgmrn.data.splits import load_tune
from mgmrn.errors import UserError
from mgmrn.sources import cached_maps
from pipeline.bench.spec import TrainingSpec
from pipeline.tracking.environment import REPOSITORY

BATCH = 64
MOST_ROWS = 1024
"""That a reader touches."""


def memory_of_readers(spec: TrainingSpec, readers: int) -> float:
    """MiB of the cache's files in the memory of several processes together. Nobody else may have mapped them.

    Args:
        spec: an experiment on cached features that are there.
        readers: processes.

    Raises:
        UserError: when one failed.
    """
    with ExitStack() as stack:
        started = [stack.enter_context(_reader(spec)) for _ in range(readers)]
        for reader in started:
            _line_of(reader)
        return sum(_share_of(reader) for reader in started)


def main(spec_json: str) -> None:
    """What a reader does."""
    spec = TrainingSpec.model_validate_json(spec_json)
    data = load_tune(spec.data_root, spec.config.benchmark)
    maps, _ = cached_maps(spec.config, data, spec.cache_root, torch.device("cpu"), lambda message: None)
    for start in range(0, min(len(maps.rows), MOST_ROWS), BATCH):
        part = maps.take(np.arange(start, min(start + BATCH, len(maps.rows))))
        part.maps(np.zeros(len(part.rows), dtype=bool))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        sys.stdout.write(f"{own_share(spec.cache_root)}\n")
        sys.stdout.flush()


@contextmanager
def _reader(spec: TrainingSpec) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "pipeline.bench.shared_pages", spec.model_dump_json()]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    )
    try:
        yield process
    finally:
        process.communicate()  # It ends with its input.


def _share_of(reader: subprocess.Popen[str]) -> float:
    assert reader.stdin is not None
    reader.stdin.write("\n")
    reader.stdin.flush()
    return float(_line_of(reader))


def _line_of(reader: subprocess.Popen[str]) -> str:
    assert reader.stdout is not None
    line = reader.stdout.readline()
    if not line:
        raise UserError("a process that reads the cache ended", "bench cache", "its own message stands above")
    return line


def own_share(root: Path) -> float:
    """This process's share, in MiB, of all mapped files below a folder."""
    share, ours = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):  # A mapping begins: addresses, permissions, offset, device, inode, path.
            ours = len(words) > 5 and Path(" ".join(words[5:])).is_relative_to(root)
        elif ours and words[0] == "Pss:":
            share += int(words[1])
    return share / 2**10


if __name__ == "__main__":
    main(*sys.argv[1:])
