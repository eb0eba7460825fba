"""The fields of an asset: how their columns are called elsewhere, and how their values look."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from examples.discovery.operating_system import parse_architecture, parse_operating_system
from examples.discovery.quantity import parse_number, parse_quantity

HOSTNAME = re.compile(r"(?=.{2,253}\.?$)[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?)*\.?", re.IGNORECASE)
ENVIRONMENTS = {
    **dict.fromkeys(("production", "prod", "prd", "live", "produktion"), "production"),
    **dict.fromkeys(("staging", "stage", "stg", "preprod", "pre-production", "preproduction", "uat"), "staging"),
    **dict.fromkeys(("development", "dev", "devel", "entwicklung"), "development"),
    **dict.fromkeys(("test", "testing", "tst", "qa", "integration"), "test"),
}
FLAGS = {
    **dict.fromkeys(("true", "yes", "y", "1", "on", "x", "ja", "enabled"), True),
    **dict.fromkeys(("false", "no", "n", "0", "off", "nein", "disabled"), False),
}
# Written where a value is missing.
BLANKS = frozenset({"", "-", "--", "n/a", "na", "none", "null", "nil", "unknown", "tbd", "?", "#n/a"})
PORTS = re.compile(r"(\d{1,5})(?:\s*[-:]\s*(\d{1,5}))?")
# Written where the version stands in a column of its own.
_BARE_SYSTEMS = frozenset(
    {
        "rhel",
        "red hat",
        "red hat enterprise linux",
        "fedora",
        "centos",
        "ubuntu",
        "debian",
        "windows",
        "linux",
        "rocky",
        "rocky linux",
        "almalinux",
    }
)
LIST_SEPARATORS = re.compile(r"[;,|\s]+")


class Kind(StrEnum):
    """How a field's values are read."""

    HOSTNAME = "host name"
    WORD = "word"
    ENVIRONMENT = "environment"
    COUNT = "count"
    SIZE = "size"
    SYSTEM = "operating system"
    VERSION = "version"
    ARCHITECTURE = "architecture"
    ADDRESS = "address"
    LIST = "list"
    PORTS = "ports"
    FLAG = "flag"
    TEXT = "text"


@dataclass(frozen=True, slots=True)
class Field:
    """One field of an asset.

    ``aliases`` are names that mean this field, ``weak_aliases`` names that may. ``telling`` says how much the values alone prove, 0 to 1:
    few things look like an address, many look like a number.
    """

    name: str
    label: str
    kind: Kind
    aliases: tuple[str, ...]
    weak_aliases: tuple[str, ...] = ()
    telling: float = 0.1


FIELDS: tuple[Field, ...] = (
    Field(
        "hostname",
        "host name",
        Kind.HOSTNAME,
        (
            "hostname",
            "fqdn",
            "server",
            "server name",
            "machine",
            "machine name",
            "vm",
            "vm name",
            "computer name",
            "system name",
            "dns name",
        ),
        ("host", "name", "node", "asset", "device", "instance"),
        0.55,
    ),
    Field(
        "host",
        "runs on",
        Kind.HOSTNAME,
        ("vmhost", "vm host", "hypervisor", "esx host", "esxi host", "kvm host", "parent host", "physical host", "runs on", "host server"),
        ("host", "parent", "virtualization host", "hosted on"),
        0.3,
    ),
    Field("environment", "environment", Kind.ENVIRONMENT, ("environment", "env"), ("stage", "tier", "landscape", "umgebung"), 0.75),
    Field(
        "datacenter",
        "datacenter",
        Kind.WORD,
        ("datacenter", "data center", "datacentre", "data centre", "dc", "site", "location", "region"),
        ("zone", "campus", "standort"),
        0.1,
    ),
    Field(
        "cpu_count",
        "CPUs",
        Kind.COUNT,
        ("cpus", "vcpus", "cpu", "vcpu", "cores", "cpu count", "cpu cores", "processors"),
        ("sockets", "kerne"),
        0.2,
    ),
    Field("memory_mib", "memory", Kind.SIZE, ("mem size", "memory", "ram", "mem", "memory size"), ("arbeitsspeicher",), 0.2),
    Field(
        "disk_mib",
        "disk",
        Kind.SIZE,
        ("disk", "disk size", "storage", "disk space", "provisioned", "total disk capacity", "hdd"),
        ("lvm size", "capacity", "volume size", "in use", "festplatte"),
        0.2,
    ),
    Field("volume_group", "volume group", Kind.WORD, ("volume group", "vg", "datastore"), ("storage pool", "pool")),
    Field(
        "operating_system",
        "operating system",
        Kind.SYSTEM,
        ("operating system", "os", "os name", "guest os", "distribution", "distro", "platform", "betriebssystem"),
        ("image", "release", "template"),
        0.75,
    ),
    Field(
        "os_version",
        "OS version",
        Kind.VERSION,
        ("os version", "os release", "operating system version", "distro version"),
        ("version",),
        0.1,
    ),
    Field("architecture", "architecture", Kind.ARCHITECTURE, ("architecture", "arch", "cpu architecture"), ("machine type",), 0.75),
    Field(
        "ip_address",
        "IP address",
        Kind.ADDRESS,
        ("ip address", "ip", "ipv4", "ipv6", "address", "primary ip", "primary ip address"),
        ("network",),
        0.75,
    ),
    Field("groups", "groups", Kind.LIST, ("groups", "tags", "roles", "labels", "role"), ("group", "class", "classes"), 0.1),
    Field("tcp_ports", "TCP ports", Kind.PORTS, ("tcp ports", "ports", "open ports", "listening ports"), ("port", "services"), 0.3),
    Field("databases", "databases", Kind.LIST, ("databases", "dbs", "schemas", "database"), ("db",), 0.05),
    Field("change_freeze", "change freeze", Kind.FLAG, ("change freeze", "frozen"), ("freeze", "change window")),
    Field("vpn", "VPN", Kind.FLAG, ("vpn", "on vpn"), ("tunnel",)),
    Field(
        "owner",
        "owner",
        Kind.TEXT,
        ("owner", "team", "contact", "responsible", "owned by", "business owner"),
        ("department", "admin"),
        0.05,
    ),
    Field(
        "application",
        "application",
        Kind.TEXT,
        ("application", "app", "service", "workload", "business service"),
        ("product", "project"),
        0.05,
    ),
    Field(
        "description",
        "description",
        Kind.TEXT,
        ("description", "comment", "notes", "purpose", "annotation"),
        ("info", "remarks", "bemerkung"),
        0.1,
    ),
)
FIELD_BY_NAME = {field.name: field for field in FIELDS}


