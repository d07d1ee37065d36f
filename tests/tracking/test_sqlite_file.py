"""MLflow's SQLite store while it is made: killed in the middle, on a full disk, by two processes at once."""

import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from full_disk import files_end_at

from mvray.tracking.mlflow_store import MlflowStore
from mvray.tracking.sqlite_file import make_whole

MAKE = "import sys; from mvray.tracking.mlflow_store import MlflowStore; MlflowStore(sys.argv[1])._connect()"


def maker(file):
    return subprocess.Popen([sys.executable, "-c", MAKE, f"sqlite:///{file}"])


def tables(file):
    with sqlite3.connect(file) as database:
        return {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def wait_until_some_tables_are_made(fresh, process):
    while not (fresh.exists() and fresh.stat().st_size > 100_000):
        assert process.poll() is None
        time.sleep(0.002)


@pytest.mark.slow
def test_a_kill_in_the_middle_of_the_migrations_leaves_no_store(tmp_path):
    file, fresh = tmp_path / "mlflow.db", tmp_path / ".mlflow.db.new"
    process = maker(file)
    wait_until_some_tables_are_made(fresh, process)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not file.exists()
    half = tables(fresh)
    # Two at once, after the kill: one makes it and the other waits.
    assert [process.wait(120) for process in (maker(file), maker(file))] == [0, 0]
    assert len(half) < len(tables(file))
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]
    client = MlflowStore(f"sqlite:///{file}")._connect()
    assert client.get_run(client.create_run("0").info.run_id).info.status == "RUNNING"


@pytest.mark.slow
def test_a_full_disk_leaves_no_store(tmp_path):
    file = tmp_path / "mlflow.db"
    store = MlflowStore(f"sqlite:///{file}")
    with files_end_at(200_000), pytest.raises(Exception, match="disk"):
        store._connect()
    assert [path.name for path in tmp_path.iterdir()] == [".mlflow.db.lock"]


def test_what_was_written_ahead_is_in_the_one_file(tmp_path):
    def fill(file):
        database = sqlite3.connect(file)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE x (y)")
        database.execute("INSERT INTO x VALUES (1)")
        database.commit()
        database.close()

    make_whole(tmp_path / "a.db", fill)
    make_whole(tmp_path / "a.db", lambda file: pytest.fail("it is there"))
    assert [path.name for path in tmp_path.iterdir()] == ["a.db"]
    assert sqlite3.connect(tmp_path / "a.db").execute("SELECT y FROM x").fetchall() == [(1,)]
