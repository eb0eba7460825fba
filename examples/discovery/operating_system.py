"""Operating systems as inventories name them: repository paths, release files, marketing names, code names."""

from __future__ import annotations

import re
from dataclasses import dataclass

_NUMBER = r"(?P<version>\d+(?:\.\d+){0,2})"
_GAP = r"[\s/_:(-]*(?:(?:linux|server|release|releases|version|v|os|for|gnu)[\s/_:(-]*)*"

# The first pattern that is found wins, so the longer names stand first.
_PRODUCTS = (
    ("CentOS Stream", rf"cent\s?os{_GAP}stream{_GAP}{_NUMBER}"),
    ("CentOS Linux", rf"cent\s?os{_GAP}{_NUMBER}"),
    ("Red Hat Enterprise Linux", rf"(?:red\s?hat(?:\s+enterprise)?|\brhel){_GAP}{_NUMBER}"),
    ("Rocky Linux", rf"rocky{_GAP}{_NUMBER}"),
    ("AlmaLinux", rf"alma\s?(?:linux)?{_GAP}{_NUMBER}"),
    ("Oracle Linux", rf"(?:oracle|\bol){_GAP}{_NUMBER}"),
    ("Fedora Linux", rf"fedora(?:-secondary|-alt)?{_GAP}{_NUMBER}"),
    ("Ubuntu", rf"ubuntu{_GAP}(?P<version>\d\d\.\d\d)"),
    ("Debian", rf"debian{_GAP}{_NUMBER}"),
    ("Windows Server", r"windows\s*(?:server|svr|srv)?\s*(?P<version>20\d\d(?:\s*r2)?)"),
    ("SUSE Linux Enterprise", rf"(?:suse|sles){_GAP}(?:enterprise{_GAP})?{_NUMBER}"),
    ("Amazon Linux", rf"amazon{_GAP}{_NUMBER}"),
)
_CODE_NAMES = {
    "stretch": ("Debian", "9"),
    "buster": ("Debian", "10"),
    "bullseye": ("Debian", "11"),
    "bookworm": ("Debian", "12"),
    "trixie": ("Debian", "13"),
    "trusty": ("Ubuntu", "14.04"),
    "xenial": ("Ubuntu", "16.04"),
    "bionic": ("Ubuntu", "18.04"),
    "focal": ("Ubuntu", "20.04"),
    "jammy": ("Ubuntu", "22.04"),
    "noble": ("Ubuntu", "24.04"),
    "resolute": ("Ubuntu", "26.04"),
}
ARCHITECTURES = {
    "x86_64": "x86_64",
    "x86-64": "x86_64",
    "amd64": "x86_64",
    "x64": "x86_64",
    "aarch64": "aarch64",
    "arm64": "aarch64",
    "ppc64le": "ppc64le",
    "ppc64el": "ppc64le",
    "s390x": "s390x",
    "riscv64": "riscv64",
    "i686": "i686",
    "i386": "i686",
}
_COMPILED = tuple((product, re.compile(pattern, re.IGNORECASE)) for product, pattern in _PRODUCTS)
_ARCHITECTURE = re.compile("(?<![a-z0-9])(" + "|".join(map(re.escape, ARCHITECTURES)) + ")(?![a-z0-9])", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class OperatingSystem:
    """A product in one version, on one architecture if that is known."""

    product: str
    version: str
    architecture: str | None = None

    @property
    def release(self) -> str:
        """The part of the version that a vendor's life cycle goes by: `22.04` of Ubuntu, `2012 R2` of Windows, else the major number."""
        if self.product in {"Ubuntu", "Windows Server"}:
            return self.version
        return self.version.split(".")[0]

    @property
    def name(self) -> str:
        """Product and release, for people."""
        return f"{self.product} {self.release}"


def parse_operating_system(text: str, version: str = "") -> OperatingSystem | None:
    """The system that ``text`` names, helped by a separate ``version`` where it names none itself; None when it names none we know."""
    architecture = parse_architecture(text)
    for candidate in (text, f"{text} {version}") if version else (text,):
        for product, pattern in _COMPILED:
            if found := pattern.search(candidate):
                spelled = re.sub(r"\s+", " ", found["version"]).upper()
                return OperatingSystem(product, re.sub(r"(\d)R2", r"\1 R2", spelled), architecture)
    for word in re.findall(r"[a-z]+", text.lower()):
        if word in _CODE_NAMES:
            return OperatingSystem(*_CODE_NAMES[word], architecture)
    return None


def parse_architecture(text: str) -> str | None:
    """The processor architecture that ``text`` names, in the kernel's spelling; None when it names none."""
    found = _ARCHITECTURE.search(text)
    return ARCHITECTURES[found[1].lower()] if found else None
