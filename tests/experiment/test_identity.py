"""Names of settings classes, and what a step's id counts."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from mvray.errors import SettingError
from mvray.experiment.identity import code_of, identify, syntax_hash
from mvray.experiment.serialisation import FAMILIES, decoded, encoded
from mvray.experiment.settings import Settings, kind_of, kinds

METHOD = """
from __future__ import annotations
from dataclasses import dataclass
from mvray import Data, Job, Train
from mvray.data.readers import Folder
from mvray.experiment import MethodConfig

@dataclass(frozen=True)
class Config(MethodConfig):
    kind = "stripes"
    width: int = 3

    def build(self, facts):
        raise AssertionError

STEP = Train("one", Config(), Data(Folder()))
"""


def _forget() -> None:
    for name in ("here", "there", "newer"):
        sys.modules.pop(name, None)


def _told(module: str, text: object = None) -> tuple[str, object]:
    """The id and the text of the step in ``module``, or of that in ``text``, which knows its class from ``module``."""
    _forget()
    loaded = importlib.import_module(module)
    step = loaded.STEP if text is None else decoded(json.loads(json.dumps(text)))
    assert type(step.method) is loaded.Config
    return identify(step, 0, "f", str), encoded(step)


def test_a_class_that_moved_keeps_its_steps_id_and_reads_its_step_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "here.py").write_text(METHOD)
    commented = METHOD.replace("class Config", "# a comment\nclass Config")
    commented = commented.replace('kind = "stripes"', '"""Another docstring."""\n\n    kind = "stripes"')
    (tmp_path / "there.py").write_text(commented)
    (tmp_path / "newer.py").write_text(METHOD.replace('kind = "stripes"', 'kind = "stripes"\n    version = 2'))
    here, text = _told("here")
    assert _told("there") == (here, text)
    assert _told("there", text) == (here, text)
    assert _told("newer")[0] != here
    _forget()


def _all(base: type[Settings]) -> set[type[Settings]]:
    below = {cls for child in base.__subclasses__() for cls in (child, *_all(child))}
    return {cls for cls in below if cls.__module__.startswith("mvray.")}


def test_every_settings_class_of_mvray_has_a_name_of_its_own() -> None:
    for base in FAMILIES.values():
        kinds(base)  # imports the catalogue; raises where two have one name
    named = [cls for cls in _all(Settings) if "kind" in vars(cls)]
    assert len({(cls.family, kind_of(cls)) for cls in named}) == len(named) > 40
    assert all(kind_of(cls).replace("_", "").isalnum() and kind_of(cls).islower() for cls in named)
    unnamed = {cls.__name__ for cls in _all(Settings) - set(named)}
    assert not {name for name in unnamed if name.endswith("Config") and name == "Config"}
    assert {"manga109", "folder"} <= set(kinds(FAMILIES["source"]))
    assert {"accuracy", "clusters", "retrieval"} <= set(kinds(FAMILIES["metric"]))


def test_two_classes_of_one_name_are_refused() -> None:
    class One(Settings):
        kind = "twice"

    class Two(Settings):
        kind = "twice"

    module = sys.modules[__name__]
    for cls in (One, Two):
        cls.__qualname__ = cls.__name__
        setattr(module, cls.__name__, cls)
    with pytest.raises(SettingError, match=r"One and .*Two are both named 'twice'"):
        kinds(Settings)
    del module.One, module.Two  # type: ignore[attr-defined]
    assert kinds(Settings)["twice"] in (One, Two)  # as a notebook's cell that is executed again leaves the first


def test_comments_and_docstrings_are_not_code() -> None:
    plain = "def f(x):\n    return x + 1\n"
    told = 'def f(x):\n    """Adds."""\n\n    # one\n    return (x + 1)\n'
    assert syntax_hash(plain) == syntax_hash(told) != syntax_hash(plain.replace("1", "2"))
    assert syntax_hash("def f(x, /, *, y=1):\n    return f'{x!r}'\n") == "478af48e8a67"  # in every Python
    with pytest.raises(SettingError, match="has no name; expected a function made with def"):
        code_of(lambda x: x)
