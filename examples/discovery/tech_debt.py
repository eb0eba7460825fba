"""Which operating systems nobody supports any more, or will not for long."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date

from examples.discovery.asset import Asset
from examples.discovery.lifecycle import SupportState, verdict
from examples.discovery.operating_system import OperatingSystem

_ORDER = {SupportState.PAST: 0, SupportState.ENDING_SOON: 1, SupportState.UNKNOWN: 2, SupportState.SUPPORTED: 3}


@dataclass(frozen=True, slots=True)
class ReleaseDebt:
    """One operating system release and the servers that run it. ``days_left`` is negative once support has ended."""

    name: str
    state: SupportState
    end: date | None
    days_left: int | None
    extension: str
    extension_end: date | None
    source: str
    servers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TechDebt:
    """Support of every operating system in the inventory as of one day, the worst first."""

    as_of: date
    releases: tuple[ReleaseDebt, ...]
    without_system: tuple[str, ...]

    def count(self, state: SupportState) -> int:
        """How many servers are in ``state``."""
        return sum(len(release.servers) for release in self.releases if release.state is state)


def tech_debt(assets: Sequence[Asset], as_of: date) -> TechDebt:
    """The support of ``assets``' operating systems on the day ``as_of``."""
    servers: dict[OperatingSystem | str, list[str]] = defaultdict(list)
    without: list[str] = []
    for asset in assets:
        server = asset.server
        if server.operating_system:
            plain = OperatingSystem(server.operating_system.product, server.operating_system.release)
            servers[plain].append(server.hostname)
        elif server.operating_system_text:
            servers[server.operating_system_text].append(server.hostname)
        else:
            without.append(server.hostname)
    releases = [_release(system, names, as_of) for system, names in servers.items()]
    releases.sort(key=lambda release: (_ORDER[release.state], release.end or date.max, release.name))
    return TechDebt(as_of, tuple(releases), tuple(without))


def _release(system: OperatingSystem | str, names: Sequence[str], as_of: date) -> ReleaseDebt:
    if isinstance(system, str):
        return ReleaseDebt(system, SupportState.UNKNOWN, None, None, "", None, "", tuple(names))
    found = verdict(system, as_of)
    if found.release is None:
        return ReleaseDebt(system.name, found.state, None, None, "", None, "", tuple(names))
    release = found.release
    return ReleaseDebt(
        system.name, found.state, release.end, found.days_left, release.extension, release.extension_end, release.source, tuple(names)
    )
