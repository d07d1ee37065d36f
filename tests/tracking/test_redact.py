"""What may not be read by others is taken out of what is logged."""

import json

import pytest

from mvray import Job
from mvray.data.readers.folder import Folder
from mvray.experiment.serialisation import decoded
from mvray.experiment.steps import Data, Train
from mvray.methods import classifier
from mvray.pipeline import plan
from mvray.pipeline.cost import Cost
from mvray.pipeline.manifest import manifest_of
from mvray.storage.storage import Storage
from mvray.tracking.mlflow_store import without_password
from mvray.tracking.redact import redacted
from mvray.tracking.tracker import Tracker


def test_addresses_lose_users_passwords_and_queries():
    assert redacted("https://me:secret@git.lab/x.git failed") == "https://git.lab/x.git failed"
    assert redacted("https://ghp_12345@git.lab/x.git") == "https://git.lab/x.git"
    assert redacted("s3://b/k?X-Amz-Signature=abc&y=1, next") == "s3://b/k?... next"
    assert redacted("http://a:5000/#/experiments/1 and me@lab.org") == "http://a:5000/#/experiments/1 and me@lab.org"
    assert redacted("/data/what?/me@home") == "/data/what?/me@home"
    assert redacted("https://host/path mail@x") == "https://host/path mail@x"
    assert redacted("s3://AKIA:wJal/K7+x=@lab/runs, of me@home") == "s3://lab/runs, of me@home"
    assert redacted("s3://bucket/a@b, sqlite:////home/me:x/a@b.db") == "s3://bucket/a@b, sqlite:////home/me:x/a@b.db"
    assert redacted("pip: git+https://host:8080/x.git@main") == "pip: git+https://host:8080/x.git@main"


DATABASES = {
    "postgresql+psycopg2://mlflow:ab/cd+e=@db/mlflow": "postgresql+psycopg2://db/mlflow",
    "postgresql://u:a/b@c/d@db:5432/mlflow": "postgresql://db:5432/mlflow",
    "mysql+pymysql://u@lab:a#?/b@db/mlflow": "mysql+pymysql://db/mlflow",
    "mssql://u:a?b=c@db/mlflow": "mssql://db/mlflow",
    "postgresql://u@db/mlflow": "postgresql://db/mlflow",
    "postgresql://db/mlflow": "postgresql://db/mlflow",
}
"""A password that SQLAlchemy takes, or that somebody types: without the user's part."""


@pytest.mark.parametrize("uri", DATABASES)
def test_passwords_of_databases_may_have_slashes(uri):
    plain = DATABASES[uri]
    assert without_password(uri) == plain
    assert redacted(f"one {uri}: no, https://host/path and me@lab") == f"one {plain}: no, https://host/path and me@lab"
    assert redacted(f'["{uri}","{uri}"]').count("db") == 2, "each ends where the next begins"


def test_queries_of_databases():
    uri = "postgresql://u:a/b@db/mlflow?sslrootcert=/home/me@lab/ca.pem"
    assert without_password(uri) == "postgresql://db/mlflow?sslrootcert=/home/me@lab/ca.pem"
    assert redacted(f"{uri} failed") == "postgresql://db/mlflow?... failed"
    assert without_password("postgresql://db/m?user=u&password=a/b&x=1") == "postgresql://db/m?user=u&password=***&x=1"
    assert without_password("postgresql://u:a /b@db/m") == "postgresql://db/m"


def test_values_of_secret_variables_are_hidden(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wJalrXUtnFEMI-and-more")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "true")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/identity")
    said = "true: wJalrXUtnFEMI-and-more, wJalrXUtnFEMI, /var/run/identity"
    assert redacted(said) == "true: ***, ***, /var/run/identity"


def test_nothing_secret_is_written_down_for_mlflow(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_aVeryLongOne")
    tracker = Tracker("http://me:mlflow-pass@127.0.0.1:1", "secrets", tmp_path, delay_s=60)
    run = tracker.start_run(
        "run",
        tags={"mvray.path": "s3://key:hidden@bucket/runs"},
        params={"source.root": "https://u:hidden@host/x?sig=hidden", "storage": "s3://b/p", "seeds": (0, 1)},
    )
    tracker.tags(run, {"mvray.error": "OSError: https://host/x?token=hidden said no to hf_aVeryLongOne"})
    tracker.data(run, "d", "1", "https://u:hidden@host/x?sig=hidden", "training", {"root": "s3://k:hidden@b"})
    left = tracker.close(timeout_s=0)
    (folder,) = tmp_path.iterdir()
    kept = "".join(file.read_text() for file in folder.rglob("*") if file.is_file())
    for secret in ("hidden", "mlflow-pass", "hf_aVeryLongOne"):
        assert secret not in kept
        assert secret not in left
    (start,) = [event for line in kept.splitlines() if '"start"' in line for event in [json.loads(line)]]
    assert start["params"] == {"source.root": "https://host/x?...", "storage": "s3://b/p", "seeds": "(0, 1)"}
    assert start["tags"]["mvray.path"] == "s3://bucket/runs"


def test_step_json_has_no_keys_of_addresses(drawings, tmp_path, monkeypatch):
    """The second line of defence; --set refuses most of them, and a signed address only works with its query."""
    monkeypatch.setenv("HF_TOKEN", "classifier")
    signed = "https://me:hidden@host/x.pth?sig=hidden"
    job = Job("j", (Train("t", classifier.Config(weights=signed), Data(Folder(str(drawings)))),))
    (step,) = plan.make(job, Storage(str(tmp_path / "runs"))).steps
    written = manifest_of(step, 1.0, None, Cost())
    assert "hidden" not in json.dumps(written)
    assert written["settings"]["method.weights"] == "https://host/x.pth?..."
    assert decoded(written["step"]).method == classifier.Config(weights="https://host/x.pth?...")
    assert written["id"] == step.id
