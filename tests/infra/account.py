"""infra/aws.yaml deployed in an AWS account of moto's, and cluster.yaml filled in with what comes of it."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
REGION = "us-west-2"
LAB = "203.0.113.0/24"
IMAGE = "/mvray/node-image"
OIDC = "oidc.eks.us-west-2.amazonaws.com/id/EXAMPLE"


def script(name: str) -> ModuleType:
    """A script of infra/, which is no package: nothing imports from there."""
    spec = importlib.util.spec_from_file_location(f"infra_{name}", ROOT / "infra" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Stack:
    """infra/aws.yaml as deployed: its template as plain values, its outputs, and the id of each of its resources."""

    template: dict[str, Any]
    outputs: dict[str, str]
    ids: dict[str, str]


@cache
def template() -> dict[str, Any]:
    """infra/aws.yaml as plain values, CloudFormation's short forms (``!Ref``) written out."""
    from cfnlint.decode import cfn_yaml

    return dict(json.loads(json.dumps(cfn_yaml.load(str(ROOT / "infra/aws.yaml")))))


def deploy(name: str, **parameters: str) -> Stack:
    """Create a stack of infra/aws.yaml.

    moto's CloudFormation does not know secrets, and of a bucket it knows the encryption alone, though moto itself has
    it all: these are made from the template's own properties here, and AWS's public parameter with the image too.
    """
    import boto3

    whole = template()
    given = json.loads(json.dumps(whole))
    image = boto3.client("ec2").describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    boto3.client("ssm").put_parameter(Name=IMAGE, Value=image, Type="String", Overwrite=True)
    given["Parameters"]["NodeImage"]["Default"] = IMAGE
    policy = given["Resources"].pop("BucketPolicy")["Properties"]
    arns = {}
    for key, resource in list(given["Resources"].items()):
        if resource["Type"] == "AWS::SecretsManager::Secret":
            arns[key] = _secret(f"{name}-{key}", resource["Properties"]["GenerateSecretString"])
            del given["Resources"][key]
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=name,
        TemplateBody=json.dumps(_with(given, arns)),
        Capabilities=["CAPABILITY_IAM"],
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in {"SshCidr": LAB, **parameters}.items()],
    )
    found = client.describe_stacks(StackName=name)["Stacks"][0]
    assert found["StackStatus"] == "CREATE_COMPLETE"
    ids = {
        resource["LogicalResourceId"]: resource.get("PhysicalResourceId", "")  # moto: none for rules and links
        for resource in client.describe_stack_resources(StackName=name)["StackResources"]
        if "LogicalResourceId" in resource  # moto lists what a condition leaves out as an empty entry
    }
    _configure(ids["Bucket"], whole["Resources"]["Bucket"]["Properties"], policy["PolicyDocument"])
    return Stack(whole, {output["OutputKey"]: output["OutputValue"] for output in found["Outputs"]}, {**ids, **arns})


def _secret(name: str, how: dict[str, Any]) -> str:
    """What CloudFormation does for GenerateSecretString; returns the secret's ARN."""
    import boto3

    client = boto3.client("secretsmanager")
    rules = {key: value for key, value in how.items() if key not in ("SecretStringTemplate", "GenerateStringKey")}
    drawn = client.get_random_password(**rules)["RandomPassword"]
    text = drawn
    if "GenerateStringKey" in how:
        text = json.dumps({**json.loads(how["SecretStringTemplate"]), how["GenerateStringKey"]: drawn})
    return str(client.create_secret(Name=name, SecretString=text)["ARN"])


def _configure(bucket: str, properties: dict[str, Any], policy: dict[str, Any]) -> None:
    """What CloudFormation does for the bucket's other properties and its policy."""
    import boto3

    s3, arn = boto3.client("s3"), f"arn:aws:s3:::{bucket}"
    s3.put_bucket_versioning(Bucket=bucket, VersioningConfiguration=properties["VersioningConfiguration"])
    block = properties["PublicAccessBlockConfiguration"]
    s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=block)
    rules = []
    for rule in properties["LifecycleConfiguration"]["Rules"]:
        same = {key: value for key, value in rule.items() if key not in ("Id", "ExpiredObjectDeleteMarker")}
        marker = rule.get("ExpiredObjectDeleteMarker")
        ends = {} if marker is None else {"Expiration": {"ExpiredObjectDeleteMarker": marker}}
        rules.append({"ID": rule["Id"], "Filter": {"Prefix": ""}, **same, **ends})
    s3.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})
    (statement,) = policy["Statement"]
    assert statement["Resource"] == [{"Fn::GetAtt": ["Bucket", "Arn"]}, {"Fn::Sub": "${Bucket.Arn}/*"}]
    document = {**policy, "Statement": [{**statement, "Resource": [arn, f"{arn}/*"]}]}
    s3.put_bucket_policy(Bucket=bucket, Policy=json.dumps(document))


def _with(value: Any, arns: dict[str, str]) -> Any:
    if isinstance(value, dict):
        if set(value) == {"Ref"} and value["Ref"] in arns:
            return arns[value["Ref"]]
        return {key: _with(item, arns) for key, item in value.items()}
    if isinstance(value, list):
        return [_with(item, arns) for item in value]
    if isinstance(value, str):
        for name, arn in arns.items():
            value = value.replace(f"${{{name}}}", arn)
    return value


def filled_cluster(stack: Stack) -> dict[str, Any]:
    """cluster.yaml filled in with the stack's outputs, as infra/fill.py does it."""
    values = {**stack.outputs, "Region": REGION, "Tag": "abc1234"}
    text = script("fill").filled((ROOT / "cluster.yaml").read_text(), values, "cluster.yaml")
    return dict(yaml.safe_load(text))
