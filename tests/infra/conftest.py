"""An AWS account of moto's in this process, and the stack in it, made once for the files of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from account import OIDC, REGION, Stack, deploy


def pytest_itemcollected(item: pytest.Item) -> None:
    """An AWS account takes its seconds as servers do."""
    if "account" in getattr(item, "fixturenames", ()):
        item.add_marker("slow")


@pytest.fixture(scope="package")
def account() -> Iterator[None]:
    """An empty account; ends with this folder's tests, as moto stands before all of boto3 while it lasts."""
    from moto import mock_aws

    with pytest.MonkeyPatch.context() as patch:
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN"):
            patch.delenv(name, raising=False)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", REGION)
        with mock_aws():
            yield


@pytest.fixture(scope="package")
def stack(account: None) -> Stack:
    """The stack with everything in it: MLflow and the role for Kubernetes too."""
    return deploy("mvray", MlflowTag="abc1234", OidcProvider=OIDC)
