"""Jobs as text: `--set`, ids, and what step.json holds."""

from __future__ import annotations

import enum
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from mvray import Job
from mvray.api import load_job
from mvray.data.readers.folder import Folder
from mvray.data.readers.manga109 import Manga109
from mvray.errors import SettingError
from mvray.experiment.contracts import MethodConfig
from mvray.experiment.identity import identify, without_files
from mvray.experiment.overrides import replaced
from mvray.experiment.serialisation import decoded, encoded, flat
from mvray.experiment.steps import Data, Step, Train
from mvray.methods import classifier

FILE = Path(__file__).parents[2] / "jobs" / "gradcam_masking.py"
JOB = load_job(FILE, True, None)
STEPS = {step.name: step for step in JOB.walk()}
ALL = set(STEPS)


def ids(job: Job, seed: int = 0, fingerprint: str = "f") -> dict[str, str]:
    known: dict[str, str] = {}
    for step in job.walk():
        known[step.name] = identify(step, seed, fingerprint, lambda other: known[other.name])
    return known


def changed(name: str, value: Any) -> set[str]:
    """The steps that a setting gives another id."""
    before, after = ids(JOB), ids(replaced(JOB, {name: value}))
    assert set(before) == set(after)
    return {step for step in before if before[step] != after[step]}


def step_of(job: Job, name: str) -> Any:
    return next(step for step in job.walk() if step.name == name)


# -- ids -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("masked.method.probability", "0.3", {"masked", "look-masked", "score-masked"}),
        ("masked.optim.lr", "0.5", {"masked", "look-masked", "score-masked"}),
        ("erasing.method.area", "0.1,0.2", {"erasing", "look-erasing", "score-erasing"}),
        ("look-plain.generator.layer", "network.features.4", {"look-plain", "score-plain"}),
        ("cams.generator.target", "predicted", {"cams", "masked", "look-masked", "score-masked"}),
        ("score-plain.data.splits", "test", {"score-plain"}),
        ("phase1.method.label_smoothing", "0.1", ALL),
        ("phase1.optim.patience", "none", ALL),
        ("pictures.height", "99", ALL),
        ("source.split_seed", "3", ALL),
        ("source", "folder", ALL),
    ],
)
def test_a_setting_changes_its_step_and_what_depends_on_it(name: str, value: str, expected: set[str]) -> None:
    assert changed(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("source.root", "/elsewhere"),
        ("scale.workers", "7"),
        ("scale.loader_workers", "5"),
        ("phase1.scale.checkpoint_steps", "1"),
        ("masked.data.max_bad_fraction", "0.5"),
        ("data.max_bad_fraction", "0.5"),
        ("cams.generator.batch_size", "3"),
        ("masked.method.probability", "0.5"),  # as it was
        ("seeds", "4,5"),
    ],
)
def test_how_a_step_is_executed_does_not_change_it(name: str, value: str) -> None:
    assert changed(name, value) == set()


def test_seed_data_and_version_are_in_the_id(monkeypatch: pytest.MonkeyPatch) -> None:
    before = ids(JOB)
    assert not set(before.values()) & set(ids(JOB, seed=1).values())
    assert not set(before.values()) & set(ids(JOB, fingerprint="other").values())
    assert len(set(before.values())) == len(ALL)
    assert all(len(each) == 12 and int(each, 16) >= 0 for each in before.values())
    monkeypatch.setattr(classifier.Config, "version", 2)
    assert not set(before.values()) & set(ids(JOB).values())


def test_a_whole_number_is_the_same_setting_however_it_is_written() -> None:
    def id_of(step: Train) -> str:
        return identify(step, 0, "f", lambda other: other.name)

    step = step_of(JOB, "plain")
    whole = replace(step, optim=replace(step.optim, warmup_epochs=7))
    assert id_of(whole) == id_of(replace(step, optim=replace(step.optim, warmup_epochs=7.0)))
    assert id_of(whole) == id_of(step_of(replaced(JOB, {"plain.optim.warmup_epochs": "7"}), "plain"))
    assert id_of(whole) != id_of(step)


def test_a_file_counts_by_its_content(tmp_path: Path) -> None:
    found = []
    for name, content in (("a.pth", b"one"), ("b.pth", b"one"), ("a.pth", b"two")):
        (tmp_path / name).write_bytes(content)
        found.append(ids(replaced(JOB, {"phase1.method.weights": str(tmp_path / name)}))["phase1"])
    assert found[0] == found[1] != found[2]
    config = replace(step_of(JOB, "masked").method, weights=str(tmp_path / "gone.pth"))
    assert without_files(config) == step_of(JOB, "masked").method


def _half(table: Any, classes: tuple[str, ...]) -> dict[str, float]:
    return {"half": 0.5}


