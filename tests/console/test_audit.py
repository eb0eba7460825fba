"""`audit`: the chain is followed, a broken link is named, and an export can be verified by whoever has only the file."""

from __future__ import annotations

import os
from pathlib import Path

import asyncpg
from flowledger_client import audit_export

from tests.console.shell import Shell
from tests.tenancy import Tenancy


async def test_a_chain_that_holds_is_said_to_hold(shell: Shell, flow: str) -> None:
    shown = (await shell.ok("audit", "verify", flow)).lines
    assert shown[0] == "4 events of 1 flow: each follows from the one before."
    document = (await shell.ok("audit", "verify", "--json")).document
    assert (document["done"], document["breaks"], document["summary"]["events"]) == (True, [], "4")


async def test_a_changed_event_is_named(shell: Shell, flow: str, hand: asyncpg.Connection) -> None:
    await hand.execute("UPDATE events SET actor = 'mallory' WHERE flow_id = $1 AND revision = 2", flow)
    found = await shell.run("audit", "verify")
    assert found.code == 3
    assert "the chain of 1 flow is broken." in found.lines[0]
    assert any(line.startswith(f"{flow}    2  CHANGED") for line in found.lines)
    assert (await shell.run("audit", "verify", "--json")).document["breaks"][0]["revision"] == "2"


async def test_an_export_can_be_verified_with_the_file_alone(shell: Shell, flow: str, tenancy: Tenancy, tmp_path: Path) -> None:
    await tenancy.create()
    file = tmp_path / "export.bin"
    shown = (await shell.ok("audit", "export", str(file))).lines
    assert shown[0].startswith(f"5 events of 2 flows in 1 page: {file}, ")
    key, head = (line.split()[1] for line in shown[1:3])
    with file.open("rb") as kept:
        verified = audit_export.verified(audit_export.read(kept), bytes.fromhex(key))
    assert (verified.events, verified.head_hash.hex()) == (5, head)
    one = tmp_path / "one.bin"
    assert (await shell.ok("audit", "export", str(one), "--flow", flow, "--without-content", "--json")).document["summary"]["events"] == "4"


async def test_an_export_overwrites_nothing_and_leaves_no_half(shell: Shell, tmp_path: Path) -> None:
    kept = tmp_path / "kept.bin"
    kept.write_bytes(b"evidence")
    assert (await shell.run("audit", "export", str(kept))).code == 2
    assert kept.read_bytes() == b"evidence"
    missing = await shell.run("audit", "export", str(tmp_path / "new.bin"), "--flow", "0197f000-0000-7000-8000-00000000000f")
    assert (missing.code, "(FLOW_NOT_FOUND)" in missing.err) == (1, True)
    nowhere = await shell.run("audit", "export", str(tmp_path / "nowhere" / "new.bin"))
    assert nowhere.code == 1
    assert nowhere.err.endswith("No such file or directory\n")
    assert os.listdir(tmp_path) == ["kept.bin"]
