"""What the figures of `bench cache` count."""

from __future__ import annotations

import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from mgmrn.engine import Batch
from mgmrn.errors import UserError
from pipeline.bench.cache import run
from pipeline.bench.cache_rates import Amount, amount_of
from pipeline.bench.shared_pages import memory_of_readers, own_share
from pipeline.bench.spec import TrainingSpec
from pipeline.config.compose import load_experiment

MIB = 2**20
TOUCHER = """
import mmap, sys
with open(sys.argv[1], "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
    sum(mapped[::mmap.PAGESIZE])
    print("touched", flush=True)
    sys.stdin.read()
"""


def test_a_page_is_divided_among_those_that_have_it(tmp_path: Path) -> None:
    path = tmp_path / "maps of c4" / "straight.npy"
    path.parent.mkdir()
    path.write_bytes(bytes(8 * MIB))
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert own_share(tmp_path) == 0, "nothing was touched yet"
        assert sum(mapped[: 4 * MIB : mmap.PAGESIZE]) == 0
        half = own_share(tmp_path)
        assert 4 <= half < 8
        sum(mapped[:: mmap.PAGESIZE])
        assert own_share(tmp_path) == 8
        assert own_share(tmp_path / "elsewhere") == 0
        command = [sys.executable, "-c", TOUCHER, str(path)]
        other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            assert other.stdout is not None and other.stdout.readline() == "touched\n"
            assert own_share(tmp_path) == 4
        finally:
            other.communicate()
        assert own_share(tmp_path) == 8


def test_an_amount_is_that_of_all_levels() -> None:
    maps = {"c4": torch.zeros(3, 8, 4, 4, dtype=torch.float16), "c5": torch.zeros(3, 16, 2, 2, dtype=torch.float16)}
    batch = Batch(maps, torch.zeros(3, dtype=torch.long), np.arange(3))  # type: ignore[arg-type]
    amount = amount_of([batch, batch])
    assert amount == Amount(6, 2 * 2 * 3 * (8 * 16 + 16 * 4))
    pictures, data = amount.rates("read", [0.5, 2.0, 1.0])
    assert (pictures.name, pictures.unit, pictures.median, pictures.max) == ("read: pictures", "1/s", 6, 12)
    assert data.unit == "MB/s" and data.median == amount.size / 1e6


def test_a_reader_that_fails_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec = TrainingSpec(
        config=load_experiment("synthetic").config, data_root=tmp_path, cache_root=tmp_path / "cache", threads=1
    )
    with pytest.raises(UserError, match="a process that reads the cache ended"):
        memory_of_readers(spec, 1)
    assert str(tmp_path) in capfd.readouterr().err


def test_an_experiment_that_caches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not train on cached features"):
        run(load_experiment("synthetic", ["cache_features=false"]).config, tmp_path, tmp_path)
