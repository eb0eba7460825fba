"""From cells to values: every cell that is not what it seems is converted, and what was done to it is written down."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from examples.discovery.asset import Server
from examples.discovery.fields import BLANKS, ENVIRONMENTS, FLAGS, HOSTNAME, LIST_SEPARATORS, is_blank, parse_ports
from examples.discovery.mapping import FieldMapping
from examples.discovery.operating_system import OperatingSystem, parse_architecture, parse_operating_system
from examples.discovery.quantity import parse_number, parse_quantity

# Sizes without a unit, in a column whose name has none: a typical value below this is GiB, from it on MiB. As a rule no server has
# 1 TiB of memory, nor 4 GiB of disk.
GIB_BELOW = {"memory_mib": 1024.0, "disk_mib": 4096.0}
_UNIT_WORDS = {"kb": "k", "kib": "k", "mb": "m", "mib": "m", "gb": "g", "gib": "g", "tb": "t", "tib": "t", "byte": "b", "bytes": "b"}


@dataclass(frozen=True, slots=True)
class CellChange:
    """One cell that was converted: where, from what, to what, why."""

    row: int
    hostname: str
    field: str
    before: str
    after: str
    reason: str


@dataclass(frozen=True, slots=True)
class CellIssue:
    """One cell or row that could not be used as it is."""

    row: int
    hostname: str
    field: str
    value: str
    problem: str


@dataclass(frozen=True, slots=True)
class Cleansed:
    """The servers of an inventory, and everything that was done to get there."""

    servers: tuple[Server, ...]
    changes: tuple[CellChange, ...]
    issues: tuple[CellIssue, ...]
    assumptions: tuple[str, ...]


class Cleansing:
    """Cleanses an inventory row by row; the units of its sizes are settled before the first."""

    def __init__(self, columns: Sequence[str], rows: Sequence[Sequence[str]], mapping: FieldMapping) -> None:
        self._positions = {match.field: at for at, match in enumerate(mapping.matches) if match.field}
        self._extras = {match.column: at for at, match in enumerate(mapping.matches) if not match.field}
        self._servers: dict[str, Server] = {}
        self._changes: list[CellChange] = []
        self._issues: list[CellIssue] = []
        self._assumptions: list[str] = []
        self._units = {name: self._unit(name, columns[at], rows, at) for name, at in self._positions.items() if name in GIB_BELOW}

    def add(self, row: int, cells: Sequence[str]) -> None:
        """Takes one row in; ``row`` is its number in the file."""
        texts = {name: "" if is_blank(cells[at]) else cells[at].strip() for name, at in self._positions.items()}
        hostname = texts.get("hostname", "").lower().rstrip(".")
        if not HOSTNAME.fullmatch(hostname):
            problem = "the row has no host name and was left out" if not hostname else "not a host name; the row was left out"
            self._issues.append(CellIssue(row, hostname, "hostname", texts.get("hostname", ""), problem))
            return
        if hostname != texts["hostname"]:
            self._changes.append(
                CellChange(row, hostname, "hostname", texts["hostname"], hostname, "host names are compared in lower case")
            )
        reading = _Reading(row, hostname, self._units, self._changes, self._issues)
        extra = {column: cells[at] for column, at in self._extras.items() if cells[at]}
        server = _server(reading, texts, extra)
        if (first := self._servers.get(hostname)) is not None:
            server = self._merged(first, server)
        self._servers[hostname] = server

    def result(self) -> Cleansed:
        """What has been taken in so far, in the order of the file."""
        return Cleansed(tuple(self._servers.values()), tuple(self._changes), tuple(self._issues), tuple(self._assumptions))

    def _unit(self, name: str, column: str, rows: Sequence[Sequence[str]], at: int) -> str:
        """The unit letter for numbers of this column that have none themselves."""
        words = "".join(char if char.isalnum() else " " for char in column.lower()).split()
        if stated := next((_UNIT_WORDS[word] for word in words if word in _UNIT_WORDS), None):
            return stated
        bare = [found.number for row in rows if (found := parse_quantity(row[at])) is not None and found.unit is None]
        if not bare:
            return "m"
        typical = statistics.median(bare)
        unit = "g" if typical < GIB_BELOW[name] else "m"
        spelled = "GiB" if unit == "g" else "MiB"
        self._assumptions.append(f"{column}: numbers without a unit are taken as {spelled}, because the typical one is {typical:g}")
        return unit

    def _merged(self, first: Server, second: Server) -> Server:
        """One server from two rows: the first row holds, the second fills its blanks."""
        filled: dict[str, object] = {}
        conflicts: list[str] = []
        for name in Server.__dataclass_fields__:
            old, new = getattr(first, name), getattr(second, name)
            if name in {"row", "extra"} or new in (None, (), old):
                continue
            if old in (None, ()):
                filled[name] = new
            else:
                conflicts.append(name)
        told = f"also in row {first.row}, which holds"
        if filled:
            told += f"; this row adds {', '.join(filled)}"
        if conflicts:
            told += f" where they differ: {', '.join(conflicts)}"
        self._issues.append(CellIssue(second.row, second.hostname, "hostname", second.hostname, told))
        return replace(first, **filled, extra={**second.extra, **first.extra})  # type: ignore[arg-type]  # the names are the fields' own


def cleanse(columns: Sequence[str], rows: Sequence[Sequence[str]], mapping: FieldMapping) -> Cleansed:
    """The servers of a whole inventory."""
    cleansing = Cleansing(columns, rows, mapping)
    for number, cells in enumerate(rows, start=2):
        cleansing.add(number, cells)
    return cleansing.result()


@dataclass(frozen=True, slots=True)
class _Reading:
    row: int
    hostname: str
    units: Mapping[str, str]
    changes: list[CellChange]
    issues: list[CellIssue]

    def changed(self, field: str, before: str, after: str, reason: str) -> None:
        self.changes.append(CellChange(self.row, self.hostname, field, before[:120], after, reason))

    def unreadable(self, field: str, value: str, problem: str) -> None:
        self.issues.append(CellIssue(self.row, self.hostname, field, value[:120], problem))


def _server(reading: _Reading, texts: Mapping[str, str], extra: dict[str, str]) -> Server:
    def text(name: str) -> str | None:
        return texts.get(name) or None

    system = _system(reading, texts)
    return Server(
        hostname=reading.hostname,
        row=reading.row,
        environment=_environment(reading, texts.get("environment", "")),
        datacenter=_lowered(text("datacenter")),
        host=_host(reading, texts.get("host", "")),
        cpu_count=_count(reading, "cpu_count", texts.get("cpu_count", "")),
        memory_mib=_size(reading, "memory_mib", texts.get("memory_mib", "")),
        disk_mib=_size(reading, "disk_mib", texts.get("disk_mib", "")),
        volume_group=text("volume_group"),
        operating_system=system,
        operating_system_text=None if system else " ".join(filter(None, (texts.get("operating_system"), texts.get("os_version")))) or None,
        ip_address=text("ip_address"),
        owner=text("owner"),
        application=text("application"),
        description=text("description"),
        groups=_parts(texts.get("groups", "")),
        tcp_ports=_ports(reading, texts.get("tcp_ports", "")),
        databases=_parts(texts.get("databases", "")),
        change_freeze=_flag(reading, "change_freeze", texts.get("change_freeze", "")),
        vpn=_flag(reading, "vpn", texts.get("vpn", "")),
        extra=extra,
    )


def _lowered(text: str | None) -> str | None:
    return text.lower() if text else None


def _environment(reading: _Reading, text: str) -> str | None:
    if not text:
        return None
    known = ENVIRONMENTS.get(text.lower())
    if known and known != text:
        reading.changed("environment", text, known, "one word for each environment")
    return known or text.lower()


def _host(reading: _Reading, text: str) -> str | None:
    if not text:
        return None
    host = text.lower().rstrip(".")
    if not HOSTNAME.fullmatch(host):
        reading.unreadable("host", text, "not a host name")
        return None
    return host


def _count(reading: _Reading, name: str, text: str) -> int | None:
    if not text:
        return None
    number = parse_number(text)
    if number is None or number != int(number) or number < 1:
        reading.unreadable(name, text, "not a whole number above 0")
        return None
    if text != str(int(number)):
        reading.changed(name, text, str(int(number)), "separators removed")
    return int(number)


def _size(reading: _Reading, name: str, text: str) -> int | None:
    if not text:
        return None
    found = parse_quantity(text)
    if found is None or found.number == 0:
        reading.unreadable(name, text, "not a size; a size is a number with or without a unit, like 4096, 120g, 2 TB")
        return None
    unit = reading.units[name]
    size = found.mebibytes(unit)
    if found.unit is not None and found.unit != unit:
        reading.changed(name, text, f"{size} MiB", f"the value has a unit of its own, {found.unit}, which is not the column's")
    elif text != str(size):
        reading.changed(name, text, f"{size} MiB", "written as MiB")
    return size


def _system(reading: _Reading, texts: Mapping[str, str]) -> OperatingSystem | None:
    text, version = texts.get("operating_system", ""), texts.get("os_version", "")
    if not text and not version:
        return None
    system = parse_operating_system(text, version)
    if system is None:
        reading.unreadable("operating_system", f"{text} {version}".strip(), "not an operating system that the table knows")
        return None
    architecture = parse_architecture(texts.get("architecture", "")) or system.architecture
    return replace(system, architecture=architecture)


def _parts(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part for part in LIST_SEPARATORS.split(text) if part.lower() not in BLANKS))


def _ports(reading: _Reading, text: str) -> tuple[str, ...]:
    ports: list[str] = []
    for part in _parts(text):
        if (port := parse_ports(part)) is None:
            reading.unreadable("tcp_ports", part, "neither a port, 1 to 65535, nor a range of ports")
        else:
            ports.append(port)
    return tuple(ports)


def _flag(reading: _Reading, name: str, text: str) -> bool | None:
    if not text:
        return None
    if (flag := FLAGS.get(text.lower())) is None:
        reading.unreadable(name, text, "neither yes nor no")
    return flag
