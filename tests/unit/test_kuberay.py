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

from pipeline.redaction import redact

KUBERAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay"
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


def ray_cluster() -> Manifest:
    return copy.deepcopy(resources("raycluster")[0])


def ray_job() -> Manifest:
    """The job with its cluster, as `kubectl kustomize` puts them together."""
    job = copy.deepcopy(resources("rayjob")[0])
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
    mistakes = {"workerGroupSpecs": [{"maxReplica": 8}], "headGroupSpec": {"container": []}}
    for section, mistake in (mistakes | {"authOptions": {"mode": "disabled"}}).items():
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
