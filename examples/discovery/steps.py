"""What each phase of a discovery does: from the document that the phases before it left, to what it leaves itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from flowledger.v1 import flow_pb2

from examples.discovery.asset import Asset, Server, create_assets
from examples.discovery.cleansing import Cleansing
from examples.discovery.dependencies import dependencies
from examples.discovery.document import (
    MAX_ROWS_BYTES,
    CleansingRecord,
    DiscoveryDocument,
    Intake,
    Patch,
    chunks,
    list_patch,
    patch_json,
)
from examples.discovery.inventory import InventoryError, read_inventory
from examples.discovery.lifecycle import SupportState
from examples.discovery.mapping import FieldMapping, map_columns
from examples.discovery.progress import PhaseFailed, PhaseHalted, Progress
from examples.discovery.tech_debt import tech_debt
from examples.discovery.totals import totals

KEPT_CHANGES = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Work:
    """What a phase is given. ``store`` merges a patch into the child's document at once."""

    document: DiscoveryDocument
    progress: Progress
    store: Callable[[Patch], Awaitable[None]]
    csv: Path
    as_of: date
    engagement_id: UUID
    corrections: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a phase leaves: patches for the child's document and the flow's state, a sentence, how many things it worked on."""

    sentence: str
    data: Patch
    summary: Patch
    item_count: int
    items: str = field(default="rows")


Step = Callable[[Work], Awaitable[Outcome]]


async def data_import(work: Work) -> Outcome:
    """The file's rows, in chunks."""
    try:
        inventory = await asyncio.to_thread(read_inventory, work.csv)
    except InventoryError as error:
        raise PhaseFailed(flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED, str(error)) from None
    source = work.document.source
    if source and source.sha256 != inventory.source.sha256:
        raise PhaseHalted(f"the flow was begun with another {source.file} than this {inventory.source.file}: give --csv the first one")
    size = len(patch_json({"rows": inventory.rows}))
    if size > MAX_ROWS_BYTES:
        raise PhaseFailed(
            flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED,
            f"the rows of {inventory.source.file} take {size:,} bytes and one flow has room for {MAX_ROWS_BYTES:,}: "
            "split the inventory and discover each part in a flow of its own",
        )
    await work.store({"rows": None, "records": None, "assets": None})
    done = 0
    for key, rows in chunks(inventory.rows).items():
        await work.store({"rows": {key: rows}})
        done += len(rows)
        await work.progress.report(done, len(inventory.rows), "rows stored")
    intake = Intake(inventory.encoding, inventory.separator, inventory.columns, len(inventory.rows), inventory.notes)
    return Outcome(
        f"{len(inventory.rows):,} rows of {len(inventory.columns)} columns imported from {inventory.source.file}",
        {"source": inventory.source, "intake": intake},
        {"file": inventory.source.file, "rows": len(inventory.rows), "columns": len(inventory.columns)},
        len(inventory.rows),
    )


