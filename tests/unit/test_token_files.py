"""A token of Ray that other users can read is never made by a documented command, and no start script goes on with one."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUFFIXES = {".md", ".yaml", ".sh", ".sbatch"}


def test_documented_commands_make_tokens_that_the_user_alone_can_read() -> None:
    """`ray get-auth-token --generate` leaves the mode to the umask."""
    files = [ROOT / "README.md", *(ROOT / "docs").rglob("*"), *(ROOT / "cluster").rglob("*")]
    texts = [file.read_text(encoding="utf-8") for file in files if file.suffix in SUFFIXES and file.is_file()]
    lines = [line for text in texts for line in text.splitlines() if "get-auth-token --generate" in line]
    assert lines and all("(umask 077; ray get-auth-token --generate" in line for line in lines)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("mode", "code"), [(0o600, 0), (0o640, 3), (0o604, 3)])
def test_hosts_and_drivers_do_not_start_with_a_token_that_others_can_read(
    tmp_path: Path, mode: int, code: int, named: bool
) -> None:
    token = tmp_path / ("a token" if named else ".ray/auth_token")
    token.parent.mkdir(exist_ok=True)
    token.write_text("0" * 64)
    token.chmod(mode)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    done = subprocess.run(
        ["bash", "-euc", f"source {ROOT}/cluster/environment.sh; echo $RAY_AUTH_MODE"],
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MGMRN_VENV": str(tmp_path)}
        | ({"RAY_AUTH_TOKEN_PATH": str(token)} if named else {}),
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, "" if code else "token\n")
    assert done.stderr == (f"others can read Ray's token: chmod 600 '{token}'\n" if code else "")
