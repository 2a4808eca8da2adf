from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.command import Place, a_place


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with a_place(tmp_path / "here") as made:
        yield made
