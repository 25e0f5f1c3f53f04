"""Virtual environments for clients whose versions clash, made on demand and kept in `.venvs/`."""

from __future__ import annotations

import fcntl
import hashlib
import subprocess
import sys
from pathlib import Path

_HOME = Path(__file__).resolve().parents[2] / ".venvs"


def environment(*requirements: str) -> Path:
    """The `bin` folder of an environment with exactly these requirements."""
    name = hashlib.sha256("\n".join(sorted(requirements)).encode()).hexdigest()[:16]
    _HOME.mkdir(exist_ok=True)
    with (_HOME / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs may want it at once
        folder = _HOME / name
        if not (folder / "complete").exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
            subprocess.run([str(folder / "bin/pip"), "install", "-qq", *requirements], check=True, capture_output=True)
            (folder / "complete").write_text("\n".join(requirements))
        return folder / "bin"