def test_a_file_stays_where_it_was_for_processes_that_work_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    for given, expected in (
        ("nets/x.pth", str(tmp_path / "nets" / "x.pth")),
        ("~/x.pth", "/home/someone/x.pth"),
        ("https://host/x.pth", "https://host/x.pth"),
        ("", ""),
    ):
        assert step_of(replaced(JOB, {"phase1.method.weights": given}), "phase1").method.weights == expected


PLANTED = "planted-secret-9f3a"


@pytest.mark.parametrize(
    "address",
    [
        f"https://me:{PLANTED}@host/x.pth",
        f"s3://{PLANTED}@b/x",
        f"x HTTPS://{PLANTED}@h",
        f"s3://KEY:wJalrX/{PLANTED}@b/x",
        f"S3://KEY:/{PLANTED}@b",
    ],
)
@pytest.mark.parametrize("name", ["phase1.method.weights", "phase1.optim.lr", "nothing.there"])
def test_a_password_in_an_address_is_refused_without_repeating_it(name: str, address: str) -> None:
    """Submit reads settings by the same way, before anything is sent."""
    said = rf"{name}: found a user or password before '@' in an address \(\w+://\.\.\.\); expected one without"
    with pytest.raises(SettingError, match=said) as raised:
        load_job(FILE, True, None, {name: address})
    assert PLANTED not in str(raised.value)


def test_a_password_in_a_job_file_is_refused(tmp_path: Path) -> None:
    phase1 = step_of(JOB, "phase1")
    for address, fits in (
        (f"https://{PLANTED}@host/x.pth", False),
        (f"s3://KEY:wJalrX/{PLANTED}@bucket/x.pth", False),
        ("https://host/@scope/x.pth?at=a@b", True),
        ("https://host:8080/x.pth", True),
        ("s3://bucket/a:b@c/x.pth", True),
        ("two s3://buckets: s3://a, s3://b", True),
    ):
        job = replace(JOB, steps=(replace(phase1, method=replace(phase1.method, weights=address)),))
        if fits:
            replaced(job, {})
            continue
        with pytest.raises(SettingError, match=r"phase1\.method\.weights: found a user or password"):
            replaced(job, {})


def test_a_metric_counts_by_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    step = replace(step_of(JOB, "score-plain"), metrics=(_half,))
    before = identify(step, 0, "f", lambda step: step.name)
    assert before == identify(step, 0, "f", lambda step: step.name)
    monkeypatch.setattr("inspect.getsource", lambda function: "def _half(table, classes): ...")
    assert identify(step, 0, "f", lambda step: step.name) != before
    with pytest.raises(SettingError, match=r"has no name; expected a function made with def"):
        identify(replace(step, metrics=(lambda table, classes: {},)), 0, "f", lambda step: step.name)


def test_the_id_is_of_the_content_not_of_the_name() -> None:
    first = STEPS["phase1"]
    names = [identify(replace(first, name=name), 0, "f", lambda step: step.name) for name in ("phase1", "another")]
    assert names[0] == names[1]


# -- changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("phase1.optim.epochs", " 3 ", 3),
        ("phase1.optim.lr", "1e-3", 0.001),
        ("phase1.optim.lr", 1, 1.0),
        ("phase1.optim.patience", "4", 4),
        ("phase1.optim.patience", "None", None),
        ("phase1.optim.clip_norm", 2, 2.0),
        ("phase1.optim.milestones", "(3, 5,7)", (3, 5, 7)),
        ("phase1.optim.milestones", "", ()),
        ("phase1.optim.milestones", [1, 2], (1, 2)),
        ("phase1.scale.channels_last", "False", False),
        ("phase1.scale.compile", "yes", True),
        ("phase1.scale.checkpoint_steps", "none", None),
        ("phase1.data.pictures.crop_scale", "0.5,1", (0.5, 1.0)),
        ("phase1.data.splits", "train,test", ("train", "test")),
        ("phase1.data.source.works", "A,B", ("A", "B")),
        ("phase1.select", "loss", "loss"),
    ],
)
def test_text_becomes_the_type_of_the_setting(name: str, value: Any, expected: Any) -> None:
    found: Any = step_of(replaced(JOB, {name: value}), "phase1")
    for part in name.split(".")[1:]:
        found = getattr(found, part)
    assert found == expected
    assert type(found) is type(expected)


def test_values_that_fit_only_together() -> None:
    job = replaced(JOB, {"source.train": 0.8, "source.validation": 0.1, "source.test": "0.1"})
    source = step_of(job, "phase1").data.source
    assert (source.train, source.validation, source.test) == (0.8, 0.1, 0.1)
    with pytest.raises(SettingError, match=r"add up to 1\.2"):
        replaced(JOB, {"source.train": 0.8, "source.validation": 0.2, "source.test": "0.2"})