async def field_mapping(work: Work) -> Outcome:
    """Which column is which field; a person decides about it afterwards."""
    intake = _needed(work.document.intake, "data_import")
    rows = work.document.all_rows()
    corrections = {**work.document.corrections, **work.corrections}
    await work.progress.report(len(intake.columns) // 2, len(intake.columns), "columns compared")
    try:
        mapping = await asyncio.to_thread(map_columns, intake.columns, rows, corrections)
    except InventoryError as error:
        raise PhaseHalted(str(error)) from None
    await work.progress.report(len(intake.columns), len(intake.columns), "columns compared")
    if mapping.column_of("hostname") is None:
        raise PhaseHalted(f"no column looks like host names; say which is: --map COLUMN=hostname, with one of {', '.join(intake.columns)}")
    mapped = sum(match.field is not None for match in mapping.matches)
    return Outcome(
        f"{mapped} of {len(mapping.matches)} columns matched, {len(mapping.doubtful)} of them to be looked at",
        {"mapping": mapping, "corrections": corrections},
        {"mapped_columns": mapped, "doubtful_columns": len(mapping.doubtful)},
        len(mapping.matches),
        "columns",
    )


async def data_cleansing(work: Work) -> Outcome:
    """Values out of cells, and a record of what was done to them."""
    intake = _needed(work.document.intake, "data_import")
    mapping = _needed(work.document.mapping, "field_mapping")
    rows = work.document.all_rows()
    cleansing = Cleansing(intake.columns, rows, mapping)
    done = 0
    for part in chunks(rows).values():
        for cells in part:
            cleansing.add(done + 2, cells)
            done += 1
        await work.progress.report(done, len(rows), "rows cleansed")
    result = cleansing.result()
    if not result.servers:
        raise PhaseFailed(
            flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED,
            f"not one of the {len(rows):,} rows names a server in {mapping.column_of('hostname')}",
        )
    await work.store({"records": None, "assets": None})
    for key, servers in chunks(result.servers).items():
        await work.store({"records": {key: list_patch(servers)}})
    record = CleansingRecord(
        len(result.servers),
        len(result.changes),
        len(result.issues),
        result.changes[:KEPT_CHANGES],
        result.issues[:KEPT_CHANGES],
        result.assumptions,
    )
    return Outcome(
        f"{record.server_count:,} servers, {record.change_count:,} values converted, {record.issue_count:,} that could not be",
        {"cleansing": record},
        {"servers": record.server_count, "converted_values": record.change_count, "issues": record.issue_count},
        len(rows),
    )


async def asset_creation(work: Work) -> Outcome:
    """An asset for each server. A chunk that has its assets already, from a run that was cut off, is left as it is."""
    servers = _all_servers(work.document)
    created = {
        asset.server.hostname: asset
        for asset in create_assets([server for part in servers.values() for server in part], work.engagement_id)
    }
    done = 0
    for key, part in sorted(servers.items()):
        assets = [created[server.hostname] for server in part]
        if key not in work.document.assets:
            await work.store({"assets": {key: list_patch(assets)}, "records": {key: None}})
        done += len(assets)
        await work.progress.report(done, len(created), "assets created")
    kinds = [asset.kind for asset in created.values()]
    summary: Patch = {
        "assets": len(kinds),
        "virtual_machines": kinds.count("virtual machine"),
        "hosts": kinds.count("host"),
        "machines": kinds.count("machine"),
    }
    return Outcome(f"{len(kinds):,} assets created", {}, summary, len(kinds), "assets")


async def asset_inventory(work: Work) -> Outcome:
    """What the assets add up to."""
    assets = await _assets(work)
    found = totals(assets)
    await work.progress.report(len(assets), len(assets), "assets counted")
    summary: Patch = {"cpu_count": found.all.cpu_count, "memory_mib": found.all.memory_mib, "disk_mib": found.all.disk_mib}
    return Outcome(
        f"{len(assets):,} assets in {len(found.by_datacenter)} datacenters", {"inventory": found}, summary, len(assets), "assets"
    )


async def dependency_analysis(work: Work) -> Outcome:
    """What runs on what."""
    assets = await _assets(work)
    found = dependencies(assets)
    await work.progress.report(len(assets), len(assets), "assets traced")
    summary: Patch = {"used_hosts": len(found.hosts), "unlisted_hosts": len(found.unlisted_hosts), "dependency_cycles": len(found.cycles)}
    return Outcome(
        f"{found.guest_count:,} virtual machines on {len(found.hosts)} hosts, {len(found.unlisted_hosts)} of which nobody lists",
        {"dependencies": found},
        summary,
        len(assets),
        "assets",
    )


async def tech_debt_analysis(work: Work) -> Outcome:
    """Which operating systems are past their end of life."""
    assets = await _assets(work)
    found = tech_debt(assets, work.as_of)
    await work.progress.report(len(assets), len(assets), "assets judged")
    past = found.count(SupportState.PAST)
    summary: Patch = {"past_end_of_life": past, "ending_soon": found.count(SupportState.ENDING_SOON), "as_of": found.as_of.isoformat()}
    return Outcome(
        f"{past:,} servers run a system past its end of life on {found.as_of}", {"tech_debt": found}, summary, len(assets), "assets"
    )


STEPS: Mapping[str, Step] = {
    "data_import": data_import,
    "field_mapping": field_mapping,
    "data_cleansing": data_cleansing,
    "asset_creation": asset_creation,
    "asset_inventory": asset_inventory,
    "dependency_analysis": dependency_analysis,
    "tech_debt_analysis": tech_debt_analysis,
}
# These report once a chunk, so they do it over a stream.
STREAMED = frozenset({"data_import", "data_cleansing", "asset_creation"})


def mapping_of(document: DiscoveryDocument) -> FieldMapping:
    """The mapping that waits for approval."""
    return _needed(document.mapping, "field_mapping")


def _needed(part: T | None, phase: str) -> T:
    if part is None:
        raise PhaseFailed(
            flow_pb2.FAILURE_CODE_DATA_VALIDATION_FAILED, f"{phase} is complete but left nothing: roll it back and run the discovery again"
        )
    return part


def _all_servers(document: DiscoveryDocument) -> dict[str, Sequence[Server]]:
    created = {key: [asset.server for asset in assets] for key, assets in document.assets.items()}
    servers = {**document.records, **created}
    _needed(servers or None, "data_cleansing")
    return dict(sorted(servers.items()))


async def _assets(work: Work) -> list[Asset]:
    """The assets, read with progress half way."""
    assets = work.document.all_assets()
    _needed(assets or None, "asset_creation")
    await work.progress.report(len(assets) // 2, len(assets), "assets read")
    return assets
