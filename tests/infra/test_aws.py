"""infra/aws.yaml: without a finding of cfn-lint, and deployed in moto's account, is what the README promises."""

from __future__ import annotations

import json
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from account import LAB, REGION, ROOT, Stack, deploy, template

WIDE = {"ec2:Describe", "ecr:GetAuthorizationToken"}
"""Actions that AWS knows for all resources only."""


@pytest.mark.slow
def test_cfn_lint_finds_nothing() -> None:
    from cfnlint.api import lint_file

    assert [str(found) for found in lint_file(Path(ROOT / "infra/aws.yaml"))] == []


def test_every_resource_is_there(stack: Stack) -> None:
    assert set(stack.template["Resources"]) - set(stack.ids) == {"BucketPolicy"}


def test_the_bucket(stack: Stack) -> None:
    s3, bucket = boto3.client("s3"), stack.ids["Bucket"]
    assert stack.outputs["Bucket"] == bucket
    rule = s3.get_bucket_encryption(Bucket=bucket)["ServerSideEncryptionConfiguration"]["Rules"][0]
    assert rule["ApplyServerSideEncryptionByDefault"]["SSEAlgorithm"] == "AES256"
    assert s3.get_bucket_versioning(Bucket=bucket)["Status"] == "Enabled"
    assert set(s3.get_public_access_block(Bucket=bucket)["PublicAccessBlockConfiguration"].values()) == {True}
    rules = {rule["ID"]: rule for rule in s3.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]}
    assert rules["old-versions"]["NoncurrentVersionExpiration"]["NoncurrentDays"] == 30
    assert rules["unfinished-uploads"]["AbortIncompleteMultipartUpload"]["DaysAfterInitiation"] == 3
    assert not any("Expiration" in rule and "Days" in rule["Expiration"] for rule in rules.values()), "data must stay"
    (statement,) = json.loads(s3.get_bucket_policy(Bucket=bucket)["Policy"])["Statement"]
    assert (statement["Effect"], statement["Condition"]) == ("Deny", {"Bool": {"aws:SecureTransport": "false"}})
    assert statement["Resource"] == [f"arn:aws:s3:::{bucket}", f"arn:aws:s3:::{bucket}/*"]
    assert stack.template["Resources"]["Bucket"]["DeletionPolicy"] == "Retain"


def test_security_groups_are_closed_but_for_ssh_from_the_lab(stack: Stack) -> None:
    ids = [stack.ids[name] for name in ("ClusterGroup", "BalancerGroup", "MlflowGroup", "DatabaseGroup")]
    groups = boto3.client("ec2").describe_security_groups(GroupIds=ids)["SecurityGroups"]
    by_id = {group["GroupId"]: group["IpPermissions"] for group in groups}
    opened = [rule for rules in by_id.values() for rule in rules if rule["IpRanges"] or rule.get("Ipv6Ranges")]
    (ssh,) = opened
    assert (ssh["IpProtocol"], ssh["FromPort"], ssh["ToPort"]) == ("tcp", 22, 22)
    assert [place["CidrIp"] for place in ssh["IpRanges"]] == [LAB]

    def sources(group: str) -> set[str]:
        pairs = [pair for rule in by_id[stack.ids[group]] for pair in rule["UserIdGroupPairs"]]
        return {pair["GroupId"] for pair in pairs}

    assert sources("ClusterGroup") == {stack.ids["ClusterGroup"]}
    assert sources("BalancerGroup") == {stack.ids["ClusterGroup"]}
    assert sources("MlflowGroup") == {stack.ids["BalancerGroup"]}
    assert sources("DatabaseGroup") == {stack.ids["MlflowGroup"]}


@pytest.mark.parametrize("cidr", ["0.0.0.0/0", "203.0.113.0", "203.0.0.0/8", "::/0", "0.0.0.0/16"])
def test_ssh_from_everywhere_is_refused(cidr: str) -> None:
    """CloudFormation holds parameters against this pattern; moto does not."""
    assert re.fullmatch(template()["Parameters"]["SshCidr"]["AllowedPattern"], cidr) is None
    assert re.fullmatch(template()["Parameters"]["SshCidr"]["AllowedPattern"], LAB)
    assert "Default" not in template()["Parameters"]["SshCidr"]


