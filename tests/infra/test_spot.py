"""infra/spot.py: a notice of EC2 reaches Ray, and a refused spot type is passed over for the same machine on demand."""

from __future__ import annotations

import copy
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from account import ROOT, Stack, filled_cluster, script

spot = script("spot")
HEAD = "i-0123456789abcdef0"


class FakeMetadata(http.server.BaseHTTPRequestHandler):
    """EC2's metadata service, version 2 alone: no answer without a token."""

    answers: dict[str, str]
    tokens: list[str]

    def do_PUT(self) -> None:
        if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
            return self._say(400, "")
        self.tokens.append(f"token-{len(self.tokens)}")
        return self._say(200, self.tokens[-1])

    def do_GET(self) -> None:
        if not self.tokens or self.headers.get("X-aws-ec2-metadata-token") != self.tokens[-1]:
            return self._say(401, "")
        name = self.path.removeprefix("/latest/meta-data/")
        return self._say(200, self.answers[name]) if name in self.answers else self._say(404, "")

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def metadata() -> Iterator[tuple[str, type[FakeMetadata]]]:
    """Its host:port on loopback, and the class whose answers a test sets."""
    handler = type("Handler", (FakeMetadata,), {"answers": {}, "tokens": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}", handler
        server.shutdown()
        thread.join()


def notice(seconds: float) -> str:
    when = datetime.now(UTC) + timedelta(seconds=seconds)
    return json.dumps({"action": "terminate", "time": f"{when:%Y-%m-%dT%H:%M:%SZ}"})


def test_metadata_is_asked_with_a_token_and_anew_when_it_has_ended(metadata: tuple[str, type[FakeMetadata]]) -> None:
    host, handler = metadata
    asked = spot.Metadata(host)
    assert asked.get("spot/instance-action") is None
    handler.answers["spot/instance-action"] = notice(120)
    handler.tokens.append("another")  # as if the first had ended
    assert json.loads(asked.get("spot/instance-action"))["action"] == "terminate"
    assert len(handler.tokens) == 3


def test_seconds_left() -> None:
    now = datetime(2027, 1, 31, 8, 20, 0, tzinfo=UTC)
    assert spot.seconds_left('{"action": "terminate", "time": "2027-01-31T08:22:00Z"}', now) == 120
    assert spot.seconds_left('{"action": "stop", "time": "2027-01-31T08:19:00Z"}', now) == 0


def test_the_watcher_goes_on_where_the_service_is_away(tmp_path: Path) -> None:
    """Nothing listens there: it says so and lives."""
    command = [sys.executable, "-u", ROOT / "infra/spot.py", "notice", "--address", "127.0.0.1:1"]
    where = ["--metadata", "127.0.0.1:1", "--pid-file", tmp_path / "pid"]
    with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert "tried again in 5 s" in watcher.stdout.readline()
        assert watcher.poll() is None
        with subprocess.Popen([*command, *where], stdout=subprocess.PIPE, text=True) as second:
            assert watcher.wait(90) == -signal.SIGTERM, "the next one takes over, as after `ray up`"
            second.terminate()


BUSY = """
import json, sys, time
import ray
for _ in range(120):
    try:
        ray.init(address=sys.argv[1], _node_ip_address="127.0.0.1", logging_level="ERROR")
        break
    except ConnectionError:
        time.sleep(0.5)
@ray.remote(num_cpus=1)
class Busy:
    def here(self): pass
busy = Busy.remote()  # else the node ends as soon as it is drained
ray.get(busy.here.remote())
drained = ray._private.state.state.get_draining_nodes  # what Ray Train's workers are told from
assert drained() == {}
print("ready", flush=True)
sys.stdin.readline()
print(json.dumps(drained()), flush=True)
"""


@pytest.mark.drill
def test_ray_drains_the_node(metadata: tuple[str, type[FakeMetadata]], tmp_path: Path) -> None:
    """The real script against a real Ray with a token: Ray knows that the node goes away, and when."""
    host, handler = metadata
    handler.answers = {"instance-id": HEAD}
    (tmp_path / "token").write_text("ab" * 32)
    environ = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token")}
    environ |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environ |= {"HOME": str(tmp_path), "RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_USAGE_STATS_ENABLED": "0"}
    address = f"127.0.0.1:{free_port()}"
    ray = str(Path(sys.executable).parent / "ray")
    start = [ray, "start", "--head", "--block", "--node-ip-address", "127.0.0.1", "--port", address.split(":")[1]]
    lean = ["--num-cpus", "1", "--include-dashboard", "false", "--object-store-memory", "80000000"]
    watch = [sys.executable, ROOT / "infra/spot.py", "notice", "--address", address, "--metadata", host]
    pipes: dict[str, Any] = {"env": environ, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    running = []
    with tempfile.TemporaryDirectory(prefix="ray-") as short, (tmp_path / "ray.log").open("w") as log:
        command = [*start, *lean, "--temp-dir", short]  # Ray's sockets lie there; their names may have 107 letters
        try:
            running.append(subprocess.Popen(command, env=environ, stdout=log, stderr=log))
            busy = subprocess.Popen([sys.executable, "-c", BUSY, address], **pipes)
            running.append(busy)
            assert busy.stdout is not None
            assert busy.stdout.readline() == "ready\n"
            handler.answers["spot/instance-action"] = notice(110)
            watcher = subprocess.run(watch, env=environ, capture_output=True, text=True, timeout=240)
            told, _ = busy.communicate("\n", timeout=60)
        finally:
            for process in reversed(running):
                if process.poll() is None:
                    process.terminate()
                    process.wait(60)
    assert "Ray drains the node" in watcher.stdout, watcher.stderr
    (deadline_ms,) = json.loads(told.splitlines()[-1]).values()
    assert 0 < deadline_ms / 1000 - time.time() <= 110


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_priorities_follow_the_refusals(stack: Stack) -> None:
    config = filled_cluster(stack)
    now = 1_000_000.0

    def priorities(failed: dict[str, float], at: float = now) -> dict[str, int]:
        found = spot.with_priorities(config, failed, at)["available_node_types"]
        return {name: node.get("priority", 0) for name, node in found.items()}

    usual = {"head": 0, "gpu-spot": 10, "gpu-on-demand": 0, "cpu": 10}
    assert priorities({}) == usual
    assert priorities({"gpu-spot": now - 1}) == {**usual, "gpu-spot": -10}
    assert priorities({"gpu-spot": now - 601}) == usual
    assert priorities({"gpu-on-demand": now - 1}) == usual, "there is nothing to fall back on"
    again = spot.with_priorities(spot.with_priorities(config, {"gpu-spot": now}, now), {"gpu-spot": now}, now + 700)
    assert again["available_node_types"]["gpu-spot"]["priority"] == 10


def test_the_file_changes_at_once_and_only_when_it_must(stack: Stack, tmp_path: Path) -> None:
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps(filled_cluster(stack)))
    path.chmod(0o600)
    before = path.stat()
    spot.apply(path, {}, 1000.0)
    assert path.stat().st_ino == before.st_ino, "not written"
    spot.apply(path, {"gpu-spot": 999.0}, 1000.0)
    assert json.loads(path.read_text())["available_node_types"]["gpu-spot"]["priority"] == -10
    assert path.stat().st_mode == before.st_mode
    assert [other.name for other in tmp_path.iterdir()] == [path.name]


class Autoscaler:
    """Ray's autoscaler as it runs on the head (version 2), round by round, on moto's EC2 that refuses spot machines."""

    def __init__(self, config: dict[str, Any], path: Path) -> None:
        from botocore.exceptions import ClientError
        from ray.autoscaler import tags
        from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
        from ray.autoscaler.v2.instance_manager.config import FileConfigReader
        from ray.autoscaler.v2.instance_manager.instance_manager import InstanceManager
        from ray.autoscaler.v2.instance_manager.instance_storage import InstanceStorage
        from ray.autoscaler.v2.instance_manager.node_provider import NodeProviderAdapter
        from ray.autoscaler.v2.instance_manager.storage import InMemoryStorage
        from ray.autoscaler.v2.instance_manager.subscribers.cloud_instance_updater import CloudInstanceUpdater
        from ray.autoscaler.v2.instance_manager.subscribers.cloud_resource_monitor import CloudResourceMonitor
        from ray.autoscaler.v2.scheduler import ResourceDemandScheduler

        self.asked: Counter[str] = Counter()

        def refuse(params: dict[str, Any], **_: object) -> None:
            market = "spot" if "InstanceMarketOptions.MarketType" in params["body"] else "on-demand"
            self.asked[market] += 1
            if market == "spot":
                error = {"Code": "InsufficientInstanceCapacity", "Message": "There is no Spot capacity available."}
                raise ClientError({"Error": error}, "RunInstances")

        self.provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        head = config["available_node_types"]["head"]["node_config"]
        names = (
            tags.TAG_RAY_NODE_KIND,
            tags.TAG_RAY_USER_NODE_TYPE,
            tags.TAG_RAY_NODE_NAME,
            tags.TAG_RAY_LAUNCH_CONFIG,
        )
        (self.head,) = self.provider.create_node(head, dict(zip(names, ["head"] * 4, strict=True)), 1)
        self._type_tag = tags.TAG_RAY_USER_NODE_TYPE
        events = self.provider.ec2_fail_fast.meta.client.meta.events
        events.register("before-call.ec2.RunInstances", refuse)
        self.reader = FileConfigReader(str(path), skip_content_hash=True)
        self.cloud = NodeProviderAdapter(self.provider, self.reader)
        self.monitor = CloudResourceMonitor()
        updater = CloudInstanceUpdater(self.cloud)
        storage = InstanceStorage("test", InMemoryStorage())
        self.instances = InstanceManager(storage, [updater, self.monitor])
        self.scheduler = ResourceDemandScheduler()
        self.round = 0

    def step(self) -> dict[str, float]:
        """One round with one worker that waits for a GPU; node types with a refused launch, and when."""
        from ray.autoscaler.v2.instance_manager.reconciler import Reconciler
        from ray.core.generated.autoscaler_pb2 import (
            ClusterResourceState,
            NodeState,
            ResourceRequest,
            ResourceRequestByCount,
        )

        self.round += 1
        state = ClusterResourceState(cluster_resource_state_version=self.round)
        wanted = ResourceRequest(resources_bundle={"GPU": 1, "CPU": 1})
        state.pending_resource_requests.append(ResourceRequestByCount(request=wanted, count=1))
        mark = {"node:__internal_head__": 1.0}
        head = NodeState(node_id=b"a" * 28, instance_id=self.head, ray_node_type_name="head", status=1)
        head.total_resources.update(mark)
        head.available_resources.update(mark)
        state.node_states.append(head)
        self.reader.refresh_cached_autoscaling_config()
        reply = Reconciler.reconcile(
            instance_manager=self.instances,
            scheduler=self.scheduler,
            cloud_provider=self.cloud,
            cloud_resource_monitor=self.monitor,
            ray_cluster_resource_state=state,
            non_terminated_cloud_instances=self.cloud.get_non_terminated(),
            cloud_provider_errors=self.cloud.poll_errors(),
            autoscaling_config=self.reader.get_cached_autoscaling_config(),
            ray_install_errors=[],
            ray_stop_errors=[],
        )
        time.sleep(0.5)  # launches happen in threads
        return {failed.ray_node_type_name: float(failed.failed_ts) for failed in reply.failed_instance_requests}

    def workers(self) -> list[str]:
        running = [node for node in self.provider.non_terminated_nodes({}) if node != self.head]
        return [self.provider.node_tags(node)[self._type_tag] for node in running]


def test_without_spot_capacity(stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray does by itself, and what becomes of it with the watcher. Should Ray's part fail one day: take it out."""
    from ray.autoscaler._private.util import prepare_config

    (tmp_path / ".mvray-cluster").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    config = prepare_config(filled_cluster(stack))
    path = tmp_path / "ray_bootstrap_config.yaml"
    path.write_text(json.dumps(config))
    autoscaler = Autoscaler(copy.deepcopy(config), path)
    failed: dict[str, float] = {}
    for _ in range(5):
        failed |= autoscaler.step()
    assert set(failed) == {"gpu-spot"}
    assert autoscaler.asked["spot"] > 5, "again and again"
    assert autoscaler.asked["on-demand"] == 0, "and nothing else"
    spot.apply(path, failed, time.time())
    for _ in range(4):
        autoscaler.step()
    assert autoscaler.workers() == ["gpu-on-demand"]