def is_blank(text: str) -> bool:
    """Whether a cell says nothing."""
    return text.strip().lower() in BLANKS


def parse_ports(text: str) -> str | None:
    """The port, or the range of ports as `first-last`, that ``text`` states; None when it states none."""
    found = PORTS.fullmatch(text)
    if found is None:
        return None
    first, last = int(found[1]), int(found[2] or found[1])
    if not 0 < first <= last < 65536:
        return None
    return str(first) if first == last else f"{first}-{last}"


def fit(field: Field, values: Sequence[str]) -> float:
    """Which share of ``values`` (none of them blank) could be values of ``field``, 0 to 1."""
    share = sum(map(_READS[field.kind], values)) / len(values)
    distinct = len({value.lower() for value in values}) / len(values)
    if field.name == "hostname":  # names differ from row to row ...
        return share * distinct
    if field.kind is Kind.WORD and len(values) > 20:  # ... and places repeat
        return share * (1 - distinct / 2)
    return share


def _is_count(text: str) -> bool:
    number = parse_number(text)
    return number is not None and number == int(number) and 1 <= number <= 4096


def _is_size(text: str) -> bool:
    found = parse_quantity(text)
    return found is not None and (found.unit is not None or found.number >= 1)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(LIST_SEPARATORS.split(text.strip())[0].split("/")[0])
    except ValueError:
        return False
    return True


def _are_ports(text: str) -> bool:
    return all(parse_ports(part) is not None for part in LIST_SEPARATORS.split(text.strip()))


def _is_hostname(text: str) -> bool:
    return HOSTNAME.fullmatch(text) is not None and not _is_address(text) and re.search("[a-z]", text, re.IGNORECASE) is not None


_READS: dict[Kind, Callable[[str], bool]] = {
    Kind.HOSTNAME: _is_hostname,
    Kind.WORD: lambda text: len(text) <= 60 and parse_quantity(text) is None and text.lower() not in FLAGS,
    Kind.ENVIRONMENT: lambda text: text.lower() in ENVIRONMENTS,
    Kind.COUNT: _is_count,
    Kind.SIZE: _is_size,
    Kind.SYSTEM: lambda text: parse_operating_system(text) is not None or text.lower() in _BARE_SYSTEMS,
    Kind.VERSION: lambda text: re.fullmatch(r"v?\d+(\.\d+)*([ .-].*)?", text.lower()) is not None,
    Kind.ARCHITECTURE: lambda text: parse_architecture(text) is not None and len(text) <= 20,
    Kind.ADDRESS: _is_address,
    Kind.LIST: lambda text: re.search("[a-z]", text, re.IGNORECASE) is not None and text.lower() not in FLAGS,
    Kind.PORTS: _are_ports,
    Kind.FLAG: lambda text: text.lower() in FLAGS,
    Kind.TEXT: lambda text: re.search("[a-z]", text, re.IGNORECASE) is not None,
}
