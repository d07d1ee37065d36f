"""infra/fill.py: templates are filled in whole or not at all, and with plain values alone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from account import REGION, ROOT, Stack, script

fill = script("fill")
TEMPLATES = ("cluster.yaml", "infra/kubernetes/raycluster.yaml", "infra/kubernetes/rayjob.yaml")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fill.py", *arguments])
    return int(fill.main())


def test_from_the_stack(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for template in TEMPLATES:
        more = ["--set", "Tag=abc1234", "--set", "Job=jobs/arcface.py", "--set", "Data=data/faces"]
        assert run(monkeypatch, str(ROOT / template), "--stack", "mvray", "--region", REGION, *more) == 0
        result = tmp_path / "filled.yaml"
        result.write_text(capsys.readouterr().out)
        assert fill.left_in(result.read_text()) == []
        assert run(monkeypatch, str(result), "--check") == 0


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, str(ROOT / "cluster.yaml"), "--set", "Tag=abc1234") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "wants values that were not given: HeadInstanceProfile, ImageId, Region" in said.err
    assert "Tag" not in said.err.split("Known are")[0]


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_is_told_from_a_filled_file(
    template: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, str(ROOT / template), "--check") == 2
    assert "has placeholders left: " in capsys.readouterr().err


@pytest.mark.parametrize("value", ["", "a b", "x\nprivileged: true", "a, b", "$(id)", "'x'"])
def test_values_are_plain(value: str) -> None:
    with pytest.raises(fill.Unfilled, match="must be plain"):
        fill.filled("image: <Tag>", {"Tag": value}, "x.yaml")


def test_no_such_stack(account: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, str(ROOT / "cluster.yaml"), "--stack", "other", "--region", REGION) == 2
    assert f"stack other in {REGION} could not be read" in capsys.readouterr().err
