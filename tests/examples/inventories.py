"""The inventories that the tests read."""

from __future__ import annotations

from pathlib import Path
from uuid import UUID

from examples.discovery.__main__ import SERVERS
from examples.discovery.asset import Asset, create_assets
from examples.discovery.cleansing import Cleansed, cleanse
from examples.discovery.inventory import Inventory, read_inventory
from examples.discovery.mapping import FieldMapping, map_columns

DATA = Path(__file__).with_name("data")
HYPERVISOR = DATA / "hypervisor_export.csv"  # byte order mark, title line, semicolons, thousands separators, quotes with line breaks
CLOUD = DATA / "cloud_servers.tsv"  # tabs, units in cells and column names, blank lines, a host twice in other case, blanks of all kinds
CMDB = DATA / "cmdb_latin1.csv"  # latin-1, German names, a repeated header, nested hosts, a ring, a host nobody lists, short rows
NAMES = DATA / "names_only.csv"  # two columns, Windows line ends
FEDORA = SERVERS
ENGAGEMENT = UUID("0197f000-0000-7000-8000-0000000000aa")


def mapped(path: Path, **corrections: str) -> tuple[Inventory, FieldMapping]:
    """The inventory and what its columns are."""
    inventory = read_inventory(path)
    return inventory, map_columns(inventory.columns, inventory.rows, corrections)


def cleansed(path: Path, **corrections: str) -> Cleansed:
    """The inventory's servers."""
    inventory, mapping = mapped(path, **corrections)
    return cleanse(inventory.columns, inventory.rows, mapping)


def assets(path: Path) -> tuple[Asset, ...]:
    """The inventory's assets."""
    return create_assets(cleansed(path).servers, ENGAGEMENT)
