"""What the inventories turn out to hold."""

from __future__ import annotations

from datetime import date

import orjson
import pytest

from examples.discovery.asset import create_assets
from examples.discovery.dependencies import dependencies
from examples.discovery.document import DiscoveryDocument, DocumentError, chunks, list_patch, parse_document, patch_json
from examples.discovery.findings import key_findings, some
from examples.discovery.lifecycle import RELEASES, SOURCES, SupportState, verdict
from examples.discovery.operating_system import OperatingSystem
from examples.discovery.tech_debt import tech_debt
from examples.discovery.totals import totals
from tests.examples.inventories import CLOUD, CMDB, ENGAGEMENT, FEDORA, HYPERVISOR, NAMES, assets, cleansed

TODAY = date(2026, 11, 22)
SNAPSHOT = date(2025, 7, 17)


def test_an_asset_keeps_its_id_in_every_discovery_of_its_engagement() -> None:
    first, again = assets(FEDORA), create_assets(tuple(reversed(cleansed(FEDORA).servers)), ENGAGEMENT)
    assert {asset.server.hostname: asset.asset_id for asset in first} == {asset.server.hostname: asset.asset_id for asset in again}
    assert len({asset.asset_id for asset in first}) == 371
    other = create_assets(cleansed(FEDORA).servers, first[0].asset_id)
    assert {asset.asset_id for asset in first}.isdisjoint(asset.asset_id for asset in other)


def test_fedoras_totals_by_datacenter_system_and_environment() -> None:
    found = totals(assets(FEDORA))
    assert (found.all.servers, found.all.cpu_count, found.all.memory_mib) == (371, 2208, 8_385_532)
    assert [(group.name, group.servers) for group in found.by_datacenter[:3]] == [("rdu3", 293), ("aws", 35), ("rdu-cc", 22)]
    assert [(group.name, group.servers) for group in found.by_environment] == [("production", 310), ("staging", 61)]
    assert found.by_operating_system[0].name == "Red Hat Enterprise Linux 9"
    assert sum(group.servers for group in found.by_operating_system) == 371


def test_a_capacity_that_nearly_all_machines_state_is_called_a_default() -> None:
    repeated = totals(assets(FEDORA)).repeated
    assert repeated is not None
    assert (repeated.machines, repeated.of_machines, repeated.cpu_count, repeated.memory_mib) == (113, 114, 2, 4096)
    assert totals(assets(CLOUD)).repeated is None


def test_fedoras_hosts_that_nobody_lists_are_found() -> None:
    found = dependencies(assets(FEDORA))
    assert found.unlisted_hosts == ("virthost-os01.fedorainfracloud.org", "virthost-os03.fedorainfracloud.org")
    assert (found.guest_count, len(found.hosts), found.cycles, found.nested) == (257, 37, (), ())
    assert (found.hosts[0].host, len(found.hosts[0].guests)) == ("bvmhost-p10-01.rdu3.fedoraproject.org", 32)


def test_a_guest_that_disagrees_with_its_host_is_found() -> None:
    crossings = dependencies(assets(FEDORA)).crossings
    assert [crossing.guest for crossing in crossings if crossing.what == "environment"] == ["pagure-stg01.fedoraproject.org"]
    assert [crossing.guest_value for crossing in crossings if crossing.what == "datacenter"] == ["staging"]


def test_rings_and_hosts_on_hosts_are_found() -> None:
    found = dependencies(assets(CMDB))
    assert found.cycles == (("ring-a", "ring-b"),)
    assert set(found.nested) == {"virt-1", "ring-a", "ring-b"}
    assert found.unlisted_hosts == ("nirgends",)


def test_a_server_that_runs_on_itself_is_a_ring_of_one() -> None:
    server = cleansed(NAMES).servers[0]
    selfish = type(server)(hostname=server.hostname, row=2, host=server.hostname)
    assert dependencies(create_assets([selfish], ENGAGEMENT)).cycles == ((server.hostname,),)