def test_the_order_of_changes() -> None:
    """A part of another kind comes first, whatever the order; else what is said later holds."""
    job = replaced(JOB, {"source.train": 0.6, "source.test": 0.1, "source": "folder"})
    source = step_of(job, "phase1").data.source
    assert isinstance(source, Folder)
    assert (source.train, source.test) == (0.6, 0.1)
    shares = {"source.train": 0.9, "phase1.data.source.train": 0.6, "source.test": 0.05, "source.validation": 0.05}
    assert step_of(replaced(JOB, shares), "phase1").data.source.train == 0.6
    with pytest.raises(SettingError, match="no setting 'tets'"):
        replaced(JOB, {"source.train": 0.8, "source.tets": 0.1})


def test_a_change_reaches_every_place_of_a_step() -> None:
    """phase1 is trained, looked through and started from: it is one step wherever it is pointed at."""
    job = replaced(JOB, {"phase1.optim.epochs": "1"})
    first = step_of(job, "phase1")
    assert step_of(job, "cams").generator.of is first
    assert all(step_of(job, name).start_from is first for name in ("plain", "erasing", "masked"))
    assert step_of(job, "masked").data.columns[0] is step_of(job, "cams")
    assert [row.measure for row in job.table.rows] == list(job.steps)
    assert job.sheets[0].masked is step_of(job, "masked")
    assert step_of(JOB, "phase1").optim.epochs != 1


def test_job_wide_settings_reach_the_parts_that_have_them() -> None:
    """Frames are a setting of clips, height one of pictures too."""
    job = replaced(load_job(FILE.with_name("object_abn.py"), True, None), {"pictures.frames": 4, "pictures.height": 9})
    pictures = {step.name: step.data.pictures for step in job.walk()}
    assert pictures["abn"].frames == pictures["look-abn"].frames == 4
    assert {each.height for each in pictures.values()} == {9}
    with pytest.raises(SettingError, match="has no setting 'frame'"):
        replaced(job, {"pictures.frame": 4})


def test_job_wide_settings_reach_every_part() -> None:
    job = replaced(JOB, {"source.root": "/data", "pictures.width": "64", "scale.workers": 5, "seeds": "3, 4"})
    for step in job.walk():
        assert (step.data.source.root, step.data.pictures.width) == ("/data", 64)
        assert step.kind == "measure" or step.scale.workers == 5
    assert job.seeds == (3, 4)
    assert all(sheet.data.source.root == "/data" for sheet in job.sheets)


