"""`validate` and `recover`: a damaged flow is found, its plan is shown, and it comes back."""

from __future__ import annotations

import asyncio

import asyncpg
import pytest

from tests.console.shell import Shell
from tests.tenancy import Tenancy

STATE = "UPDATE discovery_flows SET phases = jsonb_set(phases, '{0,state}', '\"IN_PROGRESS\"') WHERE flow_id = $1"
DOCUMENTS = "UPDATE documents SET body = 'x' WHERE flow_id = $1 AND name = 'data'"


async def test_a_sound_flow_is_said_to_be_sound(shell: Shell, flow: str) -> None:
    assert (await shell.ok("validate", flow)).out == f"{flow} is as it must be, at revision 4.\n"
    assert (await shell.ok("validate", flow, "--json")).document == {"findings": [], "omittedCount": 0, "revision": "4", "mendable": False}
    for options in ([], ["--plan"], ["--yes"]):
        assert (await shell.ok("recover", flow, *options)).out.startswith("The plan\n")


async def test_a_damaged_flow_is_found_planned_for_and_brought_back(
    shell: Shell, flow: str, hand: asyncpg.Connection, tenancy: Tenancy
) -> None:
    await hand.execute(STATE, flow)
    found = await shell.run("validate", flow)
    assert found.code == 3
    assert found.lines[-1] == f"  flowledger recover {flow} --plan"
    assert "PHASE_STATE  discovery/data_import" in found.out
    listed = await shell.run("validate", flow, "--json")
    assert (listed.code, listed.document["mendable"]) == (3, True)

    plan = (await shell.ok("recover", flow, "--plan")).out
    for heading in ("What is wrong", "The plan", "REPAIR: nothing that was done is undone", "What changes"):
        assert f"\n{heading}\n" in f"\n{plan}"
    assert (await shell.ok("recover", flow, "--plan", "--json")).document["plan"]["rung"] == "RECOVERY_RUNG_REPAIR"
    assert (await shell.run("validate", flow)).code == 3

    unasked = await shell.run("recover", flow)
    assert (unasked.code, unasked.err.split(":")[1]) == (2, " nothing was done")
    done = (await shell.ok("recover", flow, "--yes", "--reason", "found at night")).out
    assert f"Recovered. {flow} is at revision 5: " in done
    assert "is kept in quarantine as " in done
    await shell.ok("validate", flow)
    assert "the flow was recovered" in (await shell.ok("history", flow, "-n", "1")).out

    alerts = (await shell.ok("alerts")).lines
    assert "  warning   flow-recovered  " in alerts[-1]
    assert [alert["kind"] for alert in (await shell.ok("alerts", "--json", "--flow", flow)).documents] == ["ALERT_KIND_FLOW_RECOVERED"]
    assert (await shell.ok("alerts", "--kind", "flow-stuck")).out == "There is no such alert.\n"


async def test_what_no_allowed_rung_brings_back_says_why_and_what_remains(
    shell: Shell, flow: str, hand: asyncpg.Connection, tenancy: Tenancy
) -> None:
    await hand.execute(DOCUMENTS, flow)
    await hand.execute("DELETE FROM document_versions WHERE flow_id = $1", flow)
    result = await shell.run("recover", flow, "--rung", "repair", "--yes")
    assert result.code == 1
    assert "What does not do" in result.out
    assert result.lines[-1] == f"  flowledger recover {flow} --rung reset"
    reset = (await shell.ok("recover", flow, "--rung", "reset", "--yes", "--json")).document
    assert reset["plan"]["rung"] != "RECOVERY_RUNG_UNSPECIFIED"


async def test_whoever_is_asked_and_agrees_gets_the_flow_back(shell: Shell, flow: str, hand: asyncpg.Connection) -> None:
    await hand.execute(STATE, flow)
    said = await shell.typed("recover", flow, keys=b"y\n")
    assert said.code == 0
    assert "Recover the flow so? [y/N]: " in said.out
    assert "\x1b[" in said.out
    assert "Recovered. " in said.out
    await shell.ok("validate", flow)


@pytest.mark.parametrize("options", [[], ["--json"]])
async def test_alerts_are_followed_until_ctrl_c(shell: Shell, flow: str, hand: asyncpg.Connection, options: list[str]) -> None:
    following = asyncio.create_task(shell.followed("alerts", "--follow", *options, until=flow))
    await hand.execute(STATE, flow)
    await shell.ok("recover", flow, "--yes")
    lines = await following
    assert "recovered" in lines[-1].lower()


async def test_a_tenant_without_alerts_is_told_so(shell: Shell) -> None:
    assert (await shell.ok("alerts")).out == "There are no alerts.\n"
    assert (await shell.ok("alerts", "--json")).out == ""
