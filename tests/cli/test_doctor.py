"""The doctor on real patients: this machine, and places and packages that are really broken."""

import socket
import sys
import textwrap

import pytest

from mvray.cli import doctor
from mvray.cli.doctor import cluster, hardware, places, software
from mvray.cli.doctor.finding import Finding


def only(findings):
    (finding,) = findings
    return finding


def test_this_machine(tmp_path):
    storage = tmp_path / "new"
    findings = doctor.examine(str(storage), f"sqlite:///{storage}/mlflow.db")
    for name in ("Python", "packages", "torch", "storage", "tracking"):
        assert {finding.state for finding in findings if finding.name == name} == {"ok"}, name
    assert all(finding.remedy for finding in findings if finding.state in ("bad", "warn"))
    names = {finding.name for finding in findings}
    assert names >= {"Python", "packages", "torch", "CPUs", "memory", "GPUs", "NCCL", "shared memory", "disk"}
    assert names >= {"storage", "tracking", "Ray", "ports", "Detectron2", "video"}
    assert not storage.exists(), "looking leaves nothing behind"
    text = doctor.as_text(findings)
    assert "ok    Python" in text
    assert max(len(line) for line in text.splitlines()) <= 100


def test_text_of_problems():
    findings = [
        Finding("Python", "ok", "3.11"),
        Finding("disk", "warn", "nearly full " * 20, "Free some space."),
        Finding("storage", "bad", "cannot be written", "Choose another."),
        Finding("GPUs", "info", "none"),
    ]
    lines = doctor.as_text(findings).splitlines()
    assert lines[0] == "ok    Python   3.11"
    assert "               > Free some space." in lines
    assert "BAD   storage  cannot be written" in lines
    assert lines[-1] == "1 problem, 1 warning."
    assert doctor.as_text(findings[:1]).endswith("All is well.")


def test_a_check_that_fails_becomes_a_finding():
    def check():
        yield Finding("disk", "ok", "fine so far")
        raise RuntimeError("the disk fell off")

    first, second = doctor._findings("disk", check)
    assert first.text == "fine so far"
    assert (second.state, second.text) == ("bad", "The check failed. RuntimeError: the disk fell off")
    assert second.remedy


def test_packages_that_are_missing_or_too_old(tmp_path, monkeypatch):
    about = tmp_path / "mvray-9.dist-info"
    about.mkdir()
    needs = ["numpy>=999", "no-such-package>=1", "pillow>=2", 'no-such-extra; extra == "dev"']
    lines = ["Metadata-Version: 2.1", "Name: mvray", "Version: 9", *(f"Requires-Dist: {need}" for need in needs)]
    (about / "METADATA").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))
    old, missing, good = software.packages()
    assert (old.state, old.remedy) == ("bad", 'pip install --upgrade "numpy>=999"')
    assert "numpy is 2" in old.text
    assert (missing.text, missing.remedy) == ("no-such-package is not installed.", 'pip install "no-such-package>=1"')
    assert good.text.startswith("pillow ")


def test_a_detectron2_that_was_built_for_another_torch(tmp_path, monkeypatch):
    package = tmp_path / "detectron2"
    package.mkdir()
    (package / "__init__.py").write_text("__version__ = '0.6'\n")
    (package / "_C.py").write_text("raise ImportError('undefined symbol: _ZN2at4_ops')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "detectron2"]:
        monkeypatch.delitem(sys.modules, name)  # the real one, of other tests
    finding = only(software.detectron2())
    assert finding.state == "warn"
    assert "undefined symbol: _ZN2at4_ops" in finding.text


@pytest.mark.parametrize(
    ("size_gb", "state", "says"), [(0.064, "bad", "bus error"), (2, "warn", "slow"), (20, "ok", "30 % of the memory")]
)
def test_shared_memory(size_gb, state, says):
    """64 MB is what docker gives; 32 GB of memory want 9.6 GB."""
    finding = hardware.enough_shared_memory(int(size_gb * 1e9), int(32e9))
    assert (finding.state, says in finding.text) == (state, True)
    if state != "ok":
        assert "--shm-size=10g" in finding.remedy


def test_a_storage_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    finding = only(places.storage(str(tmp_path / "file" / "runs")))
    assert (finding.state, bool(finding.remedy)) == ("bad", True)
    assert str(tmp_path) in finding.text
    assert only(places.storage("ftp://somewhere")).state == "bad"


def test_a_storage_in_use_is_left_as_it_is(tmp_path):
    (tmp_path / "step.json").write_text("{}")
    assert only(places.storage(str(tmp_path))).state == "ok"
    assert [file.name for file in tmp_path.iterdir()] == ["step.json"]


def test_a_tracking_server_that_is_away():
    finding = only(places.tracking("http://127.0.0.1:1"))
    assert finding.state == "bad"
    assert "http://127.0.0.1:1" in finding.text
    assert "MLFLOW_TRACKING_URI" in finding.remedy


def test_ports_in_use(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr(places, "PORTS", {port: "mvray ui"})
        finding = only(places.ports())
        assert (finding.state, f"in use: {port}" in finding.text) == ("info", True)
    assert only(places.ports()).state == "ok"


def test_a_cluster_that_is_not_there():
    finding = only(cluster.examined("127.0.0.1:1", "runs"))
    assert (finding.state, finding.text) == ("bad", "Nobody listens at 127.0.0.1:1.")
    assert "RAY_AUTH_MODE" in finding.remedy


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning", "ignore::DeprecationWarning")
def test_a_cluster_of_two_nodes(tmp_path):
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20})
    try:
        nodes.add_node(num_cpus=2, object_store_memory=100 << 20)
        nodes.wait_for_nodes()
        *found, shared = cluster.examined(nodes.address, str(tmp_path))
    finally:
        nodes.shutdown()
    assert [finding.state for finding in found] == ["ok", "ok"], textwrap.indent(doctor.as_text(found), "  ")
    assert sorted(finding.text.split(": ")[1].split(",")[0] for finding in found) == ["1 CPUs", "2 CPUs"]
    assert "mvray 0" in found[0].text
    assert (shared.state, "local folder" in shared.text) == ("warn", True)


@pytest.mark.gpu
def test_gpus_and_nccl():
    assert all(finding.state == "ok" for finding in hardware.gpus())
    assert only(hardware.nccl()).state == "ok"
