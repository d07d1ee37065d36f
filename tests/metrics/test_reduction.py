"""UMAP: as umap-learn's own, the same in any thread, quick to start, and quiet."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mvray.metrics.reduction import Pca, Umap, flat_map

pytestmark = pytest.mark.slow  # UMAP is compiled


def vectors(samples: int, dimensions: int = 24, groups: int = 4, seed: int = 0) -> np.ndarray:
    rand = np.random.default_rng(seed)
    centres = 4 * rand.normal(size=(groups, dimensions))
    return (centres[rand.integers(0, groups, samples)] + rand.normal(size=(samples, dimensions))).astype(np.float32)


@pytest.mark.slow
def test_it_is_umap() -> None:
    """Same neighbours, same seed: the places of umap.UMAP itself."""
    from sklearn.neighbors import NearestNeighbors

    given = vectors(150)
    places = Umap(8).reduced(given, 3)
    import umap  # not before: it warns

    distances, rows = NearestNeighbors(n_neighbors=15, algorithm="brute").fit(given).kneighbors(given)
    theirs = umap.UMAP(n_components=8, min_dist=0.0, random_state=3, n_jobs=1, precomputed_knn=(rows, distances))
    assert places.shape == (150, 8)
    assert (places == theirs.fit_transform(given)).all()


def test_the_seed_decides() -> None:
    given = vectors(100)
    assert (Umap(4).reduced(given, 1) == Umap(4).reduced(given, 1)).all()
    assert (Umap(4).reduced(given, 1) != Umap(4).reduced(given, 2)).any()


def test_few_vectors_get_principal_components() -> None:
    for samples in (1, 2, 33):
        given = vectors(samples, 50)
        expected = Pca(32).reduced(given, 0)
        assert expected.shape == (samples, min(samples, 32))
        assert (Umap(32).reduced(given, 0) == expected).all()
    assert Umap(32).reduced(vectors(34, 50), 0).dtype == np.float32


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "manhattan", "correlation"])
def test_strange_vectors_have_finite_places(metric: str) -> None:
    one = vectors(1)
    for given in (
        np.repeat(vectors(10), 12, 0),  # no neighbours but copies
        np.concatenate([vectors(60), -vectors(60), 1e4 + vectors(60)]),  # groups without an edge between them
        1e20 * vectors(60),
        1e-20 * vectors(60),
        np.concatenate([np.repeat(one, 50, 0), -one]),
        vectors(60, 1, 60),
    ):
        places = Umap(2, metric=metric).reduced(given, 0)
        assert np.isfinite(places).all()


def test_many_groups_far_from_one_another() -> None:
    """UMAP lays out the graph's pieces with scikit-learn, which warns of what cannot be otherwise."""
    rand = np.random.default_rng(0)
    given = (1000 * rand.normal(size=(40, 1, 8)) + rand.normal(size=(40, 20, 8))).reshape(-1, 8)
    assert np.isfinite(Umap(2).reduced(given, 0)).all()


def test_flat_maps_have_two_dimensions() -> None:
    for given, reduce in ((vectors(60), Umap()), (vectors(60), None), (vectors(3), Pca()), (vectors(2, 1), Umap())):
        places = flat_map(given, reduce, 0)
        assert places.shape == (len(given), 2)
        assert places.dtype == np.float32
    assert (flat_map(np.ones((5, 3)), Umap(), 0) == 0).all()
    assert flat_map(np.ones((0, 3)), Umap(), 0).shape == (0, 2)


TWO_AT_ONCE = """
import sys, threading, warnings
warnings.simplefilter("error")
import numpy as np
from mvray.metrics.reduction import Umap
given = [np.random.default_rng(seed).normal(size=(150, 16)) for seed in range(4)]
found = {}
def work(seed):
    found[seed] = Umap(8).reduced(given[seed], seed)
threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert all((found[seed] == Umap(8).reduced(given[seed], seed)).all() for seed in range(4))
import numba
print(numba.threading_layer())
"""


@pytest.mark.slow
def test_several_threads_at_once_get_what_each_gets_alone() -> None:
    """With numba's own thread pool too, which ends the process where two threads use it at once."""
    environ = {**os.environ, "NUMBA_THREADING_LAYER": "workqueue"}
    done = subprocess.run([sys.executable, "-c", TWO_AT_ONCE], capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "workqueue", "")


@pytest.mark.slow
def test_it_leaves_the_interpreter_to_other_threads() -> None:
    """The layout runs without the interpreter's lock: what shows progress beside it goes on."""
    given = vectors(1500)
    Umap(8).reduced(given[:100], 0)
    ticks, ended = 0, threading.Event()
    done = threading.Thread(target=lambda: (Umap(8).reduced(given, 0), ended.set()))
    done.start()
    while not ended.wait(0.005):
        ticks += 1
    done.join()
    assert ticks > 20


@pytest.mark.drill
def test_without_a_folder_for_compiled_code_it_works_all_the_same(tmp_path: Path) -> None:
    """As in a container with another user: neither the package's folder nor a home to write to."""
    installed = Path(importlib.util.find_spec("umap").origin).parent
    shutil.copytree(installed, tmp_path / "umap", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "umap/__pycache__").touch()  # a file: no folder can be made, not even by root
    (tmp_path / "home").touch()
    (tmp_path / "temporary").mkdir()
    code = (
        "import numpy as np; from mvray.metrics.reduction import Umap; "
        "print(Umap(2).reduced(np.random.default_rng(0).normal(size=(40, 4)), 0).shape); "
        "import umap; print(umap.__file__)"
    )
    environ = {**os.environ, "HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "temporary")}
    environ["NUMBA_OPT"] = "0"  # compiles faster
    environ |= {"XDG_CACHE_HOME": environ["HOME"], "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ)
    assert done.stdout.split("\n")[:2] == ["(40, 2)", str(tmp_path / "umap/__init__.py")], done.stderr[-2000:]
    assert list((tmp_path / "temporary").glob("mvray-numba-*"))
