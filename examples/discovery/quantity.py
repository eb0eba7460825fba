"""Numbers and sizes as people write them: `4,096`, `120g`, `2 TB`, `16GiB`, `1,5 t`."""

from __future__ import annotations

import re
from dataclasses import dataclass

# In MiB. Binary factors for every spelling: hypervisors and LVM mean 2^30 by `g`, and memory is never sold in other steps.
UNITS = {"b": 1 / 1024**2, "k": 1 / 1024, "m": 1.0, "g": 1024.0, "t": 1024.0**2, "p": 1024.0**3}
_QUANTITY = re.compile(r"[~≈]?\s*(?P<number>\d[\d.,'’\s]*)\s*(?P<unit>(?:bytes?|[kmgtp]?(?:i?b|o)?)?)", re.IGNORECASE)
_THOUSANDS_COMMA = re.compile(r"\d{1,3}(,\d{3})+")
_THOUSANDS_POINT = re.compile(r"\d{1,3}(\.\d{3}){2,}")


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number and the letter of its unit (a key of UNITS), if one stands with it."""

    number: float
    unit: str | None

    def mebibytes(self, default_unit: str) -> int:
        """The size in MiB, rounded; ``default_unit`` is the letter for numbers without one."""
        return round(self.number * UNITS[self.unit or default_unit])


def parse_quantity(text: str) -> Quantity | None:
    """The quantity that ``text`` states; None when it is not one."""
    found = _QUANTITY.fullmatch(text.strip())
    if found is None or (number := parse_number(found["number"])) is None:
        return None
    unit = found["unit"].lower()
    return Quantity(number, unit[0] if unit and unit != "o" else None)


def parse_number(text: str) -> float | None:
    """The number that ``text`` states, thousands separators and a decimal comma allowed; None when it is not one.

    A lone comma before exactly three digits separates thousands (`4,096`), any other is a decimal comma (`1,5`).
    """
    plain = re.sub(r"[\s'’]", "", text)
    if "," in plain and "." in plain:
        decimal = max(plain.rfind(","), plain.rfind("."))
        plain = re.sub(r"[.,]", "", plain[:decimal]) + "." + plain[decimal + 1 :]
    elif _THOUSANDS_COMMA.fullmatch(plain) or _THOUSANDS_POINT.fullmatch(plain):
        plain = re.sub(r"[.,]", "", plain)
    else:
        plain = plain.replace(",", ".")
    return float(plain) if re.fullmatch(r"\d{1,15}(\.\d*)?", plain) else None


def size_text(mebibytes: int) -> str:
    """A size for people: `512 MiB`, `120 GiB`, `2.4 TiB`."""
    for unit, factor in (("PiB", 1024**3), ("TiB", 1024**2), ("GiB", 1024)):
        if mebibytes >= factor:
            return f"{mebibytes / factor:,.1f} {unit}".replace(".0 ", " ")
    return f"{mebibytes:,} MiB"
