# Everything sets itself up: `make demo` and `make test` need Python 3.11 or newer, make and PyPI, nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint format bench bench-gpu docs lock clean

demo: $(READY)
	$(BIN)/foveal demo --out demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)
	$(BIN)/python bench/run.py

bench-gpu: $(READY)
	$(BIN)/python bench/gpu.py

docs: $(READY)
	$(BIN)/python docs/generate.py

# Every dependency with its hashes, for all platforms; commit the result.
lock: $(READY)
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-package foveal --custom-compile-command "make lock" -o requirements.lock
	$(BIN)/uv pip compile pyproject.toml --extra serve --universal --python-version 3.11 --generate-hashes \
		--no-emit-package foveal --constraint requirements.lock --custom-compile-command "make lock" -o requirements-serve.lock
	echo hatchling | $(BIN)/uv pip compile - --universal --python-version 3.11 --generate-hashes \
		--constraint requirements.lock --custom-compile-command "make lock" -o requirements-build.lock

# The marker is written last, so that an interrupted installation is taken up again.
$(READY): requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) bench/.venv-peers demo
