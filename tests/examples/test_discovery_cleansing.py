"""From cells to values: sizes with units, blanks, lists, hosts that stand twice."""

from __future__ import annotations

import pytest

from examples.discovery.asset import Server
from examples.discovery.operating_system import OperatingSystem, parse_operating_system
from examples.discovery.quantity import parse_number, parse_quantity, size_text
from tests.examples.inventories import CLOUD, CMDB, FEDORA, HYPERVISOR, cleansed


def named(servers: tuple[Server, ...], hostname: str) -> Server:
    return next(server for server in servers if server.hostname == hostname)


@pytest.mark.parametrize(
    ("text", "mebibytes"),
    [
        ("20000", 20000),
        ("120g", 122_880),
        ("2500g", 2_560_000),
        ("1.5t", 1_572_864),
        ("2 TB", 2_097_152),
        ("16GiB", 16_384),
        ("4,096", 4_096),
        ("2,097,152", 2_097_152),
        ("1,5 t", 1_572_864),
        ("1.048.576", 1_048_576),
        ("1 024 MB", 1_024),
        ("512 Mo", 512),
        ("1'024", 1_024),
        ("1,234.5 MB", 1_234),
        ("1048576k", 1_024),
        ("1073741824 bytes", 1_024),
    ],
)
def test_a_size_is_read_with_its_own_unit(text: str, mebibytes: int) -> None:
    found = parse_quantity(text)
    assert found is not None
    assert found.mebibytes("m") == mebibytes


@pytest.mark.parametrize("text", ["", "n/a", "eight", "12 parsecs", "g", "1.2.3", "-5", "1e6", "8GB or so"])
def test_what_is_no_size_is_none(text: str) -> None:
    assert parse_quantity(text) is None


@pytest.mark.parametrize("text", ["1,2,3", "", ".", ",5", "²"])
def test_what_is_no_number_is_none(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(("mebibytes", "text"), [(512, "512 MiB"), (4096, "4 GiB"), (20000, "19.5 GiB"), (2_560_000, "2.4 TiB")])
def test_a_size_is_written_for_people(mebibytes: int, text: str) -> None:
    assert size_text(mebibytes) == text


@pytest.mark.parametrize(
    ("text", "product", "release", "architecture"),
    [
        ("rhel/RHEL9-x86_64", "Red Hat Enterprise Linux", "9", "x86_64"),
        ("pub/fedora/linux/releases/42/Server/aarch64/os", "Fedora Linux", "42", "aarch64"),
        ("pub/fedora-secondary/releases/41/Server/s390x/os", "Fedora Linux", "41", "s390x"),
        ("Red Hat Enterprise Linux Server release 7.9 (Maipo)", "Red Hat Enterprise Linux", "7", None),
        ("CentOS Stream 9", "CentOS Stream", "9", None),
        ("centos-7-amd64", "CentOS Linux", "7", "x86_64"),
        ("Ubuntu 22.04.4 LTS", "Ubuntu", "22.04", None),
        ("Debian GNU/Linux 12 (bookworm)", "Debian", "12", None),
        ("debian bullseye arm64", "Debian", "11", "aarch64"),
        ("Microsoft Windows Server 2012 R2 (64-bit)", "Windows Server", "2012 R2", None),
        ("windows 2008r2", "Windows Server", "2008 R2", None),
        ("rocky 9.3", "Rocky Linux", "9", None),
    ],
)
def test_operating_systems_are_recognised_in_every_spelling(text: str, product: str, release: str, architecture: str | None) -> None:
    system = parse_operating_system(text)
    assert system is not None
    assert (system.product, system.release, system.architecture) == (product, release, architecture)


def test_a_version_in_a_column_of_its_own_is_joined() -> None:
    assert parse_operating_system("Debian GNU/Linux", "10") == OperatingSystem("Debian", "10")
    assert parse_operating_system("Linux", "5.4") is None


def test_fedoras_disks_with_units_are_converted_and_each_is_told_of() -> None:
    result = cleansed(FEDORA)
    sizes = {change.hostname: (change.before, change.after) for change in result.changes if change.field == "disk_mib"}
    assert len(result.servers) == 371
    assert len(sizes) == 20
    assert sizes["db-koji01.rdu3.fedoraproject.org"] == ("2500g", "2560000 MiB")
    assert named(result.servers, "koji01.stg.rdu3.fedoraproject.org").disk_mib == 1_572_864
    assert result.issues == ()


def test_fedoras_lists_are_split_and_a_range_of_ports_stays_a_range() -> None:
    servers = cleansed(FEDORA).servers
    assert named(servers, "aarch64-test01.fedorainfracloud.org").groups == ("aarch64_test", "cloud_aws", "maintainer_test")
    assert "6881-6999" in named(servers, "torrent01.fedoraproject.org").tcp_ports
    assert {server.host for server in servers if server.host == ""} == set()


def test_thousands_separators_are_removed_and_told_of() -> None:
    result = cleansed(HYPERVISOR)
    server = named(result.servers, "db01.example.net")
    assert (server.memory_mib, server.disk_mib, server.cpu_count) == (131_072, 2_097_152, 16)
    assert ("131,072", "131072 MiB") in {(change.before, change.after) for change in result.changes}


def test_a_unit_in_the_column_name_holds_unless_a_cell_has_its_own() -> None:
    servers = cleansed(CLOUD).servers
    assert named(servers, "shop-db").memory_mib == 65_536  # 64 in `RAM (GB)`
    assert named(servers, "shop-a2").memory_mib == 16_384  # 16GiB
    assert named(servers, "shop-a1").disk_mib == 2_097_152  # 2 TB


def test_without_any_unit_the_typical_size_decides_and_the_assumption_is_told() -> None:
    result = cleansed(CMDB)
    assert named(result.servers, "srv-alpha").memory_mib == 8_192
    assert named(result.servers, "srv-alpha").disk_mib == 204_800
    assert any("Arbeitsspeicher" in assumption and "GiB" in assumption for assumption in result.assumptions)


def test_a_host_that_stands_twice_is_one_server_and_the_first_row_holds() -> None:
    result = cleansed(CLOUD)
    server = named(result.servers, "shop-a1")
    assert (server.row, server.cpu_count, server.groups) == (2, 4, ("shop", "web"))
    told = [issue for issue in result.issues if issue.row == 5]
    assert len(told) == 1
    assert "cpu_count" in told[0].problem


def test_blanks_of_every_kind_are_none_and_what_cannot_be_read_is_an_issue() -> None:
    result = cleansed(CLOUD)
    assert named(result.servers, "shop-t1").cpu_count is None
    assert named(result.servers, "shop-t2").memory_mib is None
    told = {(issue.field, issue.value) for issue in result.issues}
    assert told >= {("memory_mib", "eight"), ("operating_system", "FreeBSD 14.1"), ("hostname", "")}


def test_columns_that_are_no_field_stay_with_the_server() -> None:
    assert named(cleansed(CLOUD).servers, "shop-db").extra == {"Cost Center": "4711"}
    assert named(cleansed(CMDB).servers, "srv-alpha").extra == {"Verantwortlich": "Frau Müller"}


@pytest.mark.parametrize(("text", "environment"), [("PROD", "production"), ("QA", "test"), ("dev", "development")])
def test_environments_have_one_word_each(text: str, environment: str) -> None:
    changes = cleansed(CLOUD).changes
    assert (text, environment) in {(change.before, change.after) for change in changes}
