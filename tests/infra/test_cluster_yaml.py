"""cluster.yaml: valid for Ray, closed, without keys, and started with Ray's own AWS provider in moto's account.

The account holds infra/aws.yaml's stack, so that both files are tested together: what one puts out, the other takes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from account import LAB, ROOT, Stack, filled_cluster

GPU = ("gpu-spot", "gpu-on-demand")
WORKERS = (*GPU, "cpu")


@pytest.fixture(scope="module")
def cluster(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """cluster.yaml filled in and prepared as `ray up` does it, in a home that has the secrets."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import prepare_config, validate_config

    home = tmp_path_factory.mktemp("home")
    (home / ".mvray-cluster").mkdir(mode=0o700)
    (home / ".mvray-cluster/auth_token").write_text("ab" * 32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))
        config = prepare_config(filled_cluster(stack))
        validate_config(config)
        config = AWSNodeProvider.fillout_available_node_types_resources(config)
        yield bootstrap_aws(config)


def test_workers_cost_nothing_while_nobody_computes(stack: Stack) -> None:
    config = filled_cluster(stack)
    assert config["cluster_name"] == stack.template["Parameters"]["ClusterName"]["Default"], (
        "the head's policy names it"
    )
    types = config["available_node_types"]
    assert set(types) == {"head", *WORKERS}
    assert {node["min_workers"] for node in types.values()} == {0}
    assert config["idle_timeout_minutes"] <= 15
    assert types["head"]["resources"] == {"CPU": 0}, "no work on the head"
    spot, demand = (dict(types[name]["node_config"]) for name in GPU)
    assert spot.pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot == demand, "the fallback is the same machine"
    assert types["gpu-spot"]["resources"] == types["gpu-on-demand"]["resources"]
    assert types["gpu-spot"]["priority"] > types["gpu-on-demand"]["priority"] == 0


def test_no_keys_and_no_secret(stack: Stack) -> None:
    config = filled_cluster(stack)
    text = str(config)
    assert "aws_credentials" not in text
    assert "AWS_SECRET" not in text
    assert "AWS_ACCESS" not in text
    assert "RAY_AUTH_TOKEN=" not in text, "an environment variable of a container is in `docker inspect`"
    options = config["docker"]["run_options"]
    assert "--env RAY_AUTH_MODE=token" in options
    path = next(option.split("=", 1)[1] for option in options if "RAY_AUTH_TOKEN_PATH" in option)
    assert path == "/run/mvray/auth_token"
    assert config["file_mounts"] == {"/run/mvray": "~/.mvray-cluster"}
    assert not [option for option in options if "publish" in option or "-p " in option or "privileged" in option]


def ray_start(commands: list[str]) -> dict[str, Any]:
    """The options of the one `ray start`, as Ray's command line reads them; an unknown one ends the test."""
    from ray.scripts.scripts import start

    (line,) = (command for command in commands if "ray start" in command)
    words = line.split("ray start", 1)[1].replace("$RAY_HEAD_IP", "10.20.0.4").split()
    return dict(start.make_context("ray start", words).params)


def test_ray_starts_with_a_dashboard_on_loopback_and_stores_that_fit(stack: Stack) -> None:
    config = filled_cluster(stack)
    head = ray_start(config["head_start_ray_commands"])
    assert head["head"]
    assert (head["dashboard_host"], head["dashboard_port"]) == ("127.0.0.1", 8265)
    assert head["autoscaling_config"] == "~/ray_bootstrap_config.yaml"
    worker = ray_start(config["worker_start_ray_commands"])
    assert worker["address"] == "10.20.0.4:6379"
    for options, started in (("head_run_options", head), ("worker_run_options", worker)):
        (shared,) = (option for option in config["docker"][options] if option.startswith("--shm-size="))
        assert int(shared.removeprefix("--shm-size=").removesuffix("gb")) * 10**9 > started["object_store_memory"]
    text = " ".join(config["worker_start_ray_commands"])
    assert "spot.py notice --address $RAY_HEAD_IP:6379" in text
    assert "spot.py fallback" in " ".join(config["head_start_ray_commands"])