@pytest.mark.parametrize(("named", "listed"), [("esx01", "esx01.example.net"), ("esx01.example.net", "esx01")])
def test_a_host_is_found_by_its_short_name(named: str, listed: str) -> None:
    server = type(cleansed(NAMES).servers[0])
    found = dependencies(create_assets([server("vm1.example.net", 2, host=named), server(listed, 3)], ENGAGEMENT))
    assert (found.unlisted_hosts, found.hosts[0].host) == ((), listed)


def test_fedoras_systems_past_their_end_of_life_depend_on_the_day() -> None:
    found = assets(FEDORA)
    today, snapshot = tech_debt(found, TODAY), tech_debt(found, SNAPSHOT)
    assert {release.name: len(release.servers) for release in today.releases if release.state is SupportState.PAST} == {
        "Fedora Linux 29": 1,
        "Fedora Linux 31": 1,
        "Fedora Linux 41": 18,
        "Fedora Linux 42": 160,
    }
    assert {release.name for release in snapshot.releases if release.state is SupportState.PAST} == {"Fedora Linux 29", "Fedora Linux 31"}
    assert snapshot.count(SupportState.ENDING_SOON) == 178


@pytest.mark.parametrize(
    ("day", "state"),
    [(date(2025, 12, 15), SupportState.ENDING_SOON), (date(2025, 12, 16), SupportState.PAST), (date(2024, 12, 1), SupportState.SUPPORTED)],
)
def test_a_release_is_supported_to_the_end_of_its_last_day(day: date, state: SupportState) -> None:
    assert verdict(OperatingSystem("Fedora Linux", "41"), day).state is state


def test_a_release_that_the_table_does_not_have_is_unknown() -> None:
    assert verdict(OperatingSystem("Fedora Linux", "99"), TODAY).state is SupportState.UNKNOWN
    assert {release.name for release in tech_debt(assets(CMDB), TODAY).releases if release.state is SupportState.UNKNOWN} == {
        "Solaris 10",
        "SUSE Linux Enterprise 15",
    }


def test_every_date_of_the_table_has_a_source_and_stands_once() -> None:
    assert len({(release.product, release.release) for release in RELEASES}) == len(RELEASES)
    assert all(release.source == SOURCES[release.product] and release.source.startswith("https://") for release in RELEASES)
    assert all(release.extension_end > release.end for release in RELEASES if release.extension_end)
    fedora = {release.release for release in RELEASES if release.product == "Fedora Linux"}
    assert fedora >= {str(number) for number in range(28, 44)}


@pytest.mark.parametrize("path", [FEDORA, HYPERVISOR, CLOUD, CMDB, NAMES], ids=lambda path: path.name)
def test_what_is_stored_is_what_is_read_back(path: object) -> None:
    assert hasattr(path, "name")
    found = assets(path)  # type: ignore[arg-type]
    patch = {
        "assets": {key: list_patch(part) for key, part in chunks(found).items()},
        "inventory": totals(found),
        "dependencies": dependencies(found),
        "tech_debt": tech_debt(found, TODAY),
    }
    stored = parse_document(_without_nulls(patch_json(patch)))
    assert tuple(stored.all_assets()) == found
    assert (stored.inventory, stored.dependencies, stored.tech_debt) == (patch["inventory"], patch["dependencies"], patch["tech_debt"])
    assert key_findings(stored)


def _without_nulls(text: str) -> str:
    """What a merge patch leaves of itself: members that are null are gone, lists are as they were (RFC 7396)."""

    def merged(value: object) -> object:
        return {name: merged(member) for name, member in value.items() if member is not None} if isinstance(value, dict) else value

    return orjson.dumps(merged(orjson.loads(text))).decode()


def test_a_document_of_somebody_else_is_refused_with_the_place() -> None:
    with pytest.raises(DocumentError, match="rows"):
        parse_document('{"rows": 3}')


def test_an_empty_document_has_no_findings() -> None:
    assert key_findings(DiscoveryDocument()) == ()


def test_chunks_keep_the_order_and_are_few() -> None:
    parts = chunks(list(range(5000)))
    assert [number for key in sorted(parts) for number in parts[key]] == list(range(5000))
    assert len(parts) <= 40


def test_a_long_list_of_names_is_counted() -> None:
    assert some(["a", "b"]) == "a, b"
    assert some(["a", "b", "c", "d", "e"]) == "a, b, c and 2 more"
