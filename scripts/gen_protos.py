"""Generates `gen/` from `protos/`. The only way `gen/` changes.

`--check` generates into a temporary directory and exits with 1 when `gen/` differs. `--release`
stores the descriptors that `buf breaking` compares later contracts with.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import os
import shutil
import sys
import tempfile
from pathlib import Path

import google.rpc.status_pb2
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
PROTOS = ROOT / "protos"
GEN = ROOT / "gen"
RELEASED = PROTOS / "released" / "contract.binpb"
# The unchanged Google files come with `googleapis-common-protos`; their generated code too.
GOOGLE_RPC = Path(google.rpc.status_pb2.__file__).parents[2]
WELL_KNOWN = Path(str(importlib.resources.files("grpc_tools"))) / "_proto"


def _compile(out: Path) -> None:
    # protoc finds the mypy plugins on PATH; they are installed beside this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    files = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "conveyor").rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{GOOGLE_RPC}",
            f"-I{WELL_KNOWN}",
            f"--python_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--mypy_grpc_out=quiet:{out}",
            *files,
        ]
    )
    if code:
        sys.exit(code)
    for path in sorted(out.rglob("*_pb2_grpc.py")):
        if "Stub" not in path.read_text():  # a file without a service
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)
    packages = {p.parent for p in out.rglob("*_pb2.py")}
    packages |= {parent for p in packages for parent in p.parents if out in parent.parents}
    for package in sorted(packages):
        (package / "__init__.py").write_text("")
    (out / "conveyor" / "py.typed").write_text("")


def compile_image(path: Path, *, comments: bool = True) -> None:
    """Writes a descriptor image, which `buf lint` and `buf breaking` read without a network.

    The file goes to `path`, whose directory is made if need be. `comments` are what `buf lint` and
    the generated references read; `buf breaking` needs none.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(str(p.relative_to(PROTOS)) for p in (PROTOS / "conveyor").rglob("*.proto"))
    code = protoc.main(
        [
            "protoc",
            f"-I{PROTOS}",
            f"-I{GOOGLE_RPC}",
            f"-I{WELL_KNOWN}",
            "--include_imports",
            *(["--include_source_info"] if comments else []),
            f"-o{path}",
            *files,
        ]
    )
    if code:
        sys.exit(code)


def _differences(left: Path, right: Path) -> list[str]:
    def relative(root: Path) -> set[str]:
        return {
            str(p.relative_to(root))
            for p in root.rglob("*")
            if p.is_file() and "__pycache__" not in p.parts
        }

    both, either = relative(left) & relative(right), relative(left) | relative(right)
    changed = {name for name in both if not filecmp.cmp(left / name, right / name, shallow=False)}
    return sorted((either - both) | changed)


def main() -> None:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, change nothing")
    parser.add_argument("--image", type=Path, help="write a descriptor image here and stop")
    parser.add_argument("--release", action="store_true", help=f"write {RELEASED.name} and stop")
    args = parser.parse_args()
    if args.image:
        compile_image(args.image)
        return
    if args.release:
        compile_image(RELEASED, comments=False)
        return
    with tempfile.TemporaryDirectory() as tmp:
        out = Path(tmp) / "gen"
        out.mkdir()
        _compile(out)
        if args.check:
            drift = _differences(out, GEN)
            if drift:
                sys.exit("gen/ differs from protos/; run `make protos`:\n  " + "\n  ".join(drift))
            return
        if GEN.exists():
            shutil.rmtree(GEN)
        shutil.copytree(out, GEN)


if __name__ == "__main__":
    main()