def test_the_database(stack: Stack) -> None:
    (found,) = boto3.client("rds").describe_db_instances()["DBInstances"]
    assert (found["Engine"], found["StorageEncrypted"], found["PubliclyAccessible"]) == ("postgres", True, False)
    assert found["BackupRetentionPeriod"] == 7
    assert stack.template["Resources"]["Database"]["DeletionPolicy"] == "Snapshot"
    subnets = {subnet["SubnetIdentifier"] for subnet in found["DBSubnetGroup"]["Subnets"]}
    assert subnets == {stack.ids["PrivateA"], stack.ids["PrivateB"]}
    tables = boto3.client("ec2").describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [stack.ids["Vpc"]]}])
    outward = [t for t in tables["RouteTables"] if any(r.get("GatewayId", "").startswith("igw-") for r in t["Routes"])]
    routed = {link.get("SubnetId") for table in outward for link in table["Associations"]}
    assert not subnets & routed, "no way out"


def test_secrets_are_drawn_and_in_no_plain_setting(stack: Stack) -> None:
    secrets = boto3.client("secretsmanager")
    values = []
    for name in ("RayToken", "DatabaseSecret", "MlflowSecret", "MlflowSessionSecret"):
        text = secrets.get_secret_value(SecretId=stack.ids[name])["SecretString"]
        values.append(json.loads(text)["password"] if text.startswith("{") else text)
    assert min(len(value) for value in values) >= 40
    assert len(set(values)) == 4
    task = boto3.client("ecs").describe_task_definition(taskDefinition="mvray-mlflow")["taskDefinition"]
    (container,) = task["containerDefinitions"]
    named = {secret["name"]: secret["valueFrom"] for secret in container["secrets"]}
    assert named["DATABASE_PASSWORD"] == f"{stack.ids['DatabaseSecret']}:password::"
    assert named["MLFLOW_AUTH_ADMIN_PASSWORD"] == f"{stack.ids['MlflowSecret']}:password::"
    assert not any("PASSWORD" in setting["name"] or "SECRET" in setting["name"] for setting in container["environment"])


def test_mlflow_is_reached_inside_only_and_waits_for_its_image(stack: Stack) -> None:
    (balancer,) = boto3.client("elbv2").describe_load_balancers()["LoadBalancers"]
    assert balancer["Scheme"] == "internal"
    assert balancer["LoadBalancerName"] == "mvray-mlflow", "in lower case, as clients send it"
    task = boto3.client("ecs").describe_task_definition(taskDefinition="mvray-mlflow")["taskDefinition"]
    settings = {setting["name"]: setting["value"] for setting in task["containerDefinitions"][0]["environment"]}
    assert settings["MLFLOW_SERVER_ALLOWED_HOSTS"] == f"{balancer['DNSName']},localhost:*"
    assert settings["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"] == stack.outputs["TrackingUri"]
    assert stack.outputs["TrackingUri"] == f"http://{balancer['DNSName']}"
    ecs = boto3.client("ecs")
    (service,) = ecs.describe_services(cluster=stack.ids["MlflowCluster"], services=[stack.ids["MlflowService"]])[
        "services"
    ]
    assert service["desiredCount"] == 1
    early = deploy("early", ClusterName="early")
    assert "TrackingUri" not in early.outputs
    assert "MlflowService" not in early.ids
    assert "Balancer" not in early.ids


def test_images_keep_their_tags(stack: Stack) -> None:
    found = boto3.client("ecr").describe_repositories(repositoryNames=["mvray", "mvray-mlflow"])["repositories"]
    assert {r["imageTagMutability"] for r in found} == {"IMMUTABLE"}
    assert {r["repositoryUri"] for r in found} == {stack.outputs["Repository"], stack.outputs["MlflowRepository"]}
    assert all(r["repositoryUri"].startswith(stack.outputs["Registry"]) for r in found)


def policies(stack: Stack) -> dict[str, list[dict[str, Any]]]:
    """The statements of every policy of the stack, as deployed."""
    iam = boto3.client("iam")
    found = {}
    for name in ("NodePolicy", "LaunchPolicy", "OperatorPolicy"):
        version = iam.get_policy(PolicyArn=stack.ids[name])["Policy"]["DefaultVersionId"]
        document = iam.get_policy_version(PolicyArn=stack.ids[name], VersionId=version)["PolicyVersion"]["Document"]
        found[name] = document["Statement"]
    for name, policy in (("MlflowExecutionRole", "start"), ("MlflowRole", "artifacts")):
        document = iam.get_role_policy(RoleName=stack.ids[name], PolicyName=policy)["PolicyDocument"]
        found[name] = yaml.safe_load(str(document))["Statement"]  # moto: Python's repr
    return found


