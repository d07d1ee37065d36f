"""Draw the passwords of infra/compose.yaml: ``python infra/secrets_env.py infra/.env``. A file that is there stays."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

NAMES = (
    "DATABASE_PASSWORD",
    "AWS_SECRET_ACCESS_KEY",
    "SEAWEEDFS_SIGNING_KEY",
    "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_SECRET_KEY",
)


def main() -> int:
    """The command line."""
    if len(sys.argv) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    path = Path(sys.argv[1])
    drawn = {"AWS_ACCESS_KEY_ID": f"mvray{secrets.token_hex(8)}"} | {name: secrets.token_hex(24) for name in NAMES}
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        print(f"{path} is there already and stays as it is: the databases know its passwords.", file=sys.stderr)
        return 2
    with os.fdopen(handle, "w") as file:
        file.writelines(f"{name}={value}\n" for name, value in drawn.items())
    print(f"{path} holds the passwords; MLflow's user is admin. Keep it out of git (it is in .gitignore).")
    return 0


if __name__ == "__main__":
    sys.exit(main())
