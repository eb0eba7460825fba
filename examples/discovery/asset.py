"""A server as it is known after cleansing, and the asset that it becomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from uuid import UUID, uuid5

from examples.discovery.operating_system import OperatingSystem


@dataclass(frozen=True, slots=True)
class Server:
    """One server. None is what the inventory does not say.

    ``row`` is its number among the file's rows, the header being 1; ``tcp_ports`` are numbers or ranges like `6881-6999`;
    ``operating_system_text`` is set only where no system was recognised in it; ``extra`` holds the columns that are no field.
    """

    hostname: str
    row: int
    environment: str | None = None
    datacenter: str | None = None
    host: str | None = None
    cpu_count: int | None = None
    memory_mib: int | None = None
    disk_mib: int | None = None
    volume_group: str | None = None
    operating_system: OperatingSystem | None = None
    operating_system_text: str | None = None
    ip_address: str | None = None
    owner: str | None = None
    application: str | None = None
    description: str | None = None
    groups: tuple[str, ...] = ()
    tcp_ports: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    change_freeze: bool | None = None
    vpn: bool | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Asset:
    """A server under an id that stays the same in every discovery of the same engagement."""

    asset_id: UUID
    kind: str
    server: Server


def create_assets(servers: Sequence[Server], engagement_id: UUID) -> tuple[Asset, ...]:
    """The assets of ``servers``, in their order.

    The id is a UUIDv5 of the host name in the engagement's name space. The kind is `virtual machine` (it runs on another), `host`
    (others run on it) or `machine` (neither, as far as the inventory says).
    """
    hosts = {server.host for server in servers if server.host}
    return tuple(Asset(uuid5(engagement_id, server.hostname), _kind(server, hosts), server) for server in servers)


def _kind(server: Server, hosts: set[str]) -> str:
    if server.host:
        return "virtual machine"
    return "host" if hosts & {server.hostname, server.hostname.split(".")[0]} else "machine"
