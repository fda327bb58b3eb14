# make demo          a sweep of small models, laws, a recipe, and whether the recipe is any good (out/demo)
# make test          the tests
# make test-cluster  those that need a Slurm or a Ray of two nodes; sets them up (Debian, root), ends them
# make lint          ruff
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-cluster lint clean

demo: .venv/ready
	$(BIN)/python demo.py

test: .venv/ready
	$(BIN)/python -m pytest -n 2 --dist loadfile --ignore tests/cluster

test-cluster: .venv/ready
	$(BIN)/python -m pytest tests/cluster

lint: .venv/ready
	$(BIN)/ruff check .

# The environment is made anew when what it depends on changes.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("hyperlaw needs Python 3.11 or newer: make PYTHON=python3.11 ..." if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
