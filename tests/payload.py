"""A pickle that runs code."""

import os
from pathlib import Path
from typing import Any


class Payload:
    """Makes a folder when an unsafe reader unpickles it."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)
