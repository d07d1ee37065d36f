"""infra/kubernetes: what stands in a pod is held against Kubernetes' own schema, what is KubeRay's against its fields.

KubeRay's custom resource definitions are in no package registry. The fields above the pods are written down here from
its source and unknown ones refused, as the API server drops them: github.com/ray-project/kuberay, commit
034971da0525dcf2ef39b108a6e54b85b9dc2b4e, ray-operator/apis/ray/v1/raycluster_types.go, and for jobs ``jobTemplate`` in
helm-chart/kuberay-operator/crds/ray.io_raycronjobs.yaml. Left out is what no file here should have, as an ingress, and
what KubeRay has added since it has ``authOptions`` and these files do not use, as ``networkPolicy`` and ``tlsOptions``.
"""

from __future__ import annotations

import gzip
import json
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from account import OIDC, ROOT, script

from mvray.cluster import placement

pytestmark = pytest.mark.slow  # a schema of megabytes

KUBERNETES = json.loads(gzip.decompress((Path(__file__).parent / "schemas/kubernetes-1.37.json.gz").read_bytes()))
TEXT, NUMBER, FLAG = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}
LIST = {"type": "array", "items": TEXT}
START = {"type": "object", "additionalProperties": TEXT}


def core(name: str) -> dict[str, str]:
    return {"$ref": f"#/$defs/io.k8s.api.{name}"}


def object_of(required: tuple[str, ...] = (), **fields: Any) -> dict[str, Any]:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


GROUP = {"rayStartParams": START, "template": core("core.v1.PodTemplateSpec"), "labels": START, "resources": START}
CLUSTER = object_of(
    ("headGroupSpec",),
    rayVersion=TEXT,
    authOptions=object_of(mode={"enum": ["disabled", "token"]}, secretName=TEXT, enableK8sTokenAuth=FLAG),
    enableInTreeAutoscaling=FLAG,
    autoscalerOptions=object_of(
        version={"enum": ["v1", "v2"]},
        upscalingMode={"enum": ["Default", "Aggressive", "Conservative"]},
        idleTimeoutSeconds=NUMBER,
        image=TEXT,
        imagePullPolicy=TEXT,
        resources=core("core.v1.ResourceRequirements"),
        securityContext=core("core.v1.SecurityContext"),
        env={"type": "array", "items": core("core.v1.EnvVar")},
        envFrom={"type": "array", "items": core("core.v1.EnvFromSource")},
        volumeMounts={"type": "array", "items": core("core.v1.VolumeMount")},
        command=LIST,
        args=LIST,
    ),
    headServiceAnnotations=START,
    upgradeStrategy=object_of(type={"enum": ["Recreate", "None"]}),
    managedBy=TEXT,
    suspend=FLAG,
    headGroupSpec=object_of(
        ("template",),
        serviceType={"enum": ["ClusterIP"]},  # KubeRay has Kubernetes' others too; they would open it
        headService=core("core.v1.Service"),
        enableIngress={"const": False},
        **GROUP,
    ),
    workerGroupSpecs={
        "type": "array",
        "items": object_of(
            ("groupName", "template", "minReplicas", "maxReplicas"),
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            numOfHosts=NUMBER,
            idleTimeoutSeconds=NUMBER,
            scaleStrategy=object_of(workersToDelete=LIST),
            **GROUP,
        ),
    },
)
JOB = object_of(
    ("entrypoint", "rayClusterSpec"),  # KubeRay: one of rayClusterSpec and clusterSelector
    entrypoint=TEXT,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    runtimeEnvYAML=TEXT,
    jobId=TEXT,
    metadata=START,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
    submitterConfig=object_of(backoffLimit=NUMBER),
    submitterPodTemplate=core("core.v1.PodTemplateSpec"),
    backoffLimit=NUMBER,
    activeDeadlineSeconds={"type": "integer", "minimum": 1},
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    suspend=FLAG,
    managedBy=TEXT,
    rayClusterSpec=CLUSTER,
)
KINDS = {
    "RayCluster": ("ray.io/v1", CLUSTER),
    "RayJob": ("ray.io/v1", JOB),
    "ServiceAccount": ("v1", None),
    "NetworkPolicy": ("networking.k8s.io/v1", None),
}


def documents(name: str) -> list[dict[str, Any]]:
    """A file's documents, filled in."""
    values = {
        "Repository": "123456789012.dkr.ecr.us-west-2.amazonaws.com/mvray",
        "Tag": "abc1234",
        "Region": "us-west-2",
        "TrackingUri": "http://mlflow.example",
        "Bucket": "mvray-bucket",
        "KubernetesRole": "arn:aws:iam::123456789012:role/mvray",
        "Job": "jobs/gradcam_masking.py",
        "Data": "data/comics",
    }
    text = script("fill").filled((ROOT / "infra/kubernetes" / name).read_text(), values, name)
    return [dict(document) for document in yaml.safe_load_all(text)]


