"""What a person should know first about a discovered inventory, as sentences, the most pressing first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from examples.discovery.cleansing import CellChange
from examples.discovery.dependencies import Crossing, Dependencies
from examples.discovery.document import CleansingRecord, DiscoveryDocument
from examples.discovery.fields import FIELD_BY_NAME
from examples.discovery.lifecycle import SupportState
from examples.discovery.quantity import size_text
from examples.discovery.tech_debt import TechDebt
from examples.discovery.totals import RepeatedCapacity, Totals

NAMED = 3  # how many names a sentence holds before it counts the rest


def key_findings(document: DiscoveryDocument) -> tuple[str, ...]:
    """The findings of ``document``; what has not been analysed yet is not spoken of."""
    found: list[str] = []
    if document.inventory:
        found += _totals(document.inventory)
    if document.tech_debt:
        found += _tech_debt(document.tech_debt)
    if document.dependencies:
        found += _dependencies(document.dependencies)
    if document.inventory and document.inventory.repeated:
        found.append(_repeated(document.inventory.repeated, document.dependencies))
    if document.dependencies:
        found += _crossings(document.dependencies.crossings)
    if document.cleansing:
        found += _cleansing(document.cleansing)
    return tuple(found)


def some(names: Sequence[str], most: int = NAMED) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most:,} more"


def _totals(totals: Totals) -> Iterable[str]:
    kinds = ", ".join(f"{group.servers:,} {_plural(group.name, group.servers)}" for group in totals.by_kind)
    stated = [group.name for group in totals.by_datacenter if group.servers]
    places = f" in {len(stated)} datacenters" if len(stated) > 1 else ""
    yield f"{totals.all.servers:,} {_plural('server', totals.all.servers)}{places}: {kinds}."


def _tech_debt(debt: TechDebt) -> Iterable[str]:
    total = sum(len(release.servers) for release in debt.releases) + len(debt.without_system)
    past = [release for release in debt.releases if release.state is SupportState.PAST]
    if past:
        count = debt.count(SupportState.PAST)
        which = ", ".join(
            f"{release.name} ({len(release.servers):,})" for release in sorted(past, key=lambda release: -len(release.servers))
        )
        yield f"{count:,} of {total:,} servers ({count / total:.0%}) run a system past its end of life on {debt.as_of}: {which}."
        oldest = past[0]
        years = -(oldest.days_left or 0) / 365.25
        yield f"Without security updates the longest: {oldest.name}, for {years:.1f} years, on {some(oldest.servers)}."
    elif debt.releases:
        yield f"No server runs a system that is known to be past its end of life on {debt.as_of}."
    soon = [release for release in debt.releases if release.state is SupportState.ENDING_SOON]
    if soon:
        yield (
            "Support ends within a year for "
            + ", ".join(f"{release.name} ({len(release.servers):,}, on {release.end})" for release in soon)
            + "."
        )
    unknown = [release for release in debt.releases if release.state is SupportState.UNKNOWN]
    if unknown:
        yield f"The table has no dates for {some([f'{release.name} ({len(release.servers):,})' for release in unknown])}."
    if debt.without_system:
        count = len(debt.without_system)
        yield f"{count:,} {_plural('server', count)} without an operating system in the inventory: {some(debt.without_system)}."


def _dependencies(found: Dependencies) -> Iterable[str]:
    if found.cycles:
        yield (
            f"{len(found.cycles)} {_plural('ring', len(found.cycles))} of servers said to run on each other, which cannot be: "
            + "; ".join(" -> ".join((*ring, ring[0])) for ring in found.cycles[:NAMED])
        )
    if found.unlisted_hosts:
        guests = [guest for load in found.hosts if not load.listed for guest in load.guests]
        count = len(found.unlisted_hosts)
        yield (
            f"{count} {_plural('host', count)} that the inventory names but does not list: {some(found.unlisted_hosts)}. "
            f"What runs there would be forgotten: {some(guests)}."
        )
    if found.nested:
        yield f"{len(found.nested)} {_plural('host', len(found.nested))} that run on a host themselves: {some(found.nested)}."
    if found.hosts:
        most = found.hosts[0]
        yield (
            f"Most depends on {most.host}: {len(most.guests)} virtual {_plural('machine', len(most.guests))} with "
            f"{most.guest_cpu_count:,} CPUs and {size_text(most.guest_memory_mib)} of memory move when it moves."
        )


def _repeated(repeated: RepeatedCapacity, found: Dependencies | None) -> str:
    parts = [
        f"{repeated.cpu_count} CPUs" if repeated.cpu_count else "",
        f"{size_text(repeated.memory_mib)} of memory" if repeated.memory_mib else "",
        f"{size_text(repeated.disk_mib)} of disk" if repeated.disk_mib else "",
    ]
    stated = ", ".join(filter(None, parts))
    text = (
        f"{repeated.machines:,} of the {repeated.of_machines:,} machines that run on no other state exactly {stated}: "
        "a default that nobody changed, not a measurement."
    )
    if found and found.too_small_hosts:
        text += f" {len(found.too_small_hosts)} hosts state less memory than their guests need. Measure them before a target is sized."
    return text


def _crossings(crossings: Sequence[Crossing]) -> Iterable[str]:
    by_kind: dict[str, list[Crossing]] = {}
    for crossing in crossings:
        by_kind.setdefault(crossing.what, []).append(crossing)
    for what, members in by_kind.items():
        pairs = Counter((crossing.guest_value, crossing.host_value) for crossing in members)
        kinds = ", ".join(
            f"{guest} on {host}" + (f" ({count})" if len(members) > 1 else "") for (guest, host), count in pairs.most_common(NAMED)
        )
        first, whose = members[0], "its" if len(members) == 1 else "their"
        yield (
            f"{len(members):,} virtual {_plural('machine', len(members))} whose {what} is not {whose} host's: {kinds}; "
            f"for example {first.guest} on {first.host}."
        )


def _cleansing(record: CleansingRecord) -> Iterable[str]:
    if record.changes:
        change = _telling(record.changes)
        yield (
            f"{record.change_count:,} {_plural('value', record.change_count)} had to be converted, "
            f'for example "{change.before}" to {change.after} ({FIELD_BY_NAME[change.field].label} of {change.hostname}).'
        )
    if record.issues:
        issue = record.issues[0]
        yield (
            f"{record.issue_count:,} {'entry needs' if record.issue_count == 1 else 'entries need'} somebody's eye, "
            f'for example row {issue.row}: {FIELD_BY_NAME[issue.field].label} "{issue.value}", {issue.problem}.'
        )


def _telling(changes: Sequence[CellChange]) -> CellChange:
    """A change of a size says more than one of spelling."""
    return next((change for change in changes if change.field in {"disk_mib", "memory_mib"}), changes[0])


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