def test_the_secrets_reach_the_workers_from_the_head(cluster: dict[str, Any], stack: Stack) -> None:
    """Ray rewrites the configuration for the head: what came to it from here, it hands on from its own disk."""
    from ray.autoscaler._private.commands import _set_up_config_for_head_node
    from ray.autoscaler._private.providers import _get_node_provider

    provider = _get_node_provider(cluster["provider"], cluster["cluster_name"])
    config, remote = _set_up_config_for_head_node(
        dict(cluster, file_mounts=dict(cluster["file_mounts"])), provider, False
    )
    assert config["file_mounts"]["/run/mvray"] == "~/.mvray-cluster"
    text = Path(remote.name).read_text()
    assert '"/run/mvray": "/run/mvray"' in text
    assert "ab" * 32 not in text, "the token itself is in no configuration"


@contextmanager
def started_node(cluster: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    """One node of a type, as Ray's launcher (head) and autoscaler (workers) make it, read back from EC2."""
    from ray.autoscaler import tags
    from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
    from ray.autoscaler._private.util import hash_launch_conf

    provider = AWSNodeProvider(cluster["provider"], cluster["cluster_name"])
    settings = cluster["available_node_types"][name]["node_config"]
    kind = tags.NODE_KIND_HEAD if name == "head" else tags.NODE_KIND_WORKER
    made = provider.create_node(
        settings,
        {
            tags.TAG_RAY_NODE_KIND: kind,
            tags.TAG_RAY_USER_NODE_TYPE: name,
            tags.TAG_RAY_NODE_NAME: f"ray-mvray-{name}",
            tags.TAG_RAY_NODE_STATUS: tags.STATUS_UNINITIALIZED,
            tags.TAG_RAY_LAUNCH_CONFIG: hash_launch_conf(settings, cluster["auth"]),
        },
        1,
    )
    (instance,) = made
    yield dict(boto3.client("ec2").describe_instances(InstanceIds=[instance])["Reservations"][0]["Instances"][0])
    provider.terminate_node(instance)  # the account is that of other files, too


@pytest.mark.parametrize("name", ["head", *WORKERS])
def test_a_node_of_each_type(cluster: dict[str, Any], stack: Stack, name: str) -> None:
    with started_node(cluster, name) as node:
        machines = {"head": "m6i.xlarge", "gpu-spot": "g5.2xlarge", "gpu-on-demand": "g5.2xlarge", "cpu": "c6i.4xlarge"}
        assert node["InstanceType"] == machines[name]
        assert (node.get("InstanceLifecycle") == "spot") == (name in ("gpu-spot", "cpu"))
        assert node["ImageId"] == stack.outputs["ImageId"]
        profile = stack.outputs["HeadInstanceProfile" if name == "head" else "WorkerInstanceProfile"]
        assert node["IamInstanceProfile"]["Arn"].endswith(f"/{profile}")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["SubnetId"] in [stack.outputs[f"Subnet{zone}"] for zone in "ABC"]
        assert [group["GroupId"] for group in node["SecurityGroups"]] == [stack.outputs["SecurityGroup"]]
        ec2 = boto3.client("ec2")
        volumes = [disk["Ebs"]["VolumeId"] for disk in node["BlockDeviceMappings"]]
        disks = ec2.describe_volumes(VolumeIds=volumes)["Volumes"]
        assert [disk["Encrypted"] for disk in disks] == [True]
        assert {tag["Key"]: tag["Value"] for tag in node["Tags"]}["ray-cluster-name"] == "mvray"
        group = ec2.describe_security_groups(GroupIds=[stack.outputs["SecurityGroup"]])["SecurityGroups"][0]
        opened = [place["CidrIp"] for rule in group["IpPermissions"] for place in rule["IpRanges"]]
        assert opened == [LAB], "Ray added nothing"


@pytest.mark.slow
def test_the_template_itself_starts_nothing(tmp_path: Path) -> None:
    """`ray up cluster.yaml`, unfilled: ends before anything is asked of AWS, and its last line says what to do."""
    environ = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "AWS_ACCESS_KEY_ID": "x",
        "AWS_SECRET_ACCESS_KEY": "x",
    }
    command = [Path(sys.executable).parent / "ray", "up", "--yes", ROOT / "cluster.yaml"]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert "fill it in with infra/fill.py" in done.stderr.strip().splitlines()[-1]
