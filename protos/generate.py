"""Write the Python modules and type stubs of every proto into one folder; run by `make generate` and by the drift test."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped,import-not-found,unused-ignore]

PROTOS = Path(__file__).resolve().parent


def generate(target: Path) -> None:
    """Replace ``target``/flowledger by what the pinned generator makes of the protos."""
    with tempfile.TemporaryDirectory() as scratch:
        _run(Path(scratch))
        (Path(scratch) / "flowledger" / "v1" / "py.typed").touch()
        shutil.rmtree(target / "flowledger", ignore_errors=True)
        shutil.copytree(Path(scratch) / "flowledger", target / "flowledger")


def _run(scratch: Path) -> None:
    files = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    services = [name for name in files if name.endswith("_service.proto")]
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    include = [f"-I{PROTOS}", f"-I{well_known}"]
    include += [f"--plugin=protoc-gen-{name}={Path(sys.prefix) / 'bin' / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")]
    messages = ["protoc", *include, f"--python_out={scratch}", f"--mypy_out={scratch}", *files]
    # Only services get a _grpc module: an empty one per message file would be noise.
    stubs = ["protoc", *include, f"--grpc_python_out={scratch}", f"--mypy_grpc_out={scratch}", *services]
    for command in (messages, stubs):
        if protoc.main(command) != 0:
            sys.exit(f"protoc failed: {' '.join(command)}")


if __name__ == "__main__":
    generate(Path(sys.argv[1]).resolve())