def test_roles_may_do_little(stack: Stack) -> None:
    for name, statements in policies(stack).items():
        for statement in statements:
            actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
            assert not any(action.endswith("*") for action in actions), (name, actions)
            if statement["Resource"] == "*":
                assert all(any(action.startswith(wide) for wide in WIDE) for action in actions), (name, actions)
    every = [statement for found in policies(stack).values() for statement in found]
    passed = [s for s in every if s["Action"] == "iam:PassRole"]
    iam = boto3.client("iam")
    arns = {name: iam.get_role(RoleName=stack.ids[name])["Role"]["Arn"] for name in ("WorkerRole", "HeadRole")}
    assert [s["Resource"] for s in passed] == [arns["WorkerRole"], arns["HeadRole"]]
    launched = [s for s in policies(stack)["LaunchPolicy"] if s["Action"] == "ec2:RunInstances"]
    conditions = [s["Condition"] for s in launched if "Condition" in s]
    assert {"Bool": {"ec2:Encrypted": "true"}} in conditions
    own = {"aws:RequestTag/ray-cluster-name": "mvray", "ec2:MetadataHttpTokens": "required"}
    assert {"StringEquals": own} in conditions


def may(statements: list[dict[str, Any]], action: str, resource: str) -> bool:
    """Whether one of them allows it to everyone who has it; what stands under a condition does not count."""

    def listed(value: str | list[str]) -> list[str]:
        return [value] if isinstance(value, str) else value

    return any(
        statement["Effect"] == "Allow"
        and "Condition" not in statement
        and action in listed(statement["Action"])
        and any(fnmatchcase(resource, pattern) for pattern in listed(statement["Resource"]))
        for statement in statements
    )


def test_operators_may_do_what_the_readme_tells_them(stack: Stack) -> None:
    """docker push wants all of these: AWS's list in "IAM permissions for pushing an image"."""
    arns = stack.outputs["OperatorPolicies"].split()
    found = policies(stack)
    assert arns == [stack.ids[name] for name in ("OperatorPolicy", "LaunchPolicy", "NodePolicy")]
    held = [statement for name in ("OperatorPolicy", "LaunchPolicy", "NodePolicy") for statement in found[name]]
    pushed = ("CompleteLayerUpload", "UploadLayerPart", "InitiateLayerUpload", "PutImage")
    pushed += ("BatchCheckLayerAvailability", "BatchGetImage")
    ecr = boto3.client("ecr")
    for repository in ecr.describe_repositories(repositoryNames=["mvray", "mvray-mlflow"])["repositories"]:
        for action in pushed:
            assert may(held, f"ecr:{action}", repository["repositoryArn"]), (action, repository["repositoryName"])
        assert not may(found["NodePolicy"], "ecr:PutImage", repository["repositoryArn"])
    assert may(held, "ecr:GetAuthorizationToken", "*")
    stacks = f"arn:aws:cloudformation:{REGION}:123456789012:stack"
    assert may(held, "cloudformation:DescribeStacks", f"{stacks}/mvray/*"), "what AWS asks for a stack by its name"
    assert not may(held, "cloudformation:DescribeStacks", f"{stacks}/other/*")
    secrets = {name: stack.ids[name] for name in ("RayToken", "MlflowSecret", "DatabaseSecret")}
    assert [n for n, arn in secrets.items() if may(held, "secretsmanager:GetSecretValue", arn)] == ["RayToken"]
    key = f"arn:aws:ec2:{REGION}:123456789012:key-pair/ray-autoscaler_{REGION}"
    assert may(held, "ec2:CreateKeyPair", key)
    for action, place in (("ListBucket", ""), ("PutObject", "/data/a.png"), ("GetObject", "/runs/step.json")):
        assert may(held, f"s3:{action}", f"arn:aws:s3:::{stack.ids['Bucket']}{place}")


def test_who_has_which_role(stack: Stack) -> None:
    iam = boto3.client("iam")

    resources = stack.template["Resources"]  # moto's CloudFormation attaches no managed policies
    assert resources["WorkerRole"]["Properties"]["ManagedPolicyArns"] == [{"Ref": "NodePolicy"}]
    assert resources["HeadRole"]["Properties"]["ManagedPolicyArns"] == [{"Ref": "NodePolicy"}, {"Ref": "LaunchPolicy"}]
    for output, role in (("HeadInstanceProfile", "HeadRole"), ("WorkerInstanceProfile", "WorkerRole")):
        profile = iam.get_instance_profile(InstanceProfileName=stack.outputs[output])["InstanceProfile"]
        assert [found["RoleName"] for found in profile["Roles"]] == [stack.ids[role]]
    trust = iam.get_role(RoleName=stack.ids["KubernetesRole"])["Role"]["AssumeRolePolicyDocument"]
    trust = json.loads(trust) if isinstance(trust, str) else trust
    (who,) = trust["Statement"]
    assert "system:serviceaccount:ray:mvray" in who["Condition"]["StringEquals"].values()
