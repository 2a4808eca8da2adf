"""A tracking database that appears whole.

MLflow makes its tables one by one, and a database in which it was interrupted can never be opened again: some of the tables that it would
make are there already.
"""

from __future__ import annotations

import os
import secrets
from contextlib import suppress
from pathlib import Path


def make_tables(file: Path) -> None:
    """Makes an empty database of MLflow's, all of it or nothing. Where another command has made one meanwhile, that one stays.

    Args:
        file: where none is; its folder is there.

    Raises:
        SQLAlchemyError: when it cannot be written.
    """
    from mlflow.store.db.utils import _initialize_tables
    from sqlalchemy import create_engine

    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    engine = create_engine(f"sqlite:///{part}")
    try:
        _initialize_tables(engine)
        engine.dispose()
        # Refused where another's is there, and on a disk without links, on which MLflow makes its tables in place.
        with suppress(OSError):
            os.link(part, file)
    finally:
        part.unlink(missing_ok=True)
