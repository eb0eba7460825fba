"""Which column is which field, in inventories that name and order their columns differently."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples.discovery.inventory import InventoryError
from examples.discovery.mapping import LIKELY, SURE, map_columns, parse_correction
from tests.examples.inventories import CLOUD, CMDB, FEDORA, HYPERVISOR, NAMES, mapped

EXPECTED = {
    FEDORA: {
        "hostname": "hostname",
        "environment": "environment",
        "datacenter": "datacenter",
        "vmhost": "host",
        "num_cpus": "cpu_count",
        "mem_size_mb": "memory_mib",
        "lvm_size_mb": "disk_mib",
        "volume_group": "volume_group",
        "os_repo": "operating_system",
        "groups": "groups",
        "tcp_ports": "tcp_ports",
        "databases": "databases",
        "freezes": "change_freeze",
        "vpn": "vpn",
        "description": "description",
    },
    HYPERVISOR: {
        "VM": "hostname",
        "Powerstate": None,
        "Host": "host",
        "Datacenter": "datacenter",
        "CPUs": "cpu_count",
        "Memory": "memory_mib",
        "Provisioned MiB": "disk_mib",
        "OS according to the configuration file": "operating_system",
        "Annotation": "description",
        "Primary IP Address": "ip_address",
    },
    CLOUD: {
        "Notes": "description",
        "Server Name": "hostname",
        "Env": "environment",
        "Region": "datacenter",
        "vCPU": "cpu_count",
        "RAM (GB)": "memory_mib",
        "Disk": "disk_mib",
        "Operating System": "operating_system",
        "OS Version": "os_version",
        "Tags": "groups",
        "Cost Center": None,
    },
    CMDB: {
        "Bemerkung": "description",
        "Hostname": "hostname",
        "Parent Host": "host",
        "Umgebung": "environment",
        "Standort": "datacenter",
        "Kerne": "cpu_count",
        "Arbeitsspeicher": "memory_mib",
        "Festplatte": "disk_mib",
        "Betriebssystem": "operating_system",
        "Verantwortlich": None,
    },
    NAMES: {"FQDN": "hostname", "Distro": "operating_system"},
}


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.name)
def test_every_column_is_found_or_kept(path: Path) -> None:
    _, mapping = mapped(path)
    assert {match.column: match.field for match in mapping.matches} == EXPECTED[path]


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.name)
def test_every_match_states_a_confidence_above_the_threshold(path: Path) -> None:
    _, mapping = mapped(path)
    assert all(LIKELY <= match.confidence <= 1 for match in mapping.matches if match.field)
    assert mapping.doubtful == tuple(match for match in mapping.matches if match.field and match.confidence < SURE)


def test_a_name_that_only_may_mean_the_field_is_to_be_looked_at() -> None:
    _, mapping = mapped(FEDORA)
    assert {match.column for match in mapping.doubtful} == {"lvm_size_mb", "freezes"}


def test_values_that_contradict_the_name_count_against_it() -> None:
    rows = [("a.example", "green"), ("b.example", "blue"), ("c.example", "red")]
    mapping = map_columns(("hostname", "memory"), rows, {})
    assert mapping.column_of("memory_mib") is None


def test_values_alone_can_tell_what_a_column_is() -> None:
    rows = [(f"h{n}.example", f"198.51.100.{n}", "Debian 12") for n in range(1, 9)]
    mapping = map_columns(("a", "b", "c"), rows, {})
    assert [match.field for match in mapping.matches] == ["hostname", "ip_address", "operating_system"]
    assert all(match.confidence < SURE for match in mapping.matches)


def test_of_two_columns_like_host_the_one_whose_values_differ_is_the_host_name() -> None:
    rows = [(f"esx{n % 2}.example", f"vm{n}.example") for n in range(12)]
    mapping = map_columns(("Host", "Name"), rows, {})
    assert (mapping.column_of("hostname"), mapping.column_of("host")) == ("Name", "Host")


def test_a_column_without_values_is_matched_by_its_name_with_less_confidence() -> None:
    mapping = map_columns(("hostname", "owner"), [("a.example", ""), ("b.example", "n/a")], {})
    owner = mapping.matches[1]
    assert (owner.field, owner.fit, owner.confidence) == ("owner", None, 0.85)


def test_a_correction_comes_before_what_was_found() -> None:
    _, mapping = mapped(FEDORA, lvm_size_mb="-", description="application")
    by_column = {match.column: match for match in mapping.matches}
    assert by_column["lvm_size_mb"].field is None
    assert (by_column["description"].field, by_column["description"].given) == ("application", True)


@pytest.mark.parametrize(
    ("corrections", "sentence"),
    [
        ({"nothing": "host"}, "has no column 'nothing'"),
        ({"vmhost": "nothing"}, "'nothing' is not a field"),
        ({"vmhost": "host", "hostname": "host"}, "the field host was given to two columns"),
    ],
)
def test_a_correction_that_cannot_be_is_refused_with_a_sentence(corrections: dict[str, str], sentence: str) -> None:
    with pytest.raises(InventoryError, match=sentence):
        mapped(FEDORA, **corrections)


@pytest.mark.parametrize("text", ["vmhost", "=host", "vmhost=", ""])
def test_a_correction_is_a_column_and_a_field(text: str) -> None:
    with pytest.raises(InventoryError, match="is not column=field"):
        parse_correction(text)


def test_a_column_name_may_hold_the_equals_sign() -> None:
    assert parse_correction("a=b=host") == ("a=b", "host")
