"""Environments for clients with conflicting versions, made on demand and kept in `.venvs/`."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2] / ".venvs"


def environment(*requirements: str) -> Path:
    """Return the `bin` folder of a virtual environment with exactly these requirements."""

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(folder / "bin/pip"), "install", "-qq", *requirements], check=True, capture_output=True)

    return _kept(requirements, make) / "bin"


def node_packages(*packages: str) -> Path:
    """Return a folder whose scripts can import these npm packages. Install scripts are not run."""

    def make(folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        command = ["npm", "install", "--prefix", str(folder), "--ignore-scripts", "--no-audit", "--no-fund", *packages]
        subprocess.run(command, check=True, capture_output=True)

    return _kept(("npm", *packages), make)


def _kept(requirements: tuple[str, ...], make: Callable[[Path], None]) -> Path:
    name = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:16]
    _HOME.mkdir(exist_ok=True)
    with (_HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may want it at once
        folder = _HOME / name
        if not (folder / "complete").exists():
            make(folder)
            (folder / "complete").write_text("\n".join(requirements))
        return folder
