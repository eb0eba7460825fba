"""The findings for people. Everything in it was read back from the service."""

from __future__ import annotations

from collections.abc import Sequence

from flowledger.v1 import activity_pb2, flow_pb2
from flowledger_client.text import state_name, status_name
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from examples.discovery.document import DiscoveryDocument, parse_document
from examples.discovery.findings import key_findings
from examples.discovery.ledger import CHILD
from examples.discovery.lifecycle import SupportState
from examples.discovery.quantity import size_text
from examples.discovery.tables import table
from examples.discovery.tech_debt import TechDebt
from examples.discovery.totals import Capacity

SHOWN = 10
_STATE_STYLES = {
    SupportState.PAST: "red",
    SupportState.ENDING_SOON: "yellow",
    SupportState.UNKNOWN: "yellow",
    SupportState.SUPPORTED: "green",
}


def print_report(flow: flow_pb2.Flow, console: Console) -> None:
    """Prints what ``flow`` (its FULL view) has found out; DocumentError when another kind of worker wrote it."""
    child = next(child for child in flow.children if child.type == CHILD)
    document = parse_document(child.data.json)
    console.print()
    console.print(Text(flow.display_name, "bold"))
    console.print(Text(f"flow {flow.flow_id}, {status_name(flow.status)}, revision {flow.revision}", "dim"))
    console.print()
    console.print(Text("Key findings", "bold"))
    for number, finding in enumerate(key_findings(document), start=1):
        row = Table.grid(padding=(0, 1))
        row.add_column(width=3, justify="right")
        row.add_column(ratio=1)
        row.add_row(f"{number}.", Text(finding))
        console.print(row)
    for part in _tables(document, child, flow, console):
        console.print()
        console.print(part, soft_wrap=isinstance(part, Text))  # an address that is broken in two cannot be followed


def _tables(document: DiscoveryDocument, child: flow_pb2.ChildFlow, flow: flow_pb2.Flow, console: Console) -> list[Table | Padding | Text]:
    shown: list[Table | Padding | Text] = []
    if document.tech_debt:
        shown.append(_support(document.tech_debt, console))
        shown += _sources(document.tech_debt)
    if document.inventory:
        shown.append(_capacities("Datacenters", document.inventory.by_datacenter, console))
        shown.append(_capacities("Environments", document.inventory.by_environment, console))
        shown.append(_capacities("Operating systems", document.inventory.by_operating_system, console))
        shown.append(_capacities("Kinds of server", document.inventory.by_kind, console))
    if document.dependencies and document.dependencies.hosts:
        shown.append(_hosts(document, console))
    shown.append(_phases(child, flow.activity, console))
    return shown


def _support(debt: TechDebt, console: Console) -> Table:
    shown = table(console, f"Support of operating systems on {debt.as_of}", "system", ">servers", ">ends", ">days", "verdict", "extended")
    for release in debt.releases:
        beyond = str(release.extension_end or "")
        shown.add_row(
            Text(release.name),
            f"{len(release.servers):,}",
            str(release.end or "?"),
            "" if release.days_left is None else f"{release.days_left:,}",
            Text(release.state.value.removesuffix(" end of life"), _STATE_STYLES[release.state]),
            Text(beyond, "dim"),
        )
    return shown


def _sources(debt: TechDebt) -> list[Text]:
    """One line for each product, with the page that its dates come from."""
    sources: dict[str, str] = {}
    for release in debt.releases:
        if release.source:
            sources.setdefault(release.source, release.name.rsplit(" ", 1)[0])
    return (
        [Text("\n".join(["Sources of the dates:", *(f"  {product}: {source}" for source, product in sources.items())]), "dim")]
        if sources
        else []
    )


def _capacities(title: str, groups: Sequence[Capacity], console: Console) -> Table:
    shown = table(console, title, "", ">servers", ">CPUs", ">memory", ">disk")
    for group in groups[:SHOWN]:
        shown.add_row(Text(group.name), f"{group.servers:,}", f"{group.cpu_count:,}", _size(group.memory_mib), _size(group.disk_mib))
    if len(groups) > SHOWN:
        rest = groups[SHOWN:]
        shown.add_row(
            Text(f"{len(rest)} more", "dim"),
            f"{sum(group.servers for group in rest):,}",
            f"{sum(group.cpu_count for group in rest):,}",
            _size(sum(group.memory_mib for group in rest)),
            _size(sum(group.disk_mib for group in rest)),
        )
    return shown


def _size(mebibytes: int) -> str:
    """A sum of sizes; nothing where no server states one."""
    return size_text(mebibytes) if mebibytes else ""


def _hosts(document: DiscoveryDocument, console: Console) -> Table:
    assert document.dependencies
    hosts = document.dependencies.hosts
    shown = table(
        console, f"Hosts with most guests ({min(SHOWN, len(hosts))} of {len(hosts)})", "host", ">guests", ">CPUs", ">memory", ">disk"
    )
    for load in hosts[:SHOWN]:
        shown.add_row(
            Text(load.host) if load.listed else Text(f"{load.host} (not listed)", "red"),
            str(len(load.guests)),
            f"{load.guest_cpu_count:,}",
            _size(load.guest_memory_mib),
            _size(load.guest_disk_mib),
        )
    return shown


def _phases(child: flow_pb2.ChildFlow, activity: activity_pb2.Activity, console: Console) -> Table:
    timings: dict[str, activity_pb2.ActivityEntry] = {}
    for entry in activity.entries:  # the newest first
        if entry.kind == activity_pb2.ACTIVITY_KIND_TIMING:
            timings.setdefault(entry.phase, entry)
    shown = table(console, "How it went", "phase", "state", ">retries", ">took", "~result")
    for phase in child.phases:
        timing = timings.get(phase.name)
        took = f"{timing.duration.ToTimedelta().total_seconds():.2f} s" if timing else ""
        result = timing.message if timing else phase.message
        shown.add_row(Text(phase.name), state_name(phase.state), str(phase.retry_count or ""), took, Text(result, "dim"))
    return shown
