"""What others may not read is taken out of a text before it is logged, shown or kept."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from typing import Any

SECRET_NAMES = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|CREDENTIAL|ACCESS_KEY|API_KEY|PRIVATE_KEY", re.IGNORECASE)
LEAST_CHARACTERS = 8
"""Shorter values of such variables are words ("true"), which would be found everywhere."""
DATABASES = r"(?:postgres(?:ql)?|cockroachdb|mysql|mariadb|mssql|oracle)(?:\+\w+)?://"
"""How SQLAlchemy's addresses begin. A password there may have slashes, as base64 does: it ends with the last @ before
the query."""


def redacted(text: str) -> str:
    """``text`` without users and passwords in addresses, without their queries (signed URLs have keys there), and
    with *** for what a secret variable of the environment says, as AWS_SECRET_ACCESS_KEY."""
    text = plain_addresses(text)
    for secret in _secrets():
        text = text.replace(secret, "***")
    return text


def plain_addresses(text: str) -> str:
    """``text`` without users, passwords and queries in addresses."""
    text = re.sub(rf"(?i)\b({DATABASES})[^\s:/]*:(?:(?:(?!://|\?\w+=)\S)*|[^\s@]*)@", r"\1", text)
    text = re.sub(r"(?i)(?<=s3://)[^\s/:@]+:[^\s@]*@", "", text)  # half of AWS's secrets have a "/"
    text = re.sub(r"(?<=://)[^/\s]*@", "", text)
    return re.sub(r"(\w://[^\s?#'\"]*)\?[^\s#'\"]+", r"\1?...", text)


def redacted_all(content: Any, redact: Callable[[str], str] = redacted) -> Any:
    """JSON with every text in it redacted."""
    if isinstance(content, str):
        return redact(content)
    if isinstance(content, dict):
        return {key: redacted_all(value, redact) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [redacted_all(value, redact) for value in content]
    return content


def _secrets() -> list[str]:
    """Longest first: one may be a part of another."""
    values = [
        value
        for name, value in os.environ.items()
        if SECRET_NAMES.search(name) and not name.upper().endswith(("_FILE", "_PATH", "_URI"))
    ]
    return sorted({value for value in values if len(value) >= LEAST_CHARACTERS}, key=len, reverse=True)
