"""Which server runs on which, and what is odd about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from examples.discovery.asset import Asset, Server


@dataclass(frozen=True, slots=True)
class HostLoad:
    """A host, what runs on it, and what that needs together. ``states_memory_mib`` is None for a host that nobody lists."""

    host: str
    listed: bool
    guests: tuple[str, ...]
    guest_cpu_count: int
    guest_memory_mib: int
    guest_disk_mib: int
    states_memory_mib: int | None


@dataclass(frozen=True, slots=True)
class Crossing:
    """A guest and its host that disagree on something that they should share."""

    guest: str
    host: str
    what: str
    guest_value: str
    host_value: str


@dataclass(frozen=True, slots=True)
class Dependencies:
    """The answer to "what falls with what", hosts with most guests first."""

    hosts: tuple[HostLoad, ...]
    unlisted_hosts: tuple[str, ...]
    nested: tuple[str, ...]
    cycles: tuple[tuple[str, ...], ...]
    crossings: tuple[Crossing, ...]
    too_small_hosts: tuple[str, ...]
    guest_count: int


def dependencies(assets: Sequence[Asset]) -> Dependencies:
    """What runs on what among ``assets``.

    A host is found by its full name, or by the first part of it where only one server's name begins so.
    """
    servers = {asset.server.hostname: asset.server for asset in assets}
    short = _short_names(servers)
    host_of = {name: _resolved(server.host, servers, short) for name, server in servers.items() if server.host}
    guests: dict[str, list[Server]] = defaultdict(list)
    for name, host in host_of.items():
        guests[host].append(servers[name])
    hosts = sorted(
        (_load(host, servers.get(host), members) for host, members in guests.items()), key=lambda load: (-len(load.guests), load.host)
    )
    return Dependencies(
        hosts=tuple(hosts),
        unlisted_hosts=tuple(load.host for load in hosts if not load.listed),
        nested=tuple(sorted(host for host in guests if host in host_of)),
        cycles=_cycles(host_of),
        crossings=tuple(
            crossing for name, host in host_of.items() if host in servers for crossing in _crossings(servers[name], servers[host])
        ),
        too_small_hosts=tuple(
            load.host for load in hosts if load.states_memory_mib is not None and load.states_memory_mib < load.guest_memory_mib
        ),
        guest_count=len(host_of),
    )


def _short_names(servers: Mapping[str, Server]) -> dict[str, str]:
    by_short: dict[str, list[str]] = defaultdict(list)
    for name in servers:
        by_short[name.split(".")[0]].append(name)
    return {short: names[0] for short, names in by_short.items() if len(names) == 1}


def _resolved(host: str, servers: Mapping[str, Server], short: Mapping[str, str]) -> str:
    if host in servers:
        return host
    # Only a name without a domain may be short for another: a.example is not a.test.
    return short.get(host, host) if "." not in host else _undomained(host, servers)


def _undomained(host: str, servers: Mapping[str, Server]) -> str:
    first = host.split(".", maxsplit=1)[0]
    return first if first in servers else host


def _load(host: str, server: Server | None, guests: Sequence[Server]) -> HostLoad:
    return HostLoad(
        host,
        server is not None,
        tuple(sorted(guest.hostname for guest in guests)),
        sum(guest.cpu_count or 0 for guest in guests),
        sum(guest.memory_mib or 0 for guest in guests),
        sum(guest.disk_mib or 0 for guest in guests),
        server.memory_mib if server else None,
    )


def _crossings(guest: Server, host: Server) -> list[Crossing]:
    pairs = (
        ("environment", guest.environment, host.environment),
        ("datacenter", guest.datacenter, host.datacenter),
        (
            "architecture",
            guest.operating_system.architecture if guest.operating_system else None,
            host.operating_system.architecture if host.operating_system else None,
        ),
    )
    return [Crossing(guest.hostname, host.hostname, what, mine, its) for what, mine, its in pairs if mine and its and mine != its]


def _cycles(host_of: Mapping[str, str]) -> tuple[tuple[str, ...], ...]:
    """Each ring of servers that run on each other, once, beginning with the name that sorts first."""
    rings: set[tuple[str, ...]] = set()
    settled: set[str] = set()
    for start in sorted(host_of):
        path: list[str] = []
        at: str | None = start
        while at is not None and at not in settled and at not in path:
            path.append(at)
            at = host_of.get(at)
        if at is not None and at in path:
            ring = path[path.index(at) :]
            first = ring.index(min(ring))
            rings.add(tuple(ring[first:] + ring[:first]))
        settled.update(path)
    return tuple(sorted(rings))
