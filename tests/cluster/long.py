"""Tests that take many minutes of two cores are left out of CI, which has twenty-five for everything; `make test-all` asks for them."""

from __future__ import annotations

import os

import pytest

only_when_asked_for = pytest.mark.skipif(
    not os.environ.get("MGMRN_LONG_TESTS"),
    reason="takes many minutes: MGMRN_LONG_TESTS=1 runs it, as `make test-all` does",
)
