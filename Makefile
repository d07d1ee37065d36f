# Everything runs in .venv, which the first command makes. `make help` lists the commands.
PYTHON ?= python3
BIN := .venv/bin
SAMPLE := samples/comics
JOB := jobs/gradcam_masking.py

.PHONY: help demo photos test test-fast drill drills check format bench clean

.DEFAULT_GOAL := help
help:
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

.venv/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v <= (3, 13) or sys.exit("mvray needs Python 3.11 to 3.13, found %d.%d; name one with make PYTHON=python3.12" % v)'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv || { echo "No virtual environment could be made: install python3-venv, or uv."; exit 1; }
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip sync --quiet --compile-bytecode --require-hashes requirements.lock
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable .
	@touch $@

$(SAMPLE)/books.txt: | .venv/ready
	$(BIN)/mvray sample comics $(SAMPLE)

# The real Detectron2's Python code, for tests and the benchmark alone.
.venv/detectron2: tests/generators/segmenters/unpack_detectron2.py tests/generators/segmenters/requirements.lock tests/generators/segmenters/detectron2.lock | .venv/ready
	$(BIN)/python tests/generators/segmenters/unpack_detectron2.py $@

demo: .venv/ready $(SAMPLE)/books.txt ## compose sample comics, run the tiny experiment on them, write report.html
	$(BIN)/mvray run $(JOB) --tiny --data $(SAMPLE)
	$(BIN)/mvray report $(JOB) --tiny --data $(SAMPLE) --html report.html

photos: .venv/ready ## compose real photographs out of Debian packages (apt-get) in VOC's layout: samples/photos
	$(BIN)/python tests/photos.py samples/photos

# A worker takes whole files, in the order of tests/conftest.py. Three on two cores: the slow ones mostly wait.
FILES := --dist loadfile --no-loadscope-reorder

# Apart from the fast ones: Ray's logging in the same process would swallow what those wait for.
test: test-fast .venv/detectron2 ## all tests but the drills (with Ray, MLflow and S3 servers)
	$(BIN)/python -m pytest -n 3 $(FILES) -m "slow and not drill"

test-fast: .venv/ready ## tests without Ray and servers
	$(BIN)/python -m pytest -n 2 $(FILES) -m "not slow and not drill"

drill: .venv/ready ## the short drill: one submitted job while a node, S3 and MLflow are lost
	$(BIN)/python -m pytest -m short_drill

drills: .venv/ready ## all drills: processes, nodes and servers are taken away under real jobs
	$(BIN)/python -m pytest -n 2 $(FILES) -m drill

check: .venv/ready ## ruff, mypy, layers and budgets
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_structure.py

format: .venv/ready ## let ruff format the code
	$(BIN)/ruff check --fix --quiet .
	$(BIN)/ruff format --quiet .

.venv/bench: tests/benchmarks/requirements.lock .venv/ready
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --compile-bytecode --require-hashes -r tests/benchmarks/requirements.lock
	@touch $@

bench: .venv/bench .venv/detectron2 ## the measured comparisons, as ratios
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean: ## remove the environment and everything that was made
	rm -rf .venv runs samples report.html
