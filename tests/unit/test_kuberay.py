"""The manifests for Kubernetes: schemas, groups of hosts, rights, secrets and network policies."""

from __future__ import annotations

import copy
import json
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

KUBERAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
KUBERNETES = "1.34"
STRICT = f"kubernetes-json-schema/v{KUBERNETES}.0-local-strict"
FOLDERS = ("services", "loader", "raycluster", "rayjob")

Manifest = dict[str, Any]


@cache
def resources(folder: str) -> tuple[Manifest, ...]:
    """The manifests that a folder's kustomization names."""
    kustomization = yaml.safe_load((KUBERAY / folder / "kustomization.yaml").read_text())
    files = [KUBERAY / folder / name for name in kustomization["resources"] if name.endswith(".yaml")]
    return tuple(one for file in files for one in yaml.safe_load_all(file.read_text()))


def ray_cluster() -> Manifest:
    (cluster,) = resources("raycluster")
    return copy.deepcopy(cluster)


def ray_job() -> Manifest:
    """The job with its cluster, as `kubectl kustomize` puts them together."""
    (job,) = resources("rayjob")
    job = copy.deepcopy(job)
    job["spec"]["rayClusterSpec"] = ray_cluster()["spec"]
    return job


def services(kind: str) -> list[Manifest]:
    return [one for one in resources("services") if one["kind"] == kind]


@cache
def kuberay_schema() -> jsonschema.Draft202012Validator:
    schema = json.loads((Path(__file__).parent / "kuberay.schema.json").read_text())
    definitions = schema_contents(f"{STRICT}/_definitions.json", KUBERNETES)
    registry = Registry().with_resource(
        "https://mgmrn.invalid/api/_definitions.json", Resource.from_contents(definitions)
    )
    return jsonschema.Draft202012Validator(schema, registry=registry)


def templates() -> Iterator[tuple[str, Manifest]]:
    """The template of every pod that is ours to describe, by name."""
    cluster = ray_cluster()["spec"]
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
    for manifest in (ray_cluster(), ray_job()):
        kuberay_schema().validate(manifest)


def test_the_schema_refuses_mistakes():
    for section, mistake in (
        ("workerGroupSpecs", [{"maxReplica": 8}]), ("headGroupSpec", {"container": []}), ("authOptions", {"mode": "disabled"})
    ):  # fmt: skip
        manifest = ray_cluster()
        manifest["spec"][section] = mistake
        with pytest.raises(jsonschema.ValidationError):
            kuberay_schema().validate(manifest)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="needs kubectl")
def test_kustomize_puts_the_cluster_into_the_job_and_leaves_it_out():
    def built(folder: str) -> list[Manifest]:
        done = subprocess.run(["kubectl", "kustomize", KUBERAY / folder], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return list(yaml.safe_load_all(done.stdout))

    (job,) = built("rayjob")
    kuberay_schema().validate(job)
    gpus = next(group for group in job["spec"]["rayClusterSpec"]["workerGroupSpecs"] if group["groupName"] == "gpu")
    assert gpus["minReplicas"] == gpus["replicas"] >= 1, "the job's launch is checked against hosts that are up"

    built_services = built("services")
    (config_map,) = [one["metadata"]["name"] for one in built_services if one["kind"] == "ConfigMap"]
    pods = [one["spec"]["template"]["spec"] for one in built_services if one["kind"] in ("Deployment", "StatefulSet")]
    mounted = [volume["configMap"]["name"] for pod in pods for volume in pod["volumes"] if "configMap" in volume]
    assert set(mounted) == {config_map}


def test_groups_scale_from_nothing_to_eight_hosts_of_eight_gpus():
    (gpu,) = [group for group in ray_cluster()["spec"]["workerGroupSpecs"] if group["groupName"] == "gpu"]
    assert (gpu["minReplicas"], gpu["maxReplicas"]) == (0, 8)
    (container,) = gpu["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "8"


def test_pods_have_no_rights_that_they_do_not_need():
    for name, pod in PODS.items():
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        # The head's autoscaler talks to Kubernetes with the account that KubeRay gives it.
        assert name == "head" or pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False, name
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}, name
            assert container["resources"]["requests"]["cpu"] and container["resources"]["limits"]["memory"], name


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


def test_secrets_are_referred_to_and_only_where_they_are_needed():
    assert not any(one["kind"] == "Secret" for folder in FOLDERS for one in resources(folder))
    secret = {}
    for name, pod in PODS.items():
        variables = [variable for container in pod["containers"] for variable in container.get("env", [])]
        for variable in variables:
            assert "value" not in variable or not {"PASSWORD", "SECRET", "TOKEN"} & set(variable["name"].split("_"))
            assert "@" not in variable.get("value", "") or ":" not in variable["value"].split("//")[1].split("@")[0]
        refs = [one["valueFrom"]["secretKeyRef"] for one in variables if "valueFrom" in one]
        secret[name] = {(ref["name"], ref["key"]) for ref in refs}
    assert {name: names for name, names in secret.items() if names} == {
        "head": {("mgmrn-mlflow", "username"), ("mgmrn-mlflow", "password"), ("mgmrn-postgres", "studies")},
        "mlflow": {("mgmrn-postgres", "mlflow"), ("mgmrn-mlflow", "password"), ("mgmrn-mlflow", "session-key")},
        "postgres": {("mgmrn-postgres", key) for key in ("superuser", "mlflow", "studies")},
    }


def test_policies_open_only_these_ports():
    policies = {one["metadata"]["name"]: one["spec"] for one in services("NetworkPolicy")}
    assert policies.pop("deny-all") == {"podSelector": {}, "policyTypes": ["Ingress"]}
    ray, head = {"mgmrn/role": "ray"}, {"mgmrn/role": "ray", "ray.io/node-type": "head"}
    labels = {name: template["metadata"].get("labels") for name, template in templates()}
    assert labels["head"] == labels["cpu"] == labels["gpu"] == ray
    reach = {}
    for policy in policies.values():
        (rule,) = policy["ingress"]
        peers = [peer.get("podSelector", {}).get("matchLabels") for peer in rule["from"]]
        assert None not in peers, "a rule without labels would let every pod in"
        ports = tuple(port["port"] for port in rule.get("ports", []))
        reach[tuple(sorted(policy["podSelector"]["matchLabels"].items())), ports] = peers
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    assert reach == {
        (tuple(ray.items()), ()): [ray],
        (tuple(head.items()), (8265,)): [labels["submitter"], operator],
        (tuple(labels["mlflow"].items()), (5000,)): [head],
        (tuple(labels["postgres"].items()), (5432,)): [labels["mlflow"], head],
    }


def test_servers_are_probed_and_not_published_outside_the_cluster():
    assert all(one["spec"].get("type", "ClusterIP") == "ClusterIP" for one in services("Service"))
    assert not services("Ingress")
    for one in (*services("Deployment"), *services("StatefulSet")):
        (container,) = one["spec"]["template"]["spec"]["containers"]
        assert {"readinessProbe", "livenessProbe"} <= set(container)
