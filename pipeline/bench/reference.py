"""The released mathematics written out plainly, from the tests of a checkout: what our steps are measured against.

No part of the package: a job's upload and an installed copy hold no tests.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

from mgmrn.errors import UserError
from pipeline.tracking.environment import REPOSITORY

FOLDER = REPOSITORY / "tests" / "reference"


def reference_module(name: str) -> ModuleType:
    """A module of `tests/reference`.

    Raises:
        UserError: where the code came without its tests.
    """
    if not (FOLDER / f"{name}.py").is_file():
        raise UserError(
            "the plain reference is not here, so no ratio to it can be measured",
            str(FOLDER),
            "run it in a checkout with tests/, or leave the reference out of --variants",
        )
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    return importlib.import_module(f"tests.reference.{name}")
