"""Another user of the machine and another host attack the Ray instances of live commands: each try is refused."""

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.ray.attacker import GOT_IN
from tests.ray.command import REPOSITORY, Place, Running, a_place, wait_until
from tests.ray.small import SEARCH, long_epochs, write_small
from tests.ray.test_ablation import write_grid
from tests.ray.test_kills import epochs_noted

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

JOINING_SECONDS = 60
EPOCHS = 10_000
"""Enough for hours."""
LOOPBACK = "127.0.0.1"
ANY = ("0.0.0.0", "::")
EQUAL = {"::ffff:127.0.0.1": LOOPBACK}


@dataclass(frozen=True)
class OtherHost:
    """A network namespace, whose one cable leads to this machine."""

    name: str
    machine: str
    """Address of this machine on the cable."""


@pytest.fixture(scope="module")
def other_host() -> Iterator[OtherHost]:
    if os.geteuid() != 0:
        pytest.skip("needs root, to act as another user and another host")
    if shutil.which("ip") is None:
        pytest.skip("needs `ip`, to act as another host")
    number = os.getpid() % 2**16
    name, cable, subnet = f"mgmrn-a{number}", f"mgmrn-a{number}", f"10.{200 + number % 50}.{number // 256}"
    inside = ["ip", "-n", name]
    try:
        subprocess.run(["ip", "netns", "add", name], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        pytest.skip(f"needs network namespaces: {error.stderr.decode()}")
    try:
        for step in (
            ["ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name],
            ["ip", "address", "add", f"{subnet}.1/30", "dev", cable],
            ["ip", "link", "set", cable, "up"],
            [*inside, "address", "add", f"{subnet}.2/30", "dev", "eth0"],
            [*inside, "link", "set", "lo", "up"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "route", "add", "default", "via", f"{subnet}.1"],
        ):
            subprocess.run(step, check=True, capture_output=True)
        yield OtherHost(name, f"{subnet}.1")
    finally:
        # The cable goes with the namespace.
        subprocess.run(["ip", "netns", "delete", name], check=False, capture_output=True)


@contextmanager
def shared_place(folder: Path) -> Iterator[Place]:
    """A place whose folder for temporary files is open to all, as `/tmp` is."""
    with a_place(folder) as place:
        place.ray_folder.chmod(0o1777)
        yield place


def train(place: Place) -> Running:
    return place.start("train", *write_small(place.folder), "--set", f"schedule.epochs={EPOCHS}")


def search(place: Place) -> Running:
    _, *data = write_small(place.folder)
    (place.folder / "tiny-search.yaml").write_text(f"{SEARCH}fixed:\n  schedule.epochs: {EPOCHS}\n")
    return place.start("search", "tiny-search.yaml", *data)


def ablate(place: Place) -> Running:
    grid = write_grid(place)
    base = place.folder / "small.yaml"
    base.write_text(base.read_text().replace("epochs: 2", f"epochs: {EPOCHS}"))
    return place.start("ablate", *grid)


def reproduce(place: Place) -> Running:
    """Reproduction of a short run, whose rank `attacked` suspends."""
    small, *data = write_small(place.folder)
    trained = place.run("train", small, *data, "--split", "tune", *long_epochs(60), "--json")
    assert trained.code == 0, trained.err
    return place.start("reproduce", trained.json["runs"][0]["name"], *data)


@pytest.fixture(scope="module", params=[train, search, ablate, reproduce])
def attacked(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, other_host: OtherHost
) -> Iterator[tuple[Place, Running]]:
    """A command that trains as long as it is attacked."""
    with shared_place(tmp_path_factory.mktemp("attacked") / "here") as place:
        running = request.param(place)
        seen = epochs_noted(place)
        # By then all servers listen.
        wait_until(lambda: epochs_noted(place) > seen, "an epoch was noted", 600, running)
        if request.param is reproduce:
            for rank in place.training_workers():
                rank.suspend()
        yield place, running


def test_other_users_of_the_machine_are_refused(attacked: tuple[Place, Running]) -> None:
    place, running = attacked
    ports = listening(running)
    targets = [(LOOPBACK if host in ANY else host, port) for host, port in ports]
    paths = [*place.ray_folder.glob("*/token-*"), *place.ray_folder.rglob("sockets/*")]
    outcomes = attack(place, [], targets, [(LOOPBACK, gcs_port(place))], paths)
    found = Counter(outcome for _, _, outcome in outcomes)
    # Dashboard and an agent, by two paths each (others stay away where their ports are taken); GCS, node, driver and rank.
    assert found["HTTP 401"] >= 4 and found["UNAUTHENTICATED"] >= 4, f"the attacker did not find all servers: {found}"
    assert {host for host, _ in ports} == {LOOPBACK}


def test_other_hosts_are_refused(attacked: tuple[Place, Running], other_host: OtherHost, tmp_path: Path) -> None:
    place, running = attacked
    inside = ["ip", "netns", "exec", other_host.name]
    addresses = {other_host.machine, outer_address()}
    attack(place, inside, [(address, port) for address in addresses for _, port in listening(running)], [], [])
    ray = Path(sys.executable).parent / "ray"
    start = f"{ray} start --address={other_host.machine}:{gcs_port(place)} --num-cpus=1 --block"
    joining = subprocess.run(
        [*inside, "timeout", "-k", "5", str(JOINING_SECONDS), *start.split()],
        env=attackers_environment(place) | {"RAY_TMPDIR": str(tmp_path)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert joining.returncode != 0 and "Ray runtime started" not in joining.stdout, joining.stdout


def test_the_token_goes_with_the_command(attacked: tuple[Place, Running]) -> None:
    place, running = attacked
    (token,) = place.ray_folder.glob("*/token-*")
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and stat.S_IMODE(token.parent.stat().st_mode) == 0o700
    shown = "\n".join(" ".join(process.cmdline()) for process in place.processes())
    assert token.read_text() not in shown
    running.process.send_signal(signal.SIGTERM if "train" in running.process.args else signal.SIGINT)
    running.answer(timeout=100)
    assert not list(place.ray_folder.iterdir())


def attack(
    place: Place, where: list[str], ports: list[tuple[str, int]], drivers: list[tuple[str, int]], paths: list[Path]
) -> list[list[str]]:
    """Runs `tests.ray.attacker`; fails if it got in, answers what it found otherwise."""
    loot = Path(tempfile.mkdtemp(prefix="loot"))
    loot.chmod(0o777)
    plan = {"ports": ports, "drivers": drivers, "paths": [str(path) for path in paths], "loot": str(loot)}
    try:
        done = subprocess.run(
            [*where, sys.executable, "-m", "tests.ray.attacker", json.dumps(plan)],
            # The attacker looks for the instance on loopback, and does not try for long.
            env=attackers_environment(place)
            | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_NUM_REDIS_GET_RETRIES": "2"},
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=300,
        )
    finally:
        shutil.rmtree(loot)
    assert done.returncode == 0, done.stderr
    outcomes: list[list[str]] = json.loads(done.stdout)
    assert not [outcome for outcome in outcomes if outcome[2].startswith(GOT_IN)]
    return outcomes


def attackers_environment(place: Place) -> dict[str, str]:
    """Nothing of Ray's, but the mark by which the place finds its processes."""
    return {name: value for name, value in place.environment.items() if not name.startswith("RAY_")}


def listening(running: Running) -> list[tuple[str, int]]:
    """Addresses and ports at which the command and what it started listen."""
    driver = psutil.Process(running.process.pid)
    own = {process.pid for process in (driver, *driver.children(recursive=True))}
    return sorted(
        (EQUAL.get(one.laddr.ip, one.laddr.ip), one.laddr.port)
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid in own
    )


def gcs_port(place: Place) -> int:
    """Port by which hosts and drivers join."""
    address = next(a for process in place.processes() if (a := process.environ().get("RAY_ADDRESS")) is not None)
    return int(address.rpartition(":")[2])


def outer_address() -> str:
    """Address of this machine towards the network, as Ray finds it; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 80))
        return str(probe.getsockname()[0])
