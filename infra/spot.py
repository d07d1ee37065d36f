"""Two small watchers for clusters on EC2 spot machines, started by cluster.yaml and copied into the image.

``spot.py notice`` runs on every worker. EC2 gives a spot machine two minutes' notice through its metadata service; Ray
does not look at it. On a notice this tells Ray to drain the node, reason preemption, with the seconds that are left, so
that training saves a checkpoint and nothing new is placed there.

``spot.py fallback`` runs on the head. Ray's autoscaler asks for a node type that EC2 refuses again and again, and never
for another type. This turns the ``priority`` of a refused spot type negative for a while, in the configuration that the
autoscaler reads again in each round, so that it takes the type with the next priority: the same machine on demand.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

METADATA = "169.254.169.254"
NOTICE_POLL_S = 5.0
"""EC2 asks for this rhythm."""
TOKEN_S = 21600
FALLBACK_POLL_S = 10.0
REFUSED_S = 600.0
"""How long a refused spot type is passed over; Ray itself lets failed types recover in ten minutes."""


class Metadata:
    """EC2's instance metadata, version 2: every question carries a token that was asked for first."""

    def __init__(self, host: str = METADATA) -> None:
        self._host = host
        self._token = ""

    def get(self, path: str) -> str | None:
        """The text at ``/latest/meta-data/<path>``; None where there is none. Raises OSError."""
        for _ in range(2):
            if not self._token:
                lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_S)}
                status, self._token = self._ask("PUT", "/latest/api/token", lifetime)
                if status != 200:
                    raise OSError(f"the metadata service refused a token: status {status}")
            status, text = self._ask("GET", f"/latest/meta-data/{path}", {"X-aws-ec2-metadata-token": self._token})
            if status == 200:
                return text
            if status == 404:
                return None
            self._token = ""  # 401: it has ended
        raise OSError(f"the metadata service answered {path} with status {status}")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = http.client.HTTPConnection(self._host, timeout=5)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()


def seconds_left(notice: str, now: datetime) -> int:
    """Whole seconds until the time in a notice such as ``{"action": "terminate", "time": "2027-01-31T08:22:00Z"}``."""
    when = datetime.fromisoformat(json.loads(notice)["time"].replace("Z", "+00:00"))
    return max(0, int((when - now).total_seconds()))


def node_id(address: str, instance: str) -> str:
    """Ray's id of the node that runs on this EC2 instance. Raises LookupError where Ray knows of none (yet)."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(address)
    for node in [*status.active_nodes, *status.idle_nodes]:
        if node.instance_id == instance and node.node_id:
            return node.node_id
    raise LookupError(f"Ray at {address} has no node on instance {instance}")


def drain(address: str, node: str, left_s: int) -> None:
    """Tell Ray that the node goes away. Raises CalledProcessError where Ray does not accept it."""
    reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "EC2 takes this spot instance back"]
    command = ["ray", "drain-node", "--address", address, "--node-id", node, *reason]
    subprocess.run([*command, "--deadline-remaining-seconds", str(left_s)], check=True)


def watch_notice(address: str, metadata: Metadata, poll_s: float = NOTICE_POLL_S) -> None:
    """Wait for a notice and pass it on; ends when Ray has accepted it. On a machine that is not spot it never ends."""
    while True:
        try:
            notice = metadata.get("spot/instance-action")
            if notice is not None:
                instance = metadata.get("instance-id") or ""
                left_s = seconds_left(notice, datetime.now(UTC))
                say(f"EC2 takes {instance} back in {left_s} s; telling Ray")
                drain(address, node_id(address, instance), left_s)
                say("Ray drains the node")
                return
        except (OSError, LookupError, ValueError, RuntimeError, subprocess.CalledProcessError) as error:
            say(f"tried again in {poll_s:g} s: {error}")
        time.sleep(poll_s)


def with_priorities(config: dict[str, Any], failed_s: dict[str, float], now_s: float) -> dict[str, Any]:
    """``config`` with a negative priority for each spot type whose last refusal is fresh, and else its positive one.

    ``failed_s`` holds the time of the last refused launch of node types, as ``now_s`` in seconds since 1970.
    """
    types = {}
    for name, node in config["available_node_types"].items():
        market = node["node_config"].get("InstanceMarketOptions", {}).get("MarketType")
        if market == "spot":
            refused = now_s - failed_s.get(name, float("-inf")) < REFUSED_S
            priority = abs(node.get("priority", 0)) or 1
            node = {**node, "priority": -priority if refused else priority}
        types[name] = node
    return {**config, "available_node_types": types}


def refusals(address: str) -> Iterator[tuple[str, float]]:
    """Node types whose launch the cloud refused, and when, as the autoscaler tells them."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    for launch in get_cluster_status(address).failed_launches:
        yield launch.ray_node_type_name, float(launch.failed_ts_s or 0)


def watch_refusals(address: str, path: Path, poll_s: float = FALLBACK_POLL_S) -> None:
    """Keep the priorities in the autoscaler's configuration as EC2's refusals want them; never ends."""
    failed_s: dict[str, float] = {}
    while True:
        try:
            for name, when_s in refusals(address):
                failed_s[name] = max(when_s, failed_s.get(name, 0.0))
            apply(path, failed_s, time.time())
        except (OSError, ValueError, RuntimeError) as error:
            say(f"tried again in {poll_s:g} s: {error}")
        time.sleep(poll_s)


def apply(path: Path, failed_s: dict[str, float], now_s: float) -> None:
    """Write the autoscaler's configuration (JSON, though its name ends in .yaml) where a priority changes."""
    config = json.loads(path.read_text())
    wanted = with_priorities(config, failed_s, now_s)
    if wanted == config:
        return
    for name, node in wanted["available_node_types"].items():
        if node.get("priority", 0) != config["available_node_types"][name].get("priority", 0):
            say(f"{name}: {'EC2 refuses it, passed over' if node['priority'] < 0 else 'tried first again'}")
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(json.dumps(wanted))
    fresh.chmod(path.stat().st_mode)
    fresh.replace(path)  # at once: the autoscaler reads it at any time


def say(line: str) -> None:
    print(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}", flush=True)


def take_over(pid_file: Path) -> None:
    """End the watcher of this kind that a Ray before left running (its address may be another), and be the one."""
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if Path(__file__).name in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGTERM)
    pid_file.write_text(str(os.getpid()))


def main() -> int:
    """The command line; cluster.yaml has both calls."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("watcher", choices=("notice", "fallback"))
    parser.add_argument("--address", required=True, help="the head's GCS, host:port")
    parser.add_argument("--config", type=Path, help="fallback: the autoscaler's configuration on the head")
    parser.add_argument("--metadata", default=METADATA, help="notice: host[:port] of the metadata service")
    parser.add_argument("--pid-file", type=Path, help="default: ~/.spot-WATCHER.pid")
    given = parser.parse_args()
    if given.watcher == "fallback" and given.config is None:
        parser.error("fallback needs --config")
    take_over(given.pid_file or Path.home() / f".spot-{given.watcher}.pid")
    if given.watcher == "notice":
        watch_notice(given.address, Metadata(given.metadata))
    else:
        watch_refusals(given.address, given.config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
