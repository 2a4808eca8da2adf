"""The files under cluster/: linted and validated by their own tools, of one version, with commands that the pipeline accepts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import pytest
import yaml

from tests.commands import VERB, check, pipeline_part, shell_lines

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
TOOLS = Path(sys.executable).parent
PINS = dict(
    re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
)

SBATCH = "cluster/slurm/mgmrn.sbatch "


def texts(*suffixes: str) -> dict[str, str]:
    """Every file of these kinds, by its path."""
    files = [file for file in sorted(CLUSTER.rglob("*")) if file.suffix in suffixes or file.name in suffixes]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files if file.is_file()}


def strings(value: Any) -> Iterator[str]:
    """Every string in a document."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from strings(inner)


def commands() -> Iterator[tuple[str, str]]:
    """Every command of the pipeline in the files, with its file."""
    lines = [(path, one) for path, text in texts(".yaml").items() for one in strings([*yaml.safe_load_all(text)])]
    lines += [(path, line) for path, text in texts(".md").items() for line in shell_lines(text)]
    lines += [(path, line) for path, text in texts(".sbatch", ".sh").items() for line in re.findall("^#.*", text, re.M)]
    return ((path, found) for path, line in lines for found in pipeline_part(line, (VERB, SBATCH)))


def test_every_setting_has_commands_and_the_pipeline_accepts_them():
    found = list(commands())
    for _, command in found:
        check(command)
    paths = {path for path, _ in found}
    assert {"cluster/README.md", "cluster/kuberay/rayjob/rayjob.yaml", "cluster/slurm/mgmrn.sbatch"} <= paths
    assert sum(path == "cluster/README.md" and "ablate" in command for path, command in found) >= 5


def test_versions_are_those_of_the_requirements():
    documents = [one for text in texts(".yaml").values() for one in yaml.safe_load_all(text)]
    assert {one["spec"]["rayVersion"] for one in documents if one and one.get("kind") == "RayCluster"} == {PINS["ray"]}
    every = "\n".join(texts(".yaml", ".md", "Dockerfile").values())
    assert set(re.findall(r"\b(ray|mlflow|torch)(?:\[[^]]*\])?==", every)) == set(), "only requirements.txt pins them"
    assert len(set(re.findall(r"image: (postgres:\S+)", every))) == 1
    images = set(re.findall(r"[\w.$/{}:-]+/(mgmrn-[a-z]+:\S+)", "\n".join(texts(".yaml").values())))
    assert images == {"mgmrn-lab:TAG", "mgmrn-tracking:TAG", "mgmrn-tracking:${TAG:-latest}"}


def test_image_and_scripts_are_linted_and_the_image_runs_as_a_user():
    file = CLUSTER / "Dockerfile"
    for words in ([TOOLS / "hadolint", file], [TOOLS / "shellcheck", "-x", *texts(".sh", ".sbatch")]):
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    for target in file.read_text().split("\nFROM ")[2:]:
        assert re.findall(r"^USER (\S+)", target, re.MULTILINE) == ["1000:1000"]
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    copied = {source for source in re.findall(r"^COPY (\S+) ", file.read_text(), re.MULTILINE)}
    assert "*" in ignored and copied == allowed


def test_the_image_of_the_tracking_server_has_the_pinned_mlflow():
    (expression,) = re.findall(r"RUN sed '([^']+)' /tmp/requirements.txt", (CLUSTER / "Dockerfile").read_text())
    done = subprocess.run(["sed", expression, ROOT / "requirements.txt"], capture_output=True, text=True, check=True)
    constraints = done.stdout.split()
    assert f"mlflow=={PINS['mlflow']}" in constraints
    assert not [line for line in constraints if "[" in line], "pip takes no extras there"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "mlflow" / "compose.yaml").read_text())


def sourced(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """The script that prepares hosts and drivers, run with this environment alone."""
    script = f"source {CLUSTER}/environment.sh; echo $RAY_AUTH_MODE"
    return subprocess.run(["bash", "-euc", script], env=environment, capture_output=True, text=True)


@pytest.mark.parametrize(("name", "code"), [("plain", 0), ("a b", 3), ("a;b", 3)])
def test_an_environment_that_ray_cannot_start_workers_from_is_refused(tmp_path: Path, name: str, code: int):
    tools = tmp_path / name / "bin"
    tools.mkdir(parents=True)
    (tools / "python").symlink_to(sys.executable)
    (tools / "activate").write_text('PATH="$MGMRN_VENV/bin:$PATH"')
    done = sourced({"MGMRN_VENV": str(tools.parent), "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)})
    assert done.returncode == code
    assert (f"Ray cannot start workers with {tools}/python" in done.stderr) == bool(code)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize(("mode", "code"), [(0o600, 0), (0o640, 3), (0o604, 3)])
def test_hosts_and_drivers_do_not_start_with_a_token_that_others_can_read(
    tmp_path: Path, mode: int, code: int, named: bool
):
    token = tmp_path / ("a token" if named else ".ray/auth_token")
    token.parent.mkdir(exist_ok=True)
    token.write_text("0" * 64)
    token.chmod(mode)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "activate").touch()
    path = {"RAY_AUTH_TOKEN_PATH": str(token)} if named else {}
    done = sourced({"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MGMRN_VENV": str(tmp_path), **path})
    assert (done.returncode, done.stdout) == (code, "" if code else "token\n")
    assert done.stderr == (f"others can read Ray's token: chmod 600 '{token}'\n" if code else "")


def test_documented_commands_make_tokens_that_the_user_alone_can_read():
    """`ray get-auth-token --generate` leaves the mode to the umask."""
    pages = [(ROOT / "README.md").read_text(), *(page.read_text() for page in (ROOT / "docs").rglob("*.md"))]
    pages += texts(".md", ".sh", ".sbatch").values()
    lines = [line for page in pages for line in page.splitlines() if "get-auth-token --generate" in line]
    assert lines and all("(umask 077; ray get-auth-token --generate" in line for line in lines)


def test_the_compose_file_is_valid_publishes_on_loopback_alone_and_holds_no_secret(compose: dict[str, Any]):
    vendored = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(vendored.read_text()))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"]
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", value), f"{name} must be set by the user"
    assert (CLUSTER / "mlflow" / ".gitignore").read_text().split() == ["secrets.env"]


def test_mlflow_is_started_alike_everywhere(compose: dict[str, Any]):
    manifests = yaml.safe_load_all((CLUSTER / "kuberay" / "services" / "mlflow.yaml").read_text())
    (deployment,) = [one for one in manifests if one["kind"] == "Deployment"]
    (container,) = deployment["spec"]["template"]["spec"]["containers"]

    def alike(command: list[str]) -> list[str]:
        return [argument for argument in command if not argument.startswith("--allowed-hosts")]

    assert alike(container["args"]) == alike(compose["services"]["mlflow"]["command"])
    assert "--app-name=basic-auth" in container["args"]


def test_ray_never_listens_everywhere_without_a_policy_over_it():
    files = texts(".yaml", ".sh", ".sbatch")
    assert {path for path, text in files.items() if "0.0.0.0" in text} == {
        "cluster/kuberay/raycluster/raycluster.yaml",  # services/network.yaml
        "cluster/kuberay/services/mlflow.yaml",  # services/network.yaml
        "cluster/mlflow/compose.yaml",  # inside a container of which a loopback port is published
    }
    assert not any(re.search(r"RAY_AUTH_MODE[=: ]*disabled", text) for text in files.values())
