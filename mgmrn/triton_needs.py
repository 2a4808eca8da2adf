"""What Triton needs of a machine besides itself: it builds a small C program around each kernel that it makes."""

from __future__ import annotations

import os
import shutil
import sysconfig
from pathlib import Path


def lacking_for_triton() -> str | None:
    """What is missing of a C compiler and Python's headers; None where both are there. Imports nothing large."""
    if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
        return "a C compiler (gcc or clang)"
    if not (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file():
        return "Python's headers (Python.h)"
    return None
