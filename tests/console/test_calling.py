"""Whom commands call, and what becomes of errors: one sentence, and a code that scripts can go by."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import sys
import time
from uuid import uuid4

import grpc
import pytest
from flowledger_client.errors import ConcurrentModification, DeadlineExceeded, Told
from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server

from server.__main__ import main
from server.console import commands
from server.console.calling import sentence
from server.settings import CLIENT_VARIABLES, Settings, SettingsError
from tests.console.shell import PATIENCE, ROOT, Shell
from tests.contract.test_readme import rows

EVERY = (
    ["history", "X"],
    ["diff", "X", "--from", "1"],
    ["validate", "X"],
    ["recover", "X", "--yes"],
    ["checkpoint", "create", "X"],
    ["checkpoint", "list", "X"],
    ["checkpoint", "diff", "X"],
    ["checkpoint", "restore", "X", "--yes"],
    ["checkpoint", "prune", "X", "--yes"],
    ["alerts", "--flow", "X"],
    ["audit", "verify", "X"],
)


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
async def test_a_malformed_id_is_refused_in_one_sentence_that_names_the_field(shell: Shell, command: list[str]) -> None:
    result = await shell.run(*command)
    assert (result.code, result.out) == (1, "")
    assert re.fullmatch(r"flowledger: (flow_id|checkpoint_id|from_checkpoint_id): must be a UUID[^\n]* \(INVALID_REQUEST\)\n", result.err)


@pytest.mark.parametrize("command", EVERY, ids=" ".join)
async def test_what_is_not_there_is_said_not_to_be_there(shell: Shell, command: list[str]) -> None:
    missing = str(uuid4())
    result = await shell.run(*(missing if part == "X" else part for part in command))
    if command[0] == "alerts" or command[:2] in (["checkpoint", "list"], ["checkpoint", "prune"]):
        assert (result.code, result.err) == (0, "")
    else:
        assert (result.code, result.out) == (1, "")
        assert re.fullmatch(rf"flowledger: [^\n]*{missing}[^\n]* \((FLOW|CHECKPOINT)_NOT_FOUND\)\n", result.err)


async def test_a_limit_is_named_with_its_field(shell: Shell, flow: str) -> None:
    result = await shell.run("checkpoint", "create", flow, "--reason", "x" * 2001)
    assert result.code == 1
    assert re.fullmatch(r"flowledger: reason: [^\n]*2,?000[^\n]* \(INVALID_REQUEST\)\n", result.err)


def test_what_belongs_to_a_reason_is_told_unless_it_was_said() -> None:
    told = Told("CONCURRENT_MODIFICATION", {"expected_revision": "4", "current_revision": "17"})
    failure = ConcurrentModification("the flow is at revision 17", grpc.StatusCode.ABORTED, told)
    assert sentence(failure, "host:1", 5) == "the flow is at revision 17; expected revision 4 (CONCURRENT_MODIFICATION)"


def test_a_service_that_does_not_answer_in_time_leaves_no_doubt_about_the_doubt() -> None:
    failure = DeadlineExceeded("Deadline Exceeded", grpc.StatusCode.DEADLINE_EXCEEDED, Told())
    assert sentence(failure, "host:1", 5).startswith(
        "the service at host:1 has not answered within 5 s, and whether it did what was asked is"
    )


async def test_another_tenants_flow_is_not_there(shell: Shell, flow: str) -> None:
    result = await shell.run("history", flow, FLOWLEDGER_CLIENT_ENGAGEMENT=str(uuid4()))
    assert (result.code, result.out) == (1, "")
    assert "(FLOW_NOT_FOUND)" in result.err


async def test_a_service_that_is_not_there_is_said_so_quickly(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens on it
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        result = await shell.run("validate", str(uuid4()), "--address", address)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"flowledger: no service answers at {address}: is it running there? --address or FLOWLEDGER_CLIENT_ADDRESS names another\n"
    )
    assert time.monotonic() - began < 15  # it is 3 s on a machine that has time


async def test_a_service_that_cannot_serve_is_said_so_quickly(shell: Shell) -> None:
    unwell = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    await servicer.set("", HealthCheckResponse.NOT_SERVING)
    add_HealthServicer_to_server(servicer, unwell)
    address = f"127.0.0.1:{unwell.add_insecure_port('127.0.0.1:0')}"
    await unwell.start()
    try:
        result = await shell.run("validate", str(uuid4()), "--address", address)
    finally:
        await unwell.stop(None)
    assert (result.code, result.out) == (1, "")
    assert result.err == (
        f"flowledger: the service at {address} runs, and cannot serve: its database is away, or it is stopping; its log says more\n"
    )


@pytest.mark.parametrize(
    "command",
    [
        ["history"],
        ["history", "X", "--limit", "0"],
        ["history", "X", "--since", "3x"],
        ["history", "X", "--kind", "gremlins"],
        ["history", "X", "--follow", "--actor", "ada"],
        ["checkpoint", "list", "--kind", "gremlins"],
        ["checkpoint", "create", "X", "--label", "wave"],
        ["recover", "X", "--rung", "unspecified"],
        ["alerts", "--severity", "bad"],
        ["history", "X", "--account", "me"],
        ["checkpoint", "frobnicate"],
    ],
    ids=" ".join,
)
async def test_a_command_that_is_written_wrongly_ends_with_2(shell: Shell, command: list[str]) -> None:
    result = await shell.run(*command)
    assert (result.code, result.out) == (2, "")
    assert "Error" in result.err


async def test_who_does_not_say_whose_flows_is_asked_to(shell: Shell) -> None:
    result = await shell.run("alerts", FLOWLEDGER_CLIENT_ACCOUNT="")
    assert result.code == 2
    assert "--account" in result.err
    assert "FLOWLEDGER_CLIENT_ACCOUNT" in result.err


async def test_options_win_over_the_environment_and_the_user_stands_in_the_history(shell: Shell, flow: str) -> None:
    made = (await shell.ok("checkpoint", "create", flow, "--user", "grace", "--json")).document
    assert made["createdBy"] == "grace"
    assert (await shell.ok("checkpoint", "create", flow, "--json")).document["createdBy"] == "ada"


async def test_on_a_terminal_there_are_colours_unless_somebody_minds(shell: Shell, flow: str) -> None:
    coloured = await shell.typed("history", flow, columns=80)
    assert coloured.code == 0
    assert "\x1b[1m" in coloured.out
    plain = await shell.typed("history", flow, columns=80, NO_COLOR="1")
    assert "\x1b[3" not in plain.out
    shown = re.sub(r"\x1b\[[0-9;]*m", "", coloured.out)
    assert max(map(len, shown.splitlines())) <= 80
    assert all(f"\n{number:>3}  " in f"\n{shown}" for number in (1, 2, 3, 4))


async def test_a_pipe_gets_no_colours_even_when_they_are_forced(shell: Shell, flow: str) -> None:
    assert "\x1b" not in (await shell.run("history", flow, FORCE_COLOR="1")).out


async def test_a_reader_that_has_enough_is_no_error(shell: Shell, flow: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = (sys.executable, "-m", "server", "history", flow)
    process = await asyncio.create_subprocess_exec(
        *command, cwd=ROOT, env={**os.environ, **shell.environment}, stdout=writer, stderr=asyncio.subprocess.PIPE
    )
    os.close(writer)
    _, told = await asyncio.wait_for(process.communicate(), PATIENCE)
    assert (process.returncode, told) == (0, b"")


def test_the_server_lets_the_commands_have_their_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in CLIENT_VARIABLES:
        monkeypatch.setenv(name, "x")
    Settings.read()
    monkeypatch.setenv("FLOWLEDGER_CLIENT_ADRESS", "x")
    with pytest.raises(SettingsError, match=r"ADRESS is not a setting; the closest one is FLOWLEDGER_CLIENT_ADDRESS\."):
        Settings.read()


def test_readme_tells_the_variables_of_the_commands() -> None:
    assert {row["environment"] for row in rows("option", "environment", "meaning")} == CLIENT_VARIABLES


@pytest.mark.parametrize("name", sorted(commands.NAMES))
def test_the_command_knows_its_parts_without_the_service(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["flowledger", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert name in capsys.readouterr().out


def test_help_tells_of_the_service_and_of_its_operators_commands(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["flowledger", "--help"])
    with pytest.raises(SystemExit):
        main()
    told = capsys.readouterr().out
    assert all(re.search(rf"\b{name}\b", told) for name in ("serve", "migrate", *commands.NAMES))
