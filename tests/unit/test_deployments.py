"""The files under cluster/: linted and validated by their own tools, of one version, with commands that the pipeline accepts."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import check_jsonschema
import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from pipeline.redaction import redact
from tests.commands import VERB, check, pipeline_part, shell_lines

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
TOOLS = Path(sys.executable).parent
PINS = dict(re.findall(r"^([a-z0-9-]+)(?:\[[^]]*\])?==([0-9.]+)", (ROOT / "requirements.txt").read_text(), re.M))
SBATCH = "cluster/slurm/mgmrn.sbatch "


def texts(*suffixes: str) -> dict[str, str]:
    files = [file for file in sorted(CLUSTER.rglob("*")) if file.suffix in suffixes or file.name in suffixes]
    return {str(file.relative_to(ROOT)): file.read_text() for file in files if file.is_file()}


def strings(value: Any) -> Iterator[str]:
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
    (expression,) = re.findall(r"RUN sed '([^']+)' /tmp/requirements.txt", (CLUSTER / "Dockerfile").read_text())
    done = subprocess.run(["sed", expression, ROOT / "requirements.txt"], capture_output=True, text=True, check=True)
    constraints = done.stdout.split()
    assert f"mlflow=={PINS['mlflow']}" in constraints
    assert not [line for line in constraints if "[" in line], "pip takes no extras there"


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


def test_the_compose_file_is_valid_publishes_on_loopback_alone_and_holds_no_secret():
    compose = yaml.safe_load((CLUSTER / "mlflow" / "compose.yaml").read_text())
    vendored = Path(check_jsonschema.__file__).parent / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(compose, json.loads(vendored.read_text()))
    for service in compose["services"].values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["healthcheck"]["test"]
        for name, value in service["environment"].items():
            if re.search("PASSWORD|SECRET", name):
                assert re.fullmatch(r"\$\{[A-Z_]+:\?.*\}", value), f"{name} must be set by the user"
    assert (CLUSTER / "mlflow" / ".gitignore").read_text().split() == ["secrets.env"]


def test_ray_never_listens_everywhere_without_a_policy_over_it():
    files = texts(".yaml", ".sh", ".sbatch")
    assert {path for path, text in files.items() if "0.0.0.0" in text} == {
        "cluster/kuberay/raycluster/raycluster.yaml",  # services/network.yaml
        "cluster/kuberay/services/mlflow.yaml",  # services/network.yaml
        "cluster/mlflow/compose.yaml",  # inside a container of which a loopback port is published
    }
    assert not any(re.search(r"RAY_AUTH_MODE[=: ]*disabled", text) for text in files.values())


@pytest.mark.parametrize("name", ["onpremise", "aws", "gcp"])
def test_ray_accepts_the_launchers_file_and_every_host_asks_for_the_token(name: str):
    """Joined with Ray's own defaults, which install a nightly build and let the dashboard listen everywhere."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((CLUSTER / "launcher" / f"{name}.yaml").read_text()))
    validate_config(config)
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    assert not any("ray-wheels" in command or "0.0.0.0" in command for command in commands)
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--head --port=6379 --dashboard-host=127.0.0.1" in head and "--address=$RAY_HEAD_IP:6379" in worker
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    environment = "environment.sh" if name == "onpremise" else "Dockerfile"
    assert "RAY_AUTH_MODE=token" in (CLUSTER / environment).read_text()
    if name == "onpremise":
        assert all("cluster/environment.sh &&" in command for command in (head, worker))
    else:
        assert config["docker"]["image"] == "REGISTRY/mgmrn-lab:TAG"
        check_cloud(name, config)


def check_cloud(name: str, config: dict[str, Any]) -> None:
    """Check that the head computes nothing, that every host has the data sets and that none is reachable from the internet."""
    assert any("://BUCKET/data /shared/data" in command for command in config["initialization_commands"])
    assert "--volume=/shared/data:/shared/data:ro" in config["docker"]["run_options"]
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and types["gpu"]["resources"]["GPU"] == 8
    assert sum(one["max_workers"] for one in types.values()) == config["max_workers"]
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True, "ssh goes through the cloud's own proxy"
    for node in (one["node_config"] for one in types.values()):
        if name == "aws":
            # Without groups of one's own, Ray makes one that lets ssh in from everywhere.
            assert node["SecurityGroupIds"] and node["SubnetIds"]
            assert node["MetadataOptions"]["HttpTokens"] == "required"
        else:
            # Without interfaces of one's own, Ray asks for an external address.
            assert not any("accessConfigs" in interface for interface in node["networkInterfaces"])


KUBERAY = CLUSTER / "kuberay"
KUBERNETES = "1.34"
STRICT = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
FOLDERS = ("services", "loader", "raycluster", "rayjob")
EXPECTED = yaml.safe_load(Path(__file__).with_name("kuberay.yaml").read_text())
Manifest = dict[str, Any]


@cache
def resources(folder: str) -> tuple[Manifest, ...]:
    """The manifests that a folder's kustomization names."""
    kustomization = yaml.safe_load((KUBERAY / folder / "kustomization.yaml").read_text())
    files = [KUBERAY / folder / name for name in kustomization["resources"] if name.endswith(".yaml")]
    return tuple(one for file in files for one in yaml.safe_load_all(file.read_text()))


