"""The files for `ray up`: Ray's own schema and checks, the clouds' descriptions of a host, and open ports."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCHER = Path(__file__).resolve().parents[2] / "cluster" / "launcher"
CLOUDS = ("aws", "gcp")
ALL = ("onpremise", *CLOUDS)


@cache
def prepared(name: str) -> dict[str, Any]:
    """A file as `ray up` takes it: joined with the provider's defaults, and checked."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((LAUNCHER / f"{name}.yaml").read_text()))
    validate_config(config)
    return config


@pytest.mark.parametrize("name", ALL)
def test_ray_accepts_the_file_and_its_defaults_install_and_start_nothing(name: str):
    """Ray's own defaults install a nightly build and let the dashboard listen everywhere."""
    config = prepared(name)
    assert config["cluster_name"] == "mgmrn"
    commands = [command for key in config if key.endswith("_commands") for command in config[key]]
    assert not any("ray-wheels" in command or "0.0.0.0" in command for command in commands)
    (head,) = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    (worker,) = [command for command in config["worker_start_ray_commands"] if "ray start" in command]
    assert "--head --port=6379 --dashboard-host=127.0.0.1" in head
    assert "--address=$RAY_HEAD_IP:6379" in worker


@pytest.mark.parametrize("name", ALL)
def test_every_host_gets_the_token_and_asks_for_it(name: str):
    config, environment = prepared(name), {"onpremise": "environment.sh"}.get(name, "Dockerfile")
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert "RAY_AUTH_MODE=token" in (LAUNCHER.parent / environment).read_text()
    if name == "onpremise":
        starts = [*config["head_start_ray_commands"], *config["worker_start_ray_commands"]]
        assert all("cluster/environment.sh &&" in command for command in starts)
    else:
        assert config["docker"]["image"] == "REGISTRY/mgmrn-lab:TAG"


@pytest.mark.parametrize("name", CLOUDS)
def test_heads_compute_nothing_and_no_host_is_reachable_from_the_internet(name: str):
    config = prepared(name)
    types = config["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0} and types["gpu"]["resources"]["GPU"] == 8
    assert sum(one["max_workers"] for one in types.values()) == config["max_workers"]
    assert config["provider"]["use_internal_ips"] is True
    assert config["auth"]["ssh_proxy_use_node_id"] is True, "ssh goes through the cloud's own proxy"
    for one in types.values():
        node = one["node_config"]
        if name == "aws":
            # Without groups of one's own, Ray makes one that lets ssh in from everywhere.
            assert node["SecurityGroupIds"] and node["SubnetIds"]
            assert node["MetadataOptions"]["HttpTokens"] == "required"
        else:
            # Without interfaces of one's own, Ray asks for an external address.
            assert not any("accessConfigs" in interface for interface in node["networkInterfaces"])


def test_hosts_of_aws_match_the_description_of_its_api():
    pytest.importorskip("botocore", reason="needs boto3, as `ray up` for AWS does")
    import botocore.session
    from botocore.validate import validate_parameters

    model = botocore.session.get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for one in prepared("aws")["available_node_types"].values():
        # Ray chooses one of the subnets, and says how many hosts.
        node = {key: value for key, value in one["node_config"].items() if key != "SubnetIds"}
        validate_parameters(node | {"SubnetId": "SUBNET", "MinCount": 1, "MaxCount": 1}, model)


def test_hosts_of_google_match_the_description_of_its_api():
    discovery = pytest.importorskip("googleapiclient.discovery_cache", reason="needs google-api-python-client")
    documents = Path(discovery.__file__).parent / "documents"
    schemas = json.loads((documents / "compute.v1.json").read_text())["schemas"]
    for one in prepared("gcp")["available_node_types"].values():
        assert unknown_fields(one["node_config"], schemas["Instance"], schemas) == []


def unknown_fields(value: Any, schema: dict[str, Any], schemas: dict[str, Any], path: str = "") -> list[str]:
    """Fields that a description in Google's format does not have."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    if isinstance(value, list):
        return [one for item in value for one in unknown_fields(item, schema.get("items", {}), schemas, path)]
    if not isinstance(value, dict):
        return []
    known, found = schema.get("properties", {}), []
    for name, inner in value.items():
        inside = f"{path}.{name}".lstrip(".")
        found += unknown_fields(inner, known[name], schemas, inside) if name in known else [inside]
    return found
