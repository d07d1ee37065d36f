"""Fill a template in with the outputs of a CloudFormation stack: ``python infra/fill.py TEMPLATE --stack mvray``.

Templates are cluster.yaml and the files in infra/kubernetes. A placeholder is a name in angle brackets, ``<Bucket>``,
with a hint after a colon where someone may meet it unfilled, ``'<Region: ...>'``. Each is replaced by the stack's
output of that name, by ``--set Name=value``, or by the region; the result goes to standard output. Nothing is written
while one is left: an image or a group that does not exist would otherwise be found out by a node that never starts.

``python infra/fill.py --check FILE`` says whether a file has placeholders left (exit code 2 where it does).
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

PLACEHOLDER = re.compile(r"<([A-Z][A-Za-z]*)(?:: [^<>\n]*)?>")
SAFE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*")
"""What a value may look like: ids, names, ARNs, addresses. Anything else could become more than one YAML value."""


class Unfilled(Exception):
    """A message for the person at the terminal."""


def left_in(text: str) -> list[str]:
    """Names of the placeholders in ``text``, comments apart, each once."""
    lines = (line for line in text.splitlines() if not line.lstrip().startswith("#"))
    return sorted({name for line in lines for name in PLACEHOLDER.findall(line)})


def filled(text: str, values: dict[str, str], where: str) -> str:
    """``text`` with every placeholder replaced, also where quotes surround it.

    Raises Unfilled, naming all that is wrong, where a value is missing or is no plain name.
    """
    missing = [name for name in left_in(text) if name not in values]
    if missing:
        known = ", ".join(sorted(values)) or "none"
        raise Unfilled(
            f"{where} wants values that were not given: {', '.join(missing)}. Known are: {known}. Outputs come from "
            "the stack of infra/aws.yaml (--stack NAME --region REGION), others from --set Name=value."
        )
    odd = [f"{name}={values[name]!r}" for name in left_in(text) if not SAFE.fullmatch(values[name])]
    if odd:
        raise Unfilled(f"Values for {where} must be plain names, ids or addresses: {', '.join(odd)}.")
    return PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def outputs(stack: str, region: str) -> dict[str, str]:
    """The stack's outputs. Raises Unfilled where it cannot be read or is not ready."""
    import boto3
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        client = boto3.client("cloudformation", region_name=region)
        found = client.describe_stacks(StackName=stack)["Stacks"][0]
    except (BotoCoreError, ClientError) as error:
        raise Unfilled(f"The outputs of stack {stack} in {region} could not be read: {error}.") from error
    if not found["StackStatus"].endswith("_COMPLETE") or found["StackStatus"].startswith("DELETE"):
        raise Unfilled(f"Stack {stack} in {region} is in state {found['StackStatus']}; wait until it is complete.")
    return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("template", type=Path)
    parser.add_argument("--check", action="store_true", help="only say what is left to be filled in")
    parser.add_argument("--stack", help="name of the CloudFormation stack of infra/aws.yaml")
    parser.add_argument("--region", help="where the stack is")
    parser.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="another value, or an override"
    )
    given = parser.parse_args()
    try:
        text = given.template.read_text()
        if given.check:
            left = left_in(text)
            if left:
                raise Unfilled(f"{given.template} has placeholders left: {', '.join(left)}. Fill it in: see its head.")
            return 0
        if given.stack and not given.region:
            raise Unfilled("--stack wants --region too.")
        values = {**outputs(given.stack, given.region), "Region": given.region} if given.stack else {}
        for pair in given.set:
            name, equals, value = pair.partition("=")
            if not equals:
                raise Unfilled(f"--set wants NAME=VALUE, not {pair!r}.")
            values[name] = value
        sys.stdout.write(filled(text, values, str(given.template)))
    except (OSError, Unfilled) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
