"""`checkpoint`: copies are taken, found, compared, restored and removed from the command line."""

from __future__ import annotations

import re
from typing import Any

from tests.console.shell import Shell
from tests.tenancy import Tenancy


async def taken(shell: Shell, flow: str, *options: str) -> Any:
    return (await shell.ok("checkpoint", "create", flow, "--json", *options)).document


async def test_a_copy_is_taken_and_said_how_to_bring_back(shell: Shell, flow: str) -> None:
    shown = (await shell.ok("checkpoint", "create", flow, "--reason", "before the cutover")).lines
    made = shown[0].split()[1].rstrip(",")
    assert re.fullmatch(rf"Taken: {made}, of revision 4, [\d.]+ KiB\.", shown[0])
    assert shown[-1].strip() == f"flowledger checkpoint restore {made}"


async def test_copies_are_listed_the_newest_first(shell: Shell, flow: str) -> None:
    first = await taken(shell, flow, "--label", "wave=3", "--label", "by=ada", "--pin", "--reason", "before the cutover")
    second = await taken(shell, flow, "--ttl", "36h")
    assert first["labels"] == {"wave": "3", "by": "ada"}
    heading, newest, oldest = (await shell.ok("checkpoint", "list", flow)).lines
    assert heading.split() == ["checkpoint", "kind", "rev", "taken", "+0545", "size", "about"]
    assert newest.startswith(f"{second['checkpointId']}  manual")
    assert newest.endswith("expires in 35 h, by ada")
    assert oldest.startswith(first["checkpointId"])
    assert oldest.endswith("pinned, by=ada, wave=3, before the cutover, by ada")
    assert [one["checkpointId"] for one in (await shell.ok("checkpoint", "list", "--json")).documents] == [
        second["checkpointId"],
        first["checkpointId"],
    ]
    for narrowed in (["--label", "wave=3"], ["--pinned"]):
        assert [one["checkpointId"] for one in (await shell.ok("checkpoint", "list", "--json", *narrowed)).documents] == [
            first["checkpointId"]
        ]
    assert (await shell.ok("checkpoint", "list", "--kind", "auto")).out == "There is no such checkpoint.\n"
    assert (await shell.ok("checkpoint", "list", "--kind", "auto", "--json")).out == ""


async def test_a_list_that_was_cut_says_so(shell: Shell, flow: str) -> None:
    for _ in range(3):
        await taken(shell, flow)
    shown = (await shell.ok("checkpoint", "list", "-n", "2")).lines
    assert len(shown) == 4
    assert f"flow {flow}" in shown[1]
    assert shown[-1] == "Older ones are not shown: --limit 4 shows more."
    assert "Older" not in (await shell.ok("checkpoint", "list", "-n", "3")).out


async def test_a_restore_shows_what_changes_before_it_does_it_and_can_be_undone(shell: Shell, flow: str, tenancy: Tenancy) -> None:
    made = (await taken(shell, flow))["checkpointId"]
    await tenancy.call("UpdateFlow", flow_id=flow, update={"state": {"json": '{"wave":4}'}})
    assert "state /wave: 3 -> 4" in (await shell.ok("checkpoint", "diff", made)).out
    plan = (await shell.ok("checkpoint", "restore", made, "--plan")).out
    assert plan.startswith("the flow as it is -> restored")
    assert "state /wave: 4 -> 3" in plan
    assert (await tenancy.call("GetFlow", flow_id=flow)).flow.revision == 5
    done = (await shell.ok("checkpoint", "restore", made, "--yes", "--reason", "wave 4 was wrong")).lines
    assert any(line.startswith(f"Restored. {flow} is at revision 6: ") for line in done)
    undo = done[-1].split()[-1]
    assert "wave 4 was wrong" in (await shell.ok("history", flow, "-n", "1")).out
    again = (await shell.ok("checkpoint", "restore", undo, "--yes", "--json")).document
    assert again["flow"]["revision"] == "7"
    assert any("/wave: 3 -> 4" in line for line in again["diff"]["lines"])


async def test_nothing_is_restored_or_removed_when_nobody_can_be_asked(shell: Shell, flow: str, tenancy: Tenancy) -> None:
    made = (await taken(shell, flow))["checkpointId"]
    for command in (["restore", made], ["prune", flow]):
        for json in ([], ["--json"]):
            result = await shell.run("checkpoint", *command, *json)
            assert result.code == 2
            assert result.err == "flowledger: nothing was done: nobody can be asked here, so say --yes to do it or --plan to only see it\n"
    assert (await tenancy.call("GetFlow", flow_id=flow)).flow.revision == 4
    assert len((await shell.ok("checkpoint", "list", "--json")).documents) == 1


async def test_who_is_asked_and_says_no_changes_nothing(shell: Shell, flow: str) -> None:
    made = (await taken(shell, flow))["checkpointId"]
    said = await shell.typed("checkpoint", "prune", flow, keys=b"n\n")
    assert said.code == 0
    assert "1 checkpoint would be removed" in said.out
    assert "Nothing was done." in said.out
    assert [one["checkpointId"] for one in (await shell.ok("checkpoint", "list", "--json")).documents] == [made]


async def test_pruning_counts_first_and_leaves_what_is_pinned(shell: Shell, flow: str) -> None:
    pinned = (await taken(shell, flow, "--pin"))["checkpointId"]
    for _ in range(3):
        await taken(shell, flow)
    assert (await shell.ok("checkpoint", "prune", flow, "--keep", "2", "--plan")).out.startswith("1 checkpoint would be removed, ")
    assert (await shell.ok("checkpoint", "prune", flow, "--keep", "2", "--yes")).out.startswith("1 checkpoint was removed, ")
    assert (await shell.ok("checkpoint", "prune", "--older-than", "1h", "--yes")).out == "There is nothing to remove.\n"
    assert (await shell.ok("checkpoint", "prune", "--kind", "manual", "--yes", "--json")).document["prunedCount"] == 2
    assert [one["checkpointId"] for one in (await shell.ok("checkpoint", "list", "--json")).documents] == [pinned]


async def test_pruning_everything_of_everybody_is_no_slip_of_the_finger(shell: Shell) -> None:
    result = await shell.run("checkpoint", "prune", "--yes")
    assert result.code == 2
    assert "say which: a flow, --kind" in result.err
