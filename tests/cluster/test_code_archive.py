"""What `mvray submit` sends and says before it sends anything; without Ray."""

from __future__ import annotations

import argparse
import getpass
import json
import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from commands import git, mvray
from packaging import markers

from mvray.cli.submitting import as_table, sending, words_of
from mvray.cluster.code_archive import pack, reference
from mvray.cluster.job_client import JobClient, SubmittedJob, _user, beside, entrypoint, environment, new_id
from mvray.cluster.node_versions import _check_python, differences, versions_here
from mvray.errors import ClusterError, DataError, SettingError
from mvray.experiment.provenance import NOTE, git_commit
from mvray.storage.storage import Storage
from mvray.tracking import outbox_folder, tracking_uri, where_tracked

JOB = "from mvray import Job\n\n\ndef job(tiny=False):\n    return Job('toys', ())\n"

SEARCHED = """
from toys import Linear, step_of
from mvray import Job
from mvray import Search, Uniform


def job(tiny=False):
    search = Search("one", (("method.dropout", Uniform(0.0, 0.5)),), "validation/accuracy")
    return Job("toys", (step_of("", Linear(), name="one", epochs=1),), search=search)
"""


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    root = tmp_path / "work"
    (root / "jobs").mkdir(parents=True)
    (root / "jobs" / "own.py").write_text(JOB)
    (root / "old.py").write_text("")
    (root / ".gitignore").write_text("ignored.txt\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "first")
    return root


def content(root: Path, out: Path) -> dict[str, bytes]:
    pack(root / "jobs" / "own.py").write(out)
    with zipfile.ZipFile(out) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_what_git_tracks_is_sent_as_it_lies_there(repository: Path, tmp_path: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")
    assert pack(repository / "jobs/own.py").note["commit"] == head
    (repository / "jobs" / "own.py").write_text(JOB + "# changed\n")
    (repository / "old.py").unlink()
    (repository / "ignored.txt").write_text("ignored")
    (repository / "secret.txt").write_text("a password")
    (repository / "new file.py").write_text("added")
    git(repository, "add", "new file.py")
    sent = content(repository, tmp_path / "code.zip")
    assert set(sent) == {".gitignore", "jobs/own.py", "new file.py", NOTE}
    assert sent["jobs/own.py"].endswith(b"# changed\n")
    assert json.loads(sent[NOTE])["commit"] == f"{head}+"
    archive = pack(repository / "jobs/own.py")
    assert archive.job == "jobs/own.py"
    assert archive.untracked == ("secret.txt",)
    first = (tmp_path / "code.zip").read_bytes()
    content(repository, tmp_path / "code.zip")
    assert (tmp_path / "code.zip").read_bytes() == first  # the same code is the same bytes


def test_the_commit_is_known_where_there_is_no_git(repository: Path, tmp_path: Path) -> None:
    pack(repository / "jobs/own.py").write(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        archive.extractall(tmp_path / "there")
    assert git_commit(tmp_path / "there") == git(repository, "rev-parse", "HEAD") == git_commit(repository)
    assert git_commit(tmp_path) is None


def test_what_waits_for_mlflow_outlives_the_folder_of_sent_code(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(repository)
    assert outbox_folder(Storage("s3://bucket/runs")) == repository / "runs/.spool"
    pack(repository / "jobs/own.py").write(tmp_path / "code.zip")
    with zipfile.ZipFile(tmp_path / "code.zip") as archive:
        archive.extractall(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    assert outbox_folder(Storage("s3://bucket/runs")) == tmp_path / "home/.mvray/runs/.spool"
    assert tracking_uri(Storage("s3://bucket/runs")) == f"sqlite:///{tmp_path}/home/.mvray/runs/mlflow.db"
    assert tracking_uri(Storage("/shared/runs")) == "sqlite:////shared/runs/mlflow.db"


def test_too_much_code_is_refused_with_the_biggest_files(repository: Path) -> None:
    (repository / "data.bin").write_bytes(bytes(3 << 20))
    git(repository, "add", "data.bin")
    with pytest.raises(SettingError, match=r"3\.0 MiB; expected at most 2 MiB.*The biggest: data.bin \(3.0 MiB\), "):
        pack(repository / "jobs/own.py", limit_mib=2)


def test_what_git_does_not_know_is_refused(repository: Path, tmp_path: Path) -> None:
    (repository / "jobs" / "mine.py").write_text(JOB)
    with pytest.raises(SettingError, match=r"mine.py is not tracked by git; .*`git add jobs/mine.py` is enough"):
        pack(repository / "jobs/mine.py")
    (tmp_path / "alone.py").write_text(JOB)
    with pytest.raises(SettingError, match=r"alone.py is not in a git repository"):
        pack(tmp_path / "alone.py")
    with pytest.raises(SettingError, match=r"There is no job file"):
        pack(repository / "jobs/none.py")
    (repository / "link").symlink_to("/etc/hostname")
    git(repository, "add", "link")
    with pytest.raises(SettingError, match=r"link is a link to /etc/hostname, outside of"):
        pack(repository / "jobs/own.py")


def test_a_link_to_a_folder_is_sent_as_the_files_in_it(repository: Path, tmp_path: Path) -> None:
    (repository / "lib" / "deep").mkdir(parents=True)
    for name in ("a.py", "deep/b.py", "gone.py", "untracked.py"):
        (repository / "lib" / name).write_text(f"# {name}\n")
    (repository / "lib" / "also.py").symlink_to("a.py")
    (repository / "library.py").write_text("")  # begins as the folder's name does
    (repository / "jobs" / "lib").symlink_to("../lib")
    (repository / "again").symlink_to("jobs/lib")
    git(repository, "add", ".")
    git(repository, "rm", "--quiet", "--cached", "lib/untracked.py")
    (repository / "lib" / "gone.py").unlink()
    sent = content(repository, tmp_path / "code.zip")
    files = ("a.py", "deep/b.py", "also.py")
    expected = {f"{folder}/{name}" for folder in ("lib", "jobs/lib", "again") for name in files}
    assert set(sent) == {".gitignore", "jobs/own.py", "old.py", "library.py", NOTE, *expected}
    assert sent["jobs/lib/deep/b.py"] == sent["lib/deep/b.py"] == b"# deep/b.py\n"
    assert sent["jobs/lib/also.py"] == b"# a.py\n"
    assert pack(repository / "jobs/own.py").bytes == sum(len(sent[name]) for name in set(sent) - {NOTE})


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("..", r"jobs/link is a link to the folder .*, below which jobs/link is such a link too; expected none there"),
        (".", r"jobs/link is a link to the folder .*/jobs, below which jobs/link is such a link too"),
        ("../other", r"jobs/link is a link to the folder .*/other, below which other/inner is such a link too"),
        ("/usr", r"jobs/link is a link to /usr, outside of"),
        ("nowhere", r"jobs/link is a link to nowhere, which is not there; .*git submodule update --init"),
        ("link", r"jobs/link is a link to link, which is not there"),
    ],
)
def test_links_that_cannot_be_sent_are_refused(repository: Path, target: str, said: str) -> None:
    (repository / "other").mkdir()
    (repository / "plain").mkdir()
    (repository / "plain" / "a.py").write_text("")
    (repository / "other" / "inner").symlink_to("../plain")
    (repository / "jobs" / "link").symlink_to(target)
    git(repository, "add", ".")
    with pytest.raises(SettingError, match=said):
        pack(repository / "jobs/own.py")
    (repository / "jobs" / "link").unlink()  # a link that was deleted stays here, as a file does
    files = (".gitignore", "jobs/own.py", "old.py", "other/inner/a.py", "plain/a.py")
    assert pack(repository / "jobs/own.py").files == files


def test_a_submodule_is_sent_where_it_is_checked_out(repository: Path, tmp_path: Path) -> None:
    inner, theirs = tmp_path / "inner", tmp_path / "theirs"
    for root, name in ((inner, "deep.py"), (theirs, "theirs.py")):
        root.mkdir()
        (root / name).write_text("")
        git(root, "init", "--quiet")
        git(root, "add", ".")
        git(root, "commit", "--quiet", "-m", "first")
    allowed = ("-c", "protocol.file.allow=always")
    git(theirs, *allowed, "submodule", "--quiet", "add", str(inner), "inner")
    git(theirs, "commit", "--quiet", "-m", "second")
    git(repository, *allowed, "submodule", "--quiet", "add", str(theirs), "theirs")
    git(repository, "commit", "--quiet", "-m", "second")
    refused = r"The submodule {} is not checked out \(it has no \.git\); .*: git submodule update --init --recursive"
    with pytest.raises(SettingError, match=refused.format("theirs/inner")):
        pack(repository / "jobs/own.py")
    git(repository, *allowed, "submodule", "--quiet", "update", "--init", "--recursive")
    own = {".gitignore", ".gitmodules", "jobs/own.py", "old.py"}
    whole = {*own, "theirs/.gitmodules", "theirs/theirs.py", "theirs/inner/deep.py"}
    assert set(pack(repository / "jobs/own.py").files) == whole
    git(tmp_path, "clone", "--quiet", str(repository), "cloned")
    for words in (("status",), ("submodule", "--quiet", "init")):  # git does not list it in the second case
        git(tmp_path / "cloned", *words)
        with pytest.raises(SettingError, match=refused.format("theirs")):
            pack(tmp_path / "cloned/jobs/own.py")
    (tmp_path / "cloned" / "theirs").rmdir()  # deleted, as a file may be
    assert set(pack(tmp_path / "cloned/jobs/own.py").files) == own


def test_changed_code_is_not_said_to_be_the_commit(repository: Path) -> None:
    head = git(repository, "rev-parse", "HEAD")[:12]
    assert sending(pack(repository / "jobs/own.py")) == f"Sending 3 files, 0.0 MiB, of commit {head} ..."
    (repository / "old.py").write_text("# changed\n")
    assert sending(pack(repository / "jobs/own.py")) == f"Sending 3 files, 0.0 MiB, of commit {head} with changes ..."


def test_who_has_no_name_is_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_123_456_789)
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    assert _user() == "4123456789"
    monkeypatch.setenv("USER", "ada")
    assert _user() == "ada"


def test_the_lock_file_says_which_versions_are_expected(tmp_path: Path) -> None:
    lock = tmp_path / "requirements.lock"
    lock.write_text(
        "numpy==2.4.6 \\\n    --hash=sha256:00\n    # via x\nray[data,train]==2.60.0 \\\nother==1\nPillow==12.0\n"
    )
    found = reference(lock)
    assert versions_here(found) == {"numpy": "2.4.6", "pillow": "12.0", "ray": "2.60.0"}
    assert found["versions_of"] == "requirements.lock"
    older = 'numpy==2.4.6 ; python_full_version < "3.4" \\\n    --hash=sha256:0\n'
    newer = 'numpy==2.5.5 ; python_full_version >= "3.4" and sys_platform == "linux" \\\n    --hash=sha256:1\n'
    lock.write_text(f"ray==2.60.0\n{newer}{older}")
    assert versions_here(reference(lock))["numpy"] == "2.5.5"
    lock.write_text("other==1\n")  # some other project's
    assert versions_here(reference(lock))["ray"]
    assert reference(None)["versions_of"] == "the machine that submitted"


def test_the_python_that_counts_is_the_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Laptop and head may have any two that mvray knows; the lock file has a NumPy for each."""
    lock = Path(__file__).parents[2] / "requirements.lock"
    lines = {line[1]: line[2] for line in reference(lock)["versions"] if line[0] == "numpy"}
    assert len(lines) == 2
    notes, found, here = [], {}, markers.default_environment()
    for python in ("3.11.2", "3.12.3", "3.13.1"):
        environment = {**here, "python_full_version": python, "python_version": python.rpartition(".")[0]}
        monkeypatch.setattr(markers, "default_environment", lambda environment=environment: environment)
        monkeypatch.setattr("platform.python_version", lambda python=python: python)
        monkeypatch.setattr("sys.version_info", (*map(int, python.split(".")), "final", 0))
        notes.append(json.dumps(reference(lock)))
        found[python] = versions_here(json.loads(notes[0]))["numpy"]
        _check_python(reference(lock)["python"])
    assert len(set(notes)) == 1
    assert found["3.11.2"] != found["3.12.3"] == found["3.13.1"]
    assert set(found.values()) == set(lines)
    monkeypatch.setattr("platform.python_version", lambda: "3.10.4")
    with pytest.raises(ClusterError, match=r"The head has Python 3\.10\.4; mvray expects .*3\.11"):
        _check_python(reference(lock)["python"])


def test_versions_differ_by_what_matters() -> None:
    expected = {"torch": "2.14.1", "ray": "2.60.0", "av": "18.0"}
    assert differences(expected, {"torch": "2.14.1+cu128", "ray": "2.60.0", "av": "18.0"}) == []
    said = differences(expected, {"torch": "2.14.0", "ray": "2.60.0", "av": None})
    assert said == ["torch 2.14.0 (expected 2.14.1)", "no av (expected 18.0)"]


def given(**changed: object) -> argparse.Namespace:
    usual = {"tiny": True, "data": None, "storage": "s3://bucket/runs", "set": [], "only": None, "workers": None}
    return argparse.Namespace(**{**usual, "tune": False, "trials": None, "concurrent": None, **changed})


def test_the_head_runs_what_was_asked_for() -> None:
    words = words_of(given(set=["a.b=x y; rm -rf $HOME", "c=`id`"], only="masked", workers=4), "jobs/it's.py")
    expected = ["run", "jobs/it's.py", "--tiny", "--storage", "s3://bucket/runs", "--set", "a.b=x y; rm -rf $HOME"]
    assert words == [*expected, "--set", "c=`id`", "--only", "masked", "--workers", "4"]
    assert shlex.split(entrypoint(words)) == ["exec", "python", "-m", "mvray.cli", *words]
    said = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {shlex.join(words)}"], capture_output=True, text=True, check=True
    )
    assert said.stdout.splitlines() == words
    searched = words_of(given(tune=True, trials=12, concurrent=3), "j.py")
    assert (searched[0], searched[-4:]) == ("tune", ["--trials", "12", "--concurrent", "3"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--workers three", "--workers three: expected 0 (no Ray) or more, or a range as in 2-8."),
        ("--only two", "--only two: the job 'toys' has no such step; it has one."),
        ("--trials 3", "--trials and --concurrent are of a search; expected --tune beside them."),
        ("--tune --only one", "--only one: a search trains one step"),
        ("--tune --trials 0", "--trials 0: expected 1 or more."),
        ("--tune --set search.step=two", "search.step is 'two'; expected a Train step of 'toys': one."),
        ("--tune --set search.scheduler=pbt --trials 1", "search.trials is 1; expected a population of 2 or more"),
    ],
)
def test_mistakes_are_found_before_anything_is_sent(repository: Path, options: str, said: str) -> None:
    """By the functions that `mvray run` and `mvray tune` have; nobody listens at the address."""
    (repository / "jobs" / "own.py").write_text(SEARCHED)
    words = options.split()
    found = mvray("submit", repository / "jobs/own.py", "--storage", "/s", "--address", "http://127.0.0.1:1", *words)
    assert (found.code, found.err.count("\n")) == (2, 1)
    assert found.err.startswith(f"mvray: {said}")


def test_a_job_without_a_search_is_not_sent_to_be_searched(repository: Path) -> None:
    (repository / "jobs" / "own.py").write_text(SEARCHED.replace(", search=search)", ")"))
    found = mvray("submit", repository / "jobs/own.py", "--storage", "/s", "--address", "http://127.0.0.1:1", "--tune")
    assert found.err.startswith("mvray: The job 'toys' has no search; give it one")


@pytest.mark.parametrize(
    ("changed", "error", "said"),
    [
        ({"storage": "runs"}, SettingError, r"Found no --storage; .*Expected --storage s3://BUCKET/PREFIX"),
        ({"storage": "out/runs"}, SettingError, r"Found --storage out/runs"),
        ({"data": "comics"}, DataError, r"--data comics is a folder of this machine"),
        ({"data": "s3://KEY:secret@bucket/x"}, ClusterError, r"Found a name or key before '@'"),
    ],
)
def test_places_of_this_machine_are_refused(changed: dict[str, str], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as raised:
        words_of(given(**changed), "j.py")
    assert "secret" not in str(raised.value)


def test_variables_go_along_only_by_name() -> None:
    here = {"AWS_SECRET_ACCESS_KEY": "planted", "MLFLOW_TRACKING_PASSWORD": "planted", "HF_HOME": "/cache"}
    sent, _ = environment(["HF_HOME"], {**here, "MLFLOW_TRACKING_URI": "https://ada:planted@ml.example.org/x"})
    assert "planted" not in str(sent)
    assert sent["HF_HOME"] == "/cache"
    assert sent["MLFLOW_TRACKING_URI"] == "https://ml.example.org/x"
    sent, said = environment([], {**here, "MLFLOW_TRACKING_URI": "sqlite:////home/ada/mlflow.db"})
    assert "MLFLOW_TRACKING_URI" not in sent
    assert said[0].startswith("MLFLOW_TRACKING_URI is a store of this machine")
    with pytest.raises(SettingError, match="--env NOTHING: there is no such variable"):
        environment(["NOTHING"], here)


LOOPBACK = ("http://localhost:5000", "https://127.1.2.3/ml", "http://[::1]:5000/", "http://0.0.0.0:5000")


@pytest.mark.parametrize("uri", LOOPBACK)
def test_a_loopback_address_of_mlflow_is_no_order(uri: str) -> None:
    """It would lead every cluster to itself, past the MLflow that it has."""
    sent, said = environment([], {"MLFLOW_TRACKING_URI": uri})
    assert "MLFLOW_TRACKING_URI" not in sent
    assert said == [
        f"{uri} leads to MLflow from this machine alone: it counts if the cluster is here and names no other. "
        "The job's log says where its run is."
    ]
    assert beside({"MLFLOW_TRACKING_URI": uri})["mlflow"]["uri"] == uri
    sent, said = environment(["MLFLOW_TRACKING_URI"], {"MLFLOW_TRACKING_URI": uri})
    assert (sent["MLFLOW_TRACKING_URI"], said) == (uri, [])  # who names it means it


@pytest.mark.parametrize("uri", ["", "sqlite:////x", "file://localhost/x", "https://ml.example.org", "http://10.0.0.7"])
def test_other_addresses_of_mlflow_are_not_in_the_note(uri: str) -> None:
    assert beside({"MLFLOW_TRACKING_URI": uri}) == {}


def test_what_is_not_known_of_mlflow_is_not_said() -> None:
    _, said = environment([], {})
    assert said == [
        "MLFLOW_TRACKING_URI is not set here: the cluster's own counts, if it has one. "
        "The job's log says where its run is."
    ]


def test_the_head_judges_the_submitters_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own comes first; the submitter's counts on the same machine; else the run is beside the results."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    storage, theirs = Storage("/shared/runs"), "http://localhost:5000"
    assert where_tracked(storage) == ""
    note = beside({"MLFLOW_TRACKING_URI": theirs})
    (tmp_path / NOTE).write_text(json.dumps(note))
    assert where_tracked(storage) == "Tracked in MLflow at http://localhost:5000."
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:secret@ml.internal")
    assert where_tracked(storage) == f"Tracked in MLflow at http://ml.internal, not at the submitter's {theirs}."
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / NOTE).write_text(json.dumps({"mlflow": {**note["mlflow"], "loopback": "another machine's"}}))
    beside_results = "sqlite:////shared/runs/mlflow.db"
    assert where_tracked(storage) == f"Tracked in MLflow at {beside_results}, not at the submitter's {theirs}."
    (tmp_path / NOTE).write_text("{}")
    assert where_tracked(storage) == f"Tracked in MLflow at {beside_results}."


def test_ids_are_readable_and_differ() -> None:
    ids = {new_id("Grad-CAM masking") for _ in range(50)}
    assert len(ids) == 50
    assert all(id_.startswith("grad-cam-masking-2") for id_ in ids)


def test_the_list_of_jobs() -> None:
    jobs = [
        SubmittedJob("toys-2", "toys", "e\x1b[2Jve", "RUNNING", 1000.0, 0.0, None, ""),
        SubmittedJob("toys-1", "toys", "ada", "SUCCEEDED", 400.0, 520.0, 0, ""),
    ]
    head, running, ended = as_table(jobs, 1045.0).splitlines()
    assert head.split() == ["ID", "STATE", "JOB", "USER", "SINCE", "DURATION"]
    assert running.split()[:4] == ["toys-2", "RUNNING", "toys", "e?[2Jve"]
    assert running.endswith("45 s")
    assert ended.endswith("2 min 00 s")
    assert as_table([], 0.0) == "No jobs were submitted to this cluster."


def test_nobody_at_the_address(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    for arguments in (
        ["jobs"],
        ["logs", "x"],
        ["stop", "x", "--address", "127.0.0.1:1"],
        ["jobs", "--address", "ray://127.0.0.1:1"],
    ):
        said = mvray(*arguments)
        assert (said.code, said.err.count("\n")) == (2, 1)
        at = arguments[-1] if "--address" in arguments else "http://127.0.0.1:1"
        assert said.err.startswith(f"mvray: Nobody answers at {at} (Connection refused); expected the ")
    said = mvray("submit", repository / "jobs/own.py", "--storage", "/shared/runs")
    assert said.code == 2
    assert "Nobody answers" in said.err
    with pytest.raises(ClusterError, match="Found the address 'http://h:port'"):
        JobClient("http://h:port")