def ray_job() -> Manifest:
    """The job with its cluster, as `kubectl kustomize` puts them together."""
    (job,) = resources("rayjob")
    return job | {"spec": job["spec"] | {"rayClusterSpec": resources("raycluster")[0]["spec"]}}


def services(kind: str) -> list[Manifest]:
    return [one for one in resources("services") if one["kind"] == kind]


@cache
def kuberay_schema() -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
    definitions = Resource.from_contents(schema_contents(f"{STRICT}/_definitions.json", KUBERNETES))
    registry = Registry().with_resource("https://mgmrn.invalid/api/_definitions.json", definitions)
    return jsonschema.Draft202012Validator(schema, registry=registry)


def templates() -> Iterator[tuple[str, Manifest]]:
    """The template of every pod that is ours to describe, by name."""
    cluster = resources("raycluster")[0]["spec"]
    yield "head", cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["groupName"], group["template"]
    yield "submitter", ray_job()["spec"]["submitterPodTemplate"]
    yield "loader", resources("loader")[0]
    for one in (*services("Deployment"), *services("StatefulSet")):
        yield one["metadata"]["name"], one["spec"]["template"]


PODS = {name: template["spec"] for name, template in templates()}


def test_manifests_are_named_by_their_kustomization_and_match_the_schemas():
    for folder in FOLDERS:
        kustomization = yaml.safe_load((KUBERAY / folder / "kustomization.yaml").read_text())
        named = {name for name in kustomization["resources"] if name.endswith(".yaml")}
        assert named == {file.name for file in (KUBERAY / folder).glob("*.yaml")} - {"kustomization.yaml"}
    for manifest in (*resources("services"), *resources("loader")):
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    for manifest in (*resources("raycluster"), ray_job()):
        kuberay_schema().validate(manifest)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_puts_the_cluster_into_the_job_and_builds_the_services():
    def built(folder: str) -> list[Manifest]:
        done = subprocess.run(["kubectl", "kustomize", KUBERAY / folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    (job,) = built("rayjob")
    kuberay_schema().validate(job)
    gpus = next(group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert gpus["minReplicas"] == gpus["replicas"] >= 1, "the job's launch is checked against hosts that are up"
    assert [one["kind"] for one in built("services")].count("ConfigMap") == 1


def secrets_of(pod: Manifest) -> list[str]:
    """Secrets in the environment of a pod; no other variable holds one."""
    variables = [variable for container in pod["containers"] for variable in container.get("env", [])]
    for variable in variables:
        assert "value" not in variable or not {"PASSWORD", "SECRET", "TOKEN"} & set(variable["name"].split("_"))
        assert redact(variable.get("value", "")) == variable.get("value", "")
    references = [one["valueFrom"]["secretKeyRef"] for one in variables if "valueFrom" in one]
    return sorted({f"{one['name']}/{one['key']}" for one in references})


def test_pods_have_the_rights_and_secrets_that_they_need_alone():
    assert not any(one["kind"] == "Secret" for folder in FOLDERS for one in resources(folder))
    for name, pod in PODS.items():
        assert pod["securityContext"].items() >= EXPECTED["pod"].items(), name
        # The head's autoscaler talks to Kubernetes with the account that KubeRay gives it.
        assert name == "head" or pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"].items() >= EXPECTED["container"].items(), name
            assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"], name
        assert secrets_of(pod) == EXPECTED["secrets"].get(name, []), name


def test_hosts_of_ray_see_the_shared_volumes_and_have_shared_memory():
    claims = {one["metadata"]["name"]: one["spec"]["accessModes"] for one in services("PersistentVolumeClaim")}
    for pod in (PODS["head"], PODS["cpu"], PODS["gpu"]):
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        shared = [volumes[name]["persistentVolumeClaim"]["claimName"] for name in ("storage", "data")]
        assert [claims[name] for name in shared] == [["ReadWriteMany"]] * 2
        assert volumes["shm"]["emptyDir"]["medium"] == "Memory"
        mounts = {mount["name"]: mount for mount in pod["containers"][0]["volumeMounts"]}
        assert mounts["data"]["readOnly"] is True and mounts["shm"]["mountPath"] == "/dev/shm"
        assert mounts["storage"]["mountPath"] in shlex.split(ray_job()["spec"]["entrypoint"])


def test_policies_open_only_these_ports():
    policies = {one["metadata"]["name"]: one["spec"] for one in services("NetworkPolicy")}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress"]}
    found = []
    for policy in policies.values():
        (rule,) = policy["ingress"]
        peers = [peer.get("podSelector", {}).get("matchLabels") for peer in rule["from"]]
        assert None not in peers, "a rule without labels would let every pod in"
        ports = [port["port"] for port in rule.get("ports", [])]
        found.append({"to": policy["podSelector"]["matchLabels"], "ports": ports, "from": peers})
    assert sorted(found, key=str) == sorted(EXPECTED["reach"], key=str)
    labels = {name: template["metadata"].get("labels") for name, template in templates()}
    assert {name: labels[name] for name in EXPECTED["labels"]} == EXPECTED["labels"]


def test_servers_are_probed_and_not_published_outside_the_cluster():
    assert all(one["spec"].get("type", "ClusterIP") == "ClusterIP" for one in services("Service"))
    assert not services("Ingress")
    for one in (*services("Deployment"), *services("StatefulSet")):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