def test_another_source_of_the_catalogue_keeps_the_root() -> None:
    job = replaced(JOB, {"source.root": "/data", "source": "folder", "source.test": "0.1"})
    for step in job.walk():
        assert step.data.source == Folder(root="/data", test=0.1)
    assert replaced(JOB, {"source": "manga109"}) == JOB
    one = replaced(JOB, {"phase1.data.source": "folder"})
    assert isinstance(step_of(one, "phase1").data.source, Folder)
    assert isinstance(step_of(one, "cams").data.source, Manga109)
    assert replaced(JOB, {"masked.method": "classifier", "cams.generator": "gradcam"}) == JOB


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "maskd.method.probability",
            1,
            r"nothing in the job 'gradcam_masking' is named 'maskd' \(did you mean 'masked'",
        ),
        (
            "nothing",
            1,
            "Expected STEP.SETTING with a step of phase1, plain, .*, or one of source, pictures, .*scale, search, seeds",  # noqa: E501
        ),
        ("masked", 1, "masked is a step; name one of its settings: name, method, data, optim"),
        (
            "masked.methd.probability",
            1,
            r"Train has no setting 'methd' \(did you mean 'method'\?\). It has: name, method",
        ),
        (
            "masked.method.probabilty",
            1,
            r"Config has no setting 'probabilty' \(did you mean 'probability'\?\). It has:",
        ),
        ("masked.method.probability.x", 1, "'probability' is 0.5 and has no settings of its own"),
        ("pictures.hight", 1, "Pictures has no setting 'hight'.* It has: height, width, channels"),
        ("seeds.first", 1, "nothing in the job"),
        ("source", "foldr", r"no source 'foldr' \(did you mean 'folder'\?\). There are: .*folder.*manga109"),
        ("source", "base", "no source 'base'"),
        ("masked.method", "gan", "no method 'gan'. There are: arcface, classifier"),
        ("masked.optim.lr", "fast", "--set masked.optim.lr=fast: expected a number"),
        ("masked.optim.epochs", "2.5", "masked.optim.epochs=2.5: expected a whole number"),
        ("masked.optim.epochs", 2.5, "masked.optim.epochs=2.5: expected a whole number"),
        ("masked.optim.epochs", "none", "expected a whole number"),
        ("masked.optim.milestones", "1,b", "expected a whole number"),
        ("scale.channels_last", "perhaps", "expected true or false"),
        ("pictures.crop_scale", "0.5", "pictures.crop_scale=0.5: expected 2 values"),
        ("masked.optim", "adam", "masked.optim has settings of its own; expected one of them, as masked.optim.name"),
        ("masked.optim.momentum", "x", "expected a number"),
        ("seeds", "a", "--set seeds=a: expected a whole number"),
        ("seeds", "", r"seeds is \(\); expected one or more different numbers"),
        ("masked.method.probability", "2", "method.probability is 2.0; expected 0 to 1"),
        ("masked.optim.schedule", "linear", "optim.schedule is 'linear'; expected one of constant, cosine, step"),
        ("source.labels", "artist", "source.labels is 'artist'; expected one of title, series, author"),
    ],
)
def test_a_mistake_is_told_with_what_exists(name: str, value: Any, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        replaced(JOB, {name: value})


# -- step.json -----------------------------------------------------------------------------------


@pytest.mark.parametrize("tiny", [True, False])
def test_a_whole_job_comes_back_from_its_text(tiny: bool) -> None:
    job = load_job(FILE, tiny, "/data", {"phase1.optim.milestones": "1,2"})
    again = decoded(json.loads(json.dumps(encoded(job))))
    assert again == job
    assert ids(again) == ids(job)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ({"class": "subprocess:Popen", "fields": {"args": ["true"]}}, "expected those of this version of mvray"),
        ({"fields": {}}, "expected those of this version of mvray"),
        ({"method": "subprocess:Popen", "fields": {}}, "the method 'subprocess:Popen', which is none of mvray's"),
        ({"source": "classifier", "fields": {}}, "the source 'classifier', which is none of mvray's"),
        ({"function": "os:system"}, "os:system is no function of a job that was loaded"),
        ({"function": "mvray.api:load_job"}, "is no function of a job that was loaded"),
        ({"function": "this:d"}, "is no function of a job that was loaded"),
        ({"settings": "pictures", "fields": {"depth": 3}}, "another version of mvray: .*'depth'"),
    ],
)
def test_only_settings_are_built_from_text(text: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        decoded(text)
    assert "this" not in sys.modules


def test_settings_by_dotted_name() -> None:
    found = flat(STEPS["masked"])
    assert found["method"] == "classifier"
    assert found["method.probability"] == 0.5
    assert found["data.source"] == "manga109"
    assert found["data.columns"] == "cams"
    assert found["data.pictures.crop_scale"] == "1.0, 1.0"
    assert found["start_from"] == "phase1"
    assert found["optim.patience"] is None
    assert flat(STEPS["cams"])["generator.of"] == "phase1"
    assert flat(STEPS["score-plain"])["metrics"] == "accuracy, attention_entropy, attention_inside"
    assert not [name for name, value in found.items() if isinstance(value, Step | Data | Train)]


class Pool(enum.StrEnum):
    MEAN = "mean"


@dataclass(frozen=True)
class Pooled(MethodConfig):
    pool: Literal["mean", "max"] = "mean"
    parts: Literal[1, 2] = 1
    other: Pool | None = None

    def build(self, facts: Any) -> Any:
        raise NotImplementedError


def test_a_setting_may_be_one_of_some_values() -> None:
    job = Job("pooled", (Train("step", Pooled(), Data(Folder())),))
    changed = replaced(job, {"step.method.pool": "max", "step.method.parts": "2"}).steps[0]
    assert changed.method == Pooled("max", 2)  # type: ignore[union-attr]
    with pytest.raises(SettingError, match=r"--set step.method.pool=min: expected one of mean, max"):
        replaced(job, {"step.method.pool": "min"})
    assert decoded(encoded(changed.method)) == changed.method  # type: ignore[union-attr]


def test_a_setting_that_step_json_cannot_hold_is_refused() -> None:
    job = Job("pooled", (Train("step", Pooled(), Data(Folder())),))
    with pytest.raises(SettingError, match=r"step.method.other is an Enum, Pool, .*annotated as Literal\['mean'\]"):
        replaced(job, {"step.method.other": "mean"})
    for value in (Pool.MEAN, (Pool.MEAN,), {"a": 1}):
        step = Train("step", Pooled(other=value), Data(Folder()))  # type: ignore[arg-type]
        with pytest.raises(SettingError, match=r"Pooled.other is .*; expected text, a number"):
            identify(step, 0, "", lambda step: step.name)
