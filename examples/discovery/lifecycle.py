"""How long operating systems are supported, with the source of each date, and what that means on a given day.

The date that counts is the end of the vendor's or project's ordinary security support. Longer support that must be bought, or that
volunteers give for a part of the packages, stands beside it and does not count as support. Looked up on 2026-11-22; dates in the
future are the schedule of that day.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from types import MappingProxyType

from examples.discovery.operating_system import OperatingSystem

# Support that ends within this many days is worth a line in the report.
ENDING_SOON_DAYS = 365


class SupportState(StrEnum):
    """Where a release stands in its life on a given day."""

    SUPPORTED = "supported"
    ENDING_SOON = "ending soon"
    PAST = "past end of life"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Release:
    """One release of a product, and when its support ends."""

    product: str
    release: str
    end: date
    source: str
    extension: str = ""
    extension_end: date | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the table says of a system on a day."""

    state: SupportState
    release: Release | None
    days_left: int | None


# Each product's own page is the authority; where it is not one page with dates (Fedora announces them release by release), the dates
# were read from the community's collection at endoflife.date and compared with the product's page or announcement.
SOURCES: Mapping[str, str] = MappingProxyType(
    {
        "Red Hat Enterprise Linux": "https://access.redhat.com/support/policy/updates/errata",
        "CentOS Linux": "https://www.centos.org/centos-linux-eol/",
        "CentOS Stream": "https://www.centos.org/cl-vs-cs/",
        "Fedora Linux": "https://docs.fedoraproject.org/en-US/releases/eol/",
        "Ubuntu": "https://ubuntu.com/about/release-cycle",
        "Debian": "https://wiki.debian.org/DebianReleases",
        "Rocky Linux": "https://wiki.rockylinux.org/rocky/version/",
        "AlmaLinux": "https://wiki.almalinux.org/release-notes/",
        "Windows Server": "https://learn.microsoft.com/lifecycle/products/?terms=Windows%20Server",
    }
)


def _releases(product: str, *rows: tuple[str, str] | tuple[str, str, str], extension: str = "") -> tuple[Release, ...]:
    return tuple(
        Release(
            product,
            row[0],
            date.fromisoformat(row[1]),
            SOURCES[product],
            extension if len(row) == 3 else "",
            date.fromisoformat(row[2]) if len(row) == 3 else None,
        )
        for row in rows
    )


RELEASES: tuple[Release, ...] = (
    # End of the Maintenance Support phase; the Extended Life Cycle Support add-on is bought.
    *_releases(
        "Red Hat Enterprise Linux",
        ("6", "2020-11-30", "2024-06-30"),
        ("7", "2024-06-30", "2028-06-30"),
        ("8", "2029-05-31", "2032-05-31"),
        ("9", "2032-05-31", "2035-05-31"),
        ("10", "2035-05-31"),
        extension="Extended Life Cycle Support",
    ),
    # CentOS Linux 8 was ended eight years early.
    *_releases("CentOS Linux", ("6", "2020-11-30"), ("7", "2024-06-30"), ("8", "2021-12-31")),
    # A Stream ends with the full support of its RHEL; 10 is the plan of its announcement.
    *_releases("CentOS Stream", ("8", "2024-05-31"), ("9", "2027-05-31"), ("10", "2030-01-01")),
    # Four weeks after the second next release. 43 and 44 are the schedule's.
    *_releases(
        "Fedora Linux",
        ("28", "2019-05-28"),
        ("29", "2019-11-26"),
        ("30", "2020-05-26"),
        ("31", "2020-11-24"),
        ("32", "2021-05-25"),
        ("33", "2021-11-30"),
        ("34", "2022-06-07"),
        ("35", "2022-12-13"),
        ("36", "2023-05-16"),
        ("37", "2023-12-05"),
        ("38", "2024-05-21"),
        ("39", "2024-11-26"),
        ("40", "2025-05-13"),
        ("41", "2025-12-15"),
        ("42", "2026-05-27"),
        ("43", "2026-12-09"),
        ("44", "2027-06-02"),
    ),
    # End of standard security maintenance; Expanded Security Maintenance comes with a Pro subscription.
    *_releases(
        "Ubuntu",
        ("14.04", "2019-04-02", "2024-04-02"),
        ("16.04", "2021-04-02", "2026-04-02"),
        ("18.04", "2023-05-31", "2028-04-01"),
        ("20.04", "2025-05-31", "2030-04-02"),
        ("22.04", "2027-04-01", "2032-04-09"),
        ("23.10", "2024-07-12"),
        ("24.04", "2029-05-31", "2036-05-31"),
        ("24.10", "2025-07-10"),
        ("25.04", "2026-01-17"),
        ("25.10", "2026-07-01"),
        ("26.04", "2031-04-30", "2036-04-30"),
        extension="Expanded Security Maintenance",
    ),
    # End of the security team's support; the LTS team goes on with fewer packages and architectures.
    *_releases(
        "Debian",
        ("8", "2018-06-17", "2020-06-30"),
        ("9", "2020-07-18", "2022-07-01"),
        ("10", "2022-09-10", "2024-06-30"),
        ("11", "2024-08-14", "2026-08-31"),
        ("12", "2026-06-10", "2028-06-30"),
        ("13", "2028-08-09", "2030-06-30"),
        extension="Debian LTS",
    ),
    *_releases("Rocky Linux", ("8", "2029-05-31"), ("9", "2032-05-31")),
    *_releases("AlmaLinux", ("8", "2029-03-01"), ("9", "2032-05-31"), ("10", "2035-05-31")),
    # End of extended support; Extended Security Updates are bought.
    *_releases(
        "Windows Server",
        ("2008 R2", "2020-01-14", "2023-01-10"),
        ("2012", "2023-10-10", "2026-10-13"),
        ("2012 R2", "2023-10-10", "2026-10-13"),
        ("2016", "2027-01-12", "2030-01-12"),
        ("2019", "2029-01-09"),
        ("2022", "2031-10-14"),
        ("2025", "2034-10-10"),
        extension="Extended Security Updates",
    ),
)
_BY_NAME = {(entry.product, entry.release): entry for entry in RELEASES}


def verdict(system: OperatingSystem, as_of: date) -> Verdict:
    """What the table says of ``system`` on the day ``as_of``; a release is supported to the end of its last day."""
    found = _BY_NAME.get((system.product, system.release))
    if found is None:
        return Verdict(SupportState.UNKNOWN, None, None)
    days_left = (found.end - as_of).days
    if days_left < 0:
        return Verdict(SupportState.PAST, found, days_left)
    return Verdict(SupportState.ENDING_SOON if days_left <= ENDING_SOON_DAYS else SupportState.SUPPORTED, found, days_left)
