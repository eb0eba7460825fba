"""What an inventory adds up to, by place, system and environment."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from examples.discovery.asset import Asset

# This share of the machines that run on no other, with exactly the same CPUs, memory and disk, is a default somebody never changed.
DEFAULT_SHARE = 0.8
DEFAULT_LEAST = 10
NOT_STATED = "(not stated)"


@dataclass(frozen=True, slots=True)
class Capacity:
    """How many servers, and the sums of what they state."""

    name: str
    servers: int
    cpu_count: int
    memory_mib: int
    disk_mib: int


@dataclass(frozen=True, slots=True)
class RepeatedCapacity:
    """A capacity that so many machines state alike that it is no measurement."""

    machines: int
    of_machines: int
    # A merge patch cannot hold a null, so what is not stated is left out and must have a default.
    cpu_count: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None


@dataclass(frozen=True, slots=True)
class Totals:
    """An inventory's sums. Virtual machines apart: what a host states holds what its guests state already."""

    all: Capacity
    by_kind: tuple[Capacity, ...]
    by_datacenter: tuple[Capacity, ...]
    by_operating_system: tuple[Capacity, ...]
    by_environment: tuple[Capacity, ...]
    repeated: RepeatedCapacity | None = None


def totals(assets: Sequence[Asset]) -> Totals:
    """The sums over ``assets``; groups with most servers first."""
    return Totals(
        all=_capacity("all", assets),
        by_kind=_groups(assets, lambda asset: asset.kind),
        by_datacenter=_groups(assets, lambda asset: asset.server.datacenter),
        by_operating_system=_groups(assets, _system_name),
        by_environment=_groups(assets, lambda asset: asset.server.environment),
        repeated=_repeated(assets),
    )


def _system_name(asset: Asset) -> str | None:
    system = asset.server.operating_system
    return system.name if system else asset.server.operating_system_text


def _capacity(name: str, assets: Sequence[Asset]) -> Capacity:
    return Capacity(
        name,
        len(assets),
        sum(asset.server.cpu_count or 0 for asset in assets),
        sum(asset.server.memory_mib or 0 for asset in assets),
        sum(asset.server.disk_mib or 0 for asset in assets),
    )


def _groups(assets: Sequence[Asset], key: Callable[[Asset], str | None]) -> tuple[Capacity, ...]:
    groups: dict[str, list[Asset]] = defaultdict(list)
    for asset in assets:
        groups[key(asset) or NOT_STATED].append(asset)
    return tuple(sorted((_capacity(name, members) for name, members in groups.items()), key=lambda group: (-group.servers, group.name)))


def _repeated(assets: Sequence[Asset]) -> RepeatedCapacity | None:
    stated = [asset.server for asset in assets if not asset.server.host]
    triples = Counter((server.cpu_count, server.memory_mib, server.disk_mib) for server in stated)
    triples.pop((None, None, None), None)
    if not triples:
        return None
    triple, machines = triples.most_common(1)[0]
    if machines < DEFAULT_LEAST or machines < DEFAULT_SHARE * len(stated):
        return None
    return RepeatedCapacity(machines, len(stated), *triple)
