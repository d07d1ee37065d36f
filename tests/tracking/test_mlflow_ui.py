"""The run store from outside: MLflow's own pages, and whether it answers."""

import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.request import urlopen

import psutil
import pytest

from mvray.cli import main
from mvray.errors import ClusterError, DataError
from mvray.tracking.mlflow_ui import check, free_port, served, ui

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_a_store_without_runs_is_refused(tmp_path):
    with pytest.raises(DataError, match="Nothing has been tracked"):
        ui(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_server_needs_no_second_one(capsys):
    assert ui("http://me:secret@mlflow:5000") == 0
    assert (
        capsys.readouterr().out
        == "The runs are kept by a server: open http://mlflow:5000/#/experiments?workflowType=machine_learning\n"
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.7", "::", "lab-machine"])  # noqa: S104
def test_without_passwords_it_is_for_this_machine_alone(tmp_path, monkeypatch, capsys, host):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["ui", "--storage", str(tmp_path), "--host", host]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"--host {host}: without passwords" in said.err
    assert "Add --server" in said.err
    assert "ssh -L 5000:127.0.0.1:5000" in said.err


def test_a_taken_port_is_passed_over():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert port < free_port("127.0.0.1", port) < port + 50


def test_check_of_sqlite(tmp_path):
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    assert check(uri) == f"SQLite in {tmp_path}/new, made by the first run"
    assert not (tmp_path / "new").exists()
    (tmp_path / "new").mkdir()
    with closing(sqlite3.connect(tmp_path / "new/mlflow.db")) as database:
        database.execute("CREATE TABLE runs (id)")
    assert check(uri) == f"SQLite in {tmp_path}/new"
    (tmp_path / "new/mlflow.db").write_text("this is no database " * 100)
    with pytest.raises(ClusterError, match="file is not a database"):
        check(uri)


class Stranger(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>welcome")

    def log_message(self, *_):
        pass


def test_check_of_a_server_that_is_not_mlflow_or_not_there():
    with HTTPServer(("127.0.0.1", 0), Stranger) as stranger:
        Thread(target=stranger.serve_forever, daemon=True).start()
        with pytest.raises(ClusterError, match="is not MLflow; it says '<html>welcome'"):
            check(f"http://127.0.0.1:{stranger.server_port}")
        stranger.shutdown()
    with pytest.raises(ClusterError, match="No MLflow server answers"):
        check("http://127.0.0.1:1")


def test_the_password_of_a_database_is_neither_shown_nor_on_the_command_line(monkeypatch, capsys):
    from mvray.tracking import mlflow_ui as module

    uri = "postgresql+psycopg2://mlflow:pa/ss+w=@db/mlflow"
    assert "pa/ss" not in " ".join(module._command(uri, "127.0.0.1", 5000))

    class Ended:
        def wait(self):
            return 0

    monkeypatch.setattr(module, "served", lambda *_: nullcontext((Ended(), "http://127.0.0.1:5000")))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert ui(uri) == 0
    assert "The runs of postgresql+psycopg2://db/mlflow are shown at" in capsys.readouterr().out


@pytest.mark.slow
def test_a_database_that_does_not_answer_says_why_without_its_password():
    with (
        pytest.raises(ClusterError, match="MLflow ended while it started") as raised,
        served("postgresql://mlflow:pa/ss+w=@127.0.0.1:1/x/mlflow", port=5690),
    ):
        pass
    assert "pa/ss" not in str(raised.value)


@pytest.mark.slow
def test_the_pages_are_served_and_end(empty_store, tmp_path):
    store = f"sqlite:///{shutil.copy(empty_store, tmp_path)}"
    code = "import sys; from mvray.tracking.mlflow_ui import ui; sys.exit(ui(sys.argv[1], port=5690))"
    page = subprocess.Popen([sys.executable, "-c", code, store], stdout=subprocess.PIPE, text=True)
    assert page.stdout.readline() == "MLflow is starting ...\n"
    address = page.stdout.readline().split(" are shown at ")[1].split("/#")[0]
    assert check(address).startswith("MLflow 3")
    with urlopen(address, timeout=60) as answer:  # noqa: S310  our own server
        assert b"<title>MLflow</title>" in answer.read()
    started = psutil.Process(page.pid).children(recursive=True)
    assert started
    assert not [process for process in started if store in " ".join(process.cmdline())], "the store may hold a password"
    page.send_signal(signal.SIGTERM)
    assert page.wait(120) == 0
    page.stdout.close()
    time.sleep(0.5)
    with pytest.raises(ClusterError):
        check(address)
