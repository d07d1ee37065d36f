"""mvray run | report | look | group | find | ui | doctor | sample: the command line.

Nothing heavy is imported here, so that help and a user's mistake take a fraction of a second. torch,
which method files name at their top, is put in place as a lazy module: it loads when it is first used.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import traceback
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvray import __version__
from mvray.errors import DataError, MvrayError, SettingError, UserError

if TYPE_CHECKING:
    from mvray.job import Job
    from mvray.plan import Plan
    from mvray.storage import Storage

USER_MISTAKE, FAILED, INTERRUPTED = 2, 1, 130
STORAGE = "runs"


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 (a step failed), 2 (a mistake to mend), 130 (interrupted)."""
    _lazy("torch")
    given = _parser().parse_args(arguments)
    try:
        code: int = given.command(given) or 0
        return code
    except UserError as error:
        print(f"mvray: {error}", file=sys.stderr)
        return USER_MISTAKE
    except MvrayError as error:
        print(f"mvray: {error}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("\nmvray: interrupted. The same command goes on where it stopped.", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


class _Later(types.ModuleType):
    """A module that is imported when something of it is first used.

    importlib's LazyLoader does this too, but on Python 3.11 a second ``import`` statement already
    loads the module.
    """

    class Tensor:
        """Matplotlib asks of all that it draws whether it is a torch.Tensor; before torch is loaded nothing is."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        self.__dict__.update(vars(real))
        return getattr(real, name)


def _lazy(name: str) -> None:
    if name not in sys.modules and (spec := importlib.util.find_spec(name)) is not None:
        later = _Later(name)
        later.__spec__ = spec
        sys.modules[name] = later


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mvray",
        description="Distributed training on Ray for vision methods: where a network looks, how it groups.",
    )
    parser.add_argument("--version", action="version", version=f"mvray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="run a job; what is finished is not done again")
    _job_options(run)
    run.add_argument("--only", metavar="STEP", help="run this step, and what it reads, alone")
    run.add_argument("--workers", type=int, metavar="N", help="training workers (0: in this process, without Ray)")
    run.set_defaults(command=_run)

    report = commands.add_parser("report", help="show a job's table")
    _job_options(report)
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page with table and pictures")
    report.add_argument("--json", action="store_true", help="print the report as JSON")
    report.set_defaults(command=_report)

    look = commands.add_parser("look", help="show where a trained step looks on any pictures or videos")
    look.add_argument("step", metavar="STEP_PATH", help="folder of a finished Train step")
    look.add_argument("files", type=Path, nargs="+", metavar="FILES", help="pictures or videos, or folders of them")
    look.add_argument("--out", type=Path, required=True, metavar="DIR")
    look.add_argument("--layer", default="", help="name of the layer (default: the method's)")
    look.set_defaults(command=_look)

    _grouping(commands)

    ui = commands.add_parser("ui", help="open MLflow on the run store")
    ui.add_argument("--storage", default=STORAGE, metavar="URI")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(command=_ui)

    doctor = commands.add_parser("doctor", help="what this machine or cluster has, and what is wrong with it")
    doctor.add_argument("--storage", default=STORAGE, metavar="URI")
    doctor.set_defaults(command=_doctor)

    sample = commands.add_parser("sample", help="compose a small data set out of real drawings")
    kinds = sample.add_subparsers(required=True, metavar="KIND")
    comics = kinds.add_parser("comics", help="comic books in Manga109's layout")
    comics.add_argument("out", type=Path, metavar="OUT")
    comics.add_argument("--titles", type=int, default=14)
    comics.add_argument("--pages", type=int, default=40, help="pages of each title")
    comics.add_argument("--seed", type=int, default=0)
    comics.set_defaults(command=_sample_comics)
    actions = kinds.add_parser("actions", help="videos of twelve motions in UCF101's layout, with instance masks")
    actions.add_argument("out", type=Path, metavar="OUT")
    actions.add_argument("--classes", type=int, default=8, help="motions, at most 12")
    actions.add_argument("--videos", type=int, default=30, help="videos of each class")
    actions.add_argument("--seed", type=int, default=0)
    actions.set_defaults(command=_sample_actions)
    faces = kinds.add_parser("faces", help="faces of drawn characters in the AnimeFace Character Dataset's layout")
    faces.add_argument("out", type=Path, metavar="OUT")
    faces.add_argument("--characters", type=int, default=60)
    faces.add_argument("--pictures", type=int, default=20, help="pictures of each character, of some only half as many")
    faces.add_argument("--seed", type=int, default=0)
    faces.set_defaults(command=_sample_faces)
    return parser


def _grouping(commands: Any) -> None:
    group = commands.add_parser("group", help="sort any pictures into groups of the same character")
    group.add_argument("step", metavar="MODEL", help="folder of a finished Train step")
    group.add_argument("folder", type=Path, metavar="FOLDER", help="faces or pictures, in any folders below it")
    group.add_argument("--out", type=Path, required=True, metavar="DIR")
    group.add_argument("--layer", default="", help="the layer that is read (default: embedding, fc1 or the last)")
    group.add_argument("--per-folder", action="store_true", help="each folder in FOLDER by itself, as a book")
    group.add_argument("--min-size", type=int, metavar="N", help="least pictures of a group (default: 10, or fewer)")
    group.set_defaults(command=_group)

    find = commands.add_parser("find", help="find the pictures that are most like an example")
    find.add_argument("step", metavar="MODEL", help="folder of a finished Train step")
    find.add_argument("examples", type=Path, nargs="+", metavar="EXAMPLE", help="one picture or several of the same")
    find.add_argument("folder", type=Path, metavar="FOLDER", help="where to look, in any folders below it")
    find.add_argument("--out", type=Path, metavar="DIR", help="write a table and a contact sheet too")
    find.add_argument("--most", type=int, metavar="N", help="at most so many (default: 20)")
    find.add_argument("--within", type=float, metavar="DISTANCE", help="none farther than this, 0 to 2")
    find.add_argument("--layer", default="", help="the layer that is read (default: embedding, fc1 or the last)")
    find.set_defaults(command=_find)


def _job_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("job", type=Path, metavar="JOB", help="a job file, as jobs/gradcam_masking.py")
    parser.add_argument("--tiny", action="store_true", help="the same job in minutes on two cores")
    parser.add_argument("--data", metavar="ROOT", help="where the data lies (a folder or s3://...)")
    parser.add_argument("--storage", default=STORAGE, metavar="URI", help="where results go (default: ./runs)")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="change a setting of the job")


# -- jobs ----------------------------------------------------------------------------------------


def load_job(path: Path, tiny: bool, data: str | None, settings: list[str]) -> Job:
    """The job of a job file, with the changes of the command line."""
    from mvray.job import Job
    from mvray.settings import replaced

    if not path.is_file():
        raise SettingError(f"There is no job file {path}. Expected a file as jobs/gradcam_masking.py.")
    spec = importlib.util.spec_from_file_location(f"mvray_job_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise SettingError(f"{path} is not a Python file. Expected a job file as jobs/gradcam_masking.py.")
    module = importlib.util.module_from_spec(spec)
    if (folder := str(path.resolve().parent)) not in sys.path:
        sys.path.append(folder)  # a job may build on another one beside it
    try:
        spec.loader.exec_module(module)
        make: Any = getattr(module, "job", None)
        if make is None:
            raise SettingError(f"{path} has no function job(tiny=False) -> Job. See jobs/gradcam_masking.py for one.")
        job = make(tiny=tiny)
    except SyntaxError as error:
        raise SettingError(f"{path}, line {error.lineno}: {error.msg}. Mend the job file.") from None
    except UserError:
        raise
    except Exception as error:
        where = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if Path(frame.filename).resolve() == path.resolve()
        ]
        line = f", line {where[-1].lineno} ({where[-1].line})" if where else ""
        raise SettingError(f"{path}{line}: {type(error).__name__}: {error}. Mend the job file.") from error
    if not isinstance(job, Job):
        raise SettingError(f"job() of {path} returned {type(job).__name__}; expected a Job (mvray/job.py).")
    changes: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise SettingError(f"--set {setting}: expected NAME=VALUE, as in --set masked.method.probability=0.3.")
        changes[name.strip()] = value
    if data is not None:
        changes["source.root"] = data
    return replaced(job, changes)


def _planned(given: argparse.Namespace) -> tuple[Plan, Storage]:
    from mvray import plan
    from mvray.storage import Storage

    if given.data and "://" not in given.data and not Path(given.data).is_dir():
        raise DataError(f"--data {given.data}: there is no such folder.")
    job = load_job(given.job, given.tiny, given.data, given.set)
    workers = getattr(given, "workers", None)
    if workers is not None:
        if workers < 0:
            raise SettingError(f"--workers {workers}: expected 0 (no Ray) or more.")
        from mvray.settings import replaced

        job = replaced(job, {"scale.workers": max(1, workers)})
    storage = Storage(given.storage)
    return plan.make(job, storage), storage


def _run(given: argparse.Namespace) -> int:
    from mvray import report
    from mvray.cluster import Cluster
    from mvray.manifest import git_commit, versions
    from mvray.progress import Progress
    from mvray.results import collect, comparison, means, pictures
    from mvray.run import chosen, execute
    from mvray.runlog import RunLog, spool_folder, tracking_uri
    from mvray.tracking import Tracker

    plan, storage = _planned(given)
    steps = chosen(plan, given.only)
    storage.check()
    progress = Progress()
    missing = sum(not planned.finished for planned in steps)
    progress.say(f"{plan.job.name}: {len(steps)} steps, {len(steps) - missing} finished before, {missing} to do.")
    _say_bad(plan, progress)
    tracker = Tracker(tracking_uri(storage), plan.job.name, spool_folder(storage), delay_s=20.0 if missing else 0.0)
    log = RunLog(tracker, plan, {**versions(), "git_commit": git_commit() or ""}, given.job)
    cluster = Cluster(storage, given.workers, progress.say)
    status = "FAILED"
    try:
        execute(plan, cluster, log, progress, given.only)
        if not plan.missing():
            log.results(means(plan))
            if missing:
                log.pictures({**comparison(plan), **pictures(plan)})
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        cluster.stop()
        undelivered = log.close(status)
        if undelivered:
            progress.say(undelivered)
    print(report.as_text(collect(plan), plan.job.table))
    again = "".join(f" {part}" for part in _same_options(given))
    print(f"\nResults:  {storage.uri}")
    print(f"Pictures: mvray report {given.job}{again} --html report.html")
    print(f"MLflow:   mvray ui --storage {given.storage}")
    return 0


def _same_options(given: argparse.Namespace) -> list[str]:
    options = ["--tiny"] if given.tiny else []
    options += ["--data", given.data] if given.data else []
    options += ["--storage", given.storage] if given.storage != STORAGE else []
    for setting in given.set:
        options += ["--set", setting]
    return options


def _say_bad(plan: Plan, progress: Any) -> None:
    for _, index in plan.indexes():
        for record in index.bad:
            progress.say(f"left out: {record.location}: {record.reason}")


def _report(given: argparse.Namespace) -> int:
    from mvray import report
    from mvray.results import collect, comparison, pictures

    plan, _ = _planned(given)
    found = collect(plan)
    if given.html:
        given.html.write_text(report.as_html(found, plan.job.table, {**comparison(plan), **pictures(plan)}))
        print(f"Wrote {given.html}.", file=sys.stderr)
    if given.json:
        print(report.as_json(found))
    elif not given.html:
        print(report.as_text(found, plan.job.table))
    return 0


# -- the other commands --------------------------------------------------------------------------


def _look(given: argparse.Namespace) -> int:
    from mvray.look import look

    sheet = look(given.step, given.files, given.out, given.layer)
    print(f"Wrote {sheet}.")
    return 0


def _group(given: argparse.Namespace) -> int:
    from mvray.group import group

    for line in group(given.step, given.folder, given.out, given.layer, given.per_folder, given.min_size):
        print(line)
    print(f"Wrote {given.out / 'index.html'}.")
    return 0


def _find(given: argparse.Namespace) -> int:
    from mvray.find import find

    options = {"layer": given.layer, "most": given.most, "within": given.within}
    for line in find(given.step, given.examples, given.folder, given.out, **options):
        print(line)
    if given.out:
        print(f"Wrote {given.out / 'index.html'}.")
    return 0


def _ui(given: argparse.Namespace) -> int:
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage
    from mvray.ui import ui

    return ui(tracking_uri(Storage(given.storage)), port=given.port)


def _doctor(given: argparse.Namespace) -> int:
    from mvray import doctor
    from mvray.runlog import tracking_uri
    from mvray.storage import Storage

    findings = doctor.examine(given.storage, tracking_uri(Storage(given.storage)), os.environ.get("RAY_ADDRESS"))
    print(doctor.as_text(findings))
    return FAILED if any(finding.state == "bad" for finding in findings) else 0


def _sample_comics(given: argparse.Namespace) -> int:
    from mvray.samples.comics import compose

    compose(given.out, titles=given.titles, pages=given.pages, seed=given.seed)
    print(f"Wrote {given.titles} titles of {given.pages} pages to {given.out}.")
    return 0


def _sample_actions(given: argparse.Namespace) -> int:
    from mvray.samples.actions import compose

    compose(given.out, classes=given.classes, videos=given.videos, seed=given.seed)
    print(f"Wrote {given.classes} classes of {given.videos} videos to {given.out}.")
    return 0


def _sample_faces(given: argparse.Namespace) -> int:
    from mvray.samples.faces import compose

    compose(given.out, characters=given.characters, pictures=given.pictures, seed=given.seed)
    print(f"Wrote faces of {given.characters} characters to {given.out}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