def cluster_specs() -> list[dict[str, Any]]:
    found = {document["kind"]: document["spec"] for name in FILES for document in documents(name) if "spec" in document}
    return [found["RayCluster"], found["RayJob"]["rayClusterSpec"]]


FILES = ("raycluster.yaml", "rayjob.yaml")


@pytest.mark.parametrize("name", FILES)
def test_schema(name: str) -> None:
    for document in documents(name):
        version, spec = KINDS[document["kind"]]
        assert document["apiVersion"] == version
        if spec is None:
            group = "core.v1" if version == "v1" else "networking.v1"
            jsonschema.validate(document, {**core(f"{group}.{document['kind']}"), **KUBERNETES})
        else:
            assert set(document) == {"apiVersion", "kind", "metadata", "spec"}
            jsonschema.validate(document["spec"], {**spec, **KUBERNETES})


def test_the_schema_refuses_a_misspelt_field() -> None:
    spec = cluster_specs()[0]
    spec["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMount"] = []
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(spec, {**CLUSTER, **KUBERNETES})


def test_pods_are_closed_and_bounded() -> None:
    spec = cluster_specs()[0]
    assert spec["authOptions"] == {"mode": "token"}
    groups = {"head": spec["headGroupSpec"], **{group["groupName"]: group for group in spec["workerGroupSpecs"]}}
    assert list(groups) == ["head", "gpu", "cpu"]
    for name, group in groups.items():
        pod = group["template"]["spec"]
        assert pod["serviceAccountName"] == "mvray"
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        assert ("nvidia.com/gpu" in container["resources"]["limits"]) == (name == "gpu")
        shared = next(volume for volume in pod["volumes"] if volume["name"] == "shm")["emptyDir"]
        assert shared["medium"] == "Memory"
        gibibytes = int(shared["sizeLimit"].removesuffix("Gi"))
        assert gibibytes * 2**30 > int(group["rayStartParams"]["object-store-memory"])
        assert gibibytes < int(container["resources"]["limits"]["memory"].removesuffix("Gi")) / 2
        names = {setting["name"] for setting in container["env"]}
        assert not {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"} & names, "the service account's role instead"
        assert all("value" not in setting for setting in container["env"] if "PASSWORD" in setting["name"])
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert {(group["minReplicas"], group["replicas"]) for group in spec["workerGroupSpecs"]} == {(0, 0)}


def test_the_autoscaler_writes_to_the_heads_logs() -> None:
    """KubeRay adds a volume at /tmp/ray to both containers, but not to one that has its own there (addEmptyDir)."""
    spec = cluster_specs()[0]
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (mount,) = spec["autoscalerOptions"]["volumeMounts"]
    assert mount["mountPath"] == "/tmp/ray"  # noqa: S108  in a pod
    assert mount in head["volumeMounts"]


def test_the_head_says_what_all_workers_have() -> None:
    spec = cluster_specs()[0]
    total: Counter[str] = Counter()
    for group in spec["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        for name, amount in container["resources"]["limits"].items():
            total[name] += group["maxReplicas"] * int(amount) if name != "memory" else 0
    (head,) = spec["headGroupSpec"]["template"]["spec"]["containers"]
    (said,) = (each["value"] for each in head["env"] if each["name"] == placement.GIVEN)
    assert placement.parse_amounts(said) == {"GPU": total["nvidia.com/gpu"], "CPU": total["cpu"]}


def test_both_files_have_the_same_cluster() -> None:
    cluster, job = cluster_specs()
    assert cluster == job


def test_the_service_account_is_the_one_that_the_role_trusts() -> None:
    account, policy, _ = documents("raycluster.yaml")
    assert account["metadata"]["name"] == "mvray"
    assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"].startswith("arn:aws:iam::")
    assert "system:serviceaccount:ray:mvray" in (ROOT / "infra/aws.yaml").read_text()
    assert OIDC.startswith("oidc.eks")
    assert policy["spec"]["policyTypes"] == ["Ingress"]


def test_the_jobs_command_is_one_that_mvray_has() -> None:
    from mvray.cli import _parser

    (job,) = documents("rayjob.yaml")
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[0] == "mvray"
    given = _parser().parse_args(words[1:])
    assert (given.storage, given.data) == ("s3://mvray-bucket/runs", "s3://mvray-bucket/data/comics")
