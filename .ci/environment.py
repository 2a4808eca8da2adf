"""Makes `.venv`, with everything from requirements-dev.txt, and shares it between clones of the same requirements.

A virtual environment of this project weighs 6.5 GB, nearly all of it torch. So `.venv` is a link into a cache folder that is named
after the requirements and the Python version: the first clone on a machine installs, the next ones link. Standard library only.
"""

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
REQUIREMENTS = [ROOT / "requirements.txt", ROOT / "requirements-dev.txt"]


def main() -> None:
    if sys.version_info < (3, 11):
        sys.exit(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}: run `make PYTHON=python3.12 …`")
    link = ROOT / ".venv"
    target = cache_folder() / f"venv-{fingerprint()}"
    if link.resolve() == target and (target / ".complete").exists():
        return
    if link.exists() and not link.is_symlink():
        sys.exit(f"{link} is a folder that this project did not make: move it away and try again")
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{target}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (target / ".complete").exists():
            install(target)
    link.unlink(missing_ok=True)
    link.symlink_to(target)


def cache_folder() -> Path:
    """$MGMRN_VENVS, else the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("MGMRN_VENVS") or Path(cache) / "mgmrn-lab").resolve()


def fingerprint() -> str:
    """Changes with the requirements, the Python version and the interpreter's place."""
    digest = hashlib.sha256(f"{sys.version}{sys.base_prefix}".encode())
    for path in REQUIREMENTS:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def install(target: Path) -> None:
    """Installs into `target`; a half-made folder of an earlier, killed call is thrown away first."""
    shutil.rmtree(target, ignore_errors=True)
    print(f"installing the requirements into {target} (once per machine, a few minutes)", file=sys.stderr, flush=True)
    venv.create(target, with_pip=True)
    python = str(target / "bin" / "python")
    if not any(succeeds([*installer, "-r", str(REQUIREMENTS[1])]) for installer in installers(python)):
        sys.exit(
            "the requirements could not be installed: see the message above, mend it, and run the same command again"
        )
    (target / ".complete").touch()


def installers(python: str) -> Iterator[list[str]]:
    """The machine's uv, which is faster, or else one that pip fetches; then pip, since a package index may be set up for pip alone."""
    pip = [python, "-m", "pip", "install", "-q"]
    uv = shutil.which("uv")
    if uv is None and succeeds([*pip, "uv"]):
        uv = str(Path(python).parent / "uv")
    if uv:
        # Compiled once here, as pip does: where PYTHONDONTWRITEBYTECODE is set, as in many images, every process would compile torch again.
        yield [uv, "pip", "install", "-q", "--compile-bytecode", "--python", python]
    yield pip


def succeeds(command: list[str]) -> bool:
    return subprocess.run(command, check=False).returncode == 0


main()
