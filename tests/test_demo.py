"""`make demo` does what it promises, here with a small folder in place of the model."""

import os
import subprocess
import sys
from pathlib import Path


def test_the_demo_ends_well(tmp_path):
    model = tmp_path / "model"
    (model / "sub").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(os.urandom(5_000_000))
    (model / "config.json").write_text("{}")
    (model / "sub" / "config.json").write_text("{}")
    done = subprocess.run(
        [sys.executable, "-m", "loadtests.demo", str(model)],
        cwd=Path(__file__).parents[1],
        env={**os.environ, "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [
        line.split()[-1] for line in done.stdout.splitlines() if line.startswith(("  hf download", "  snapshot"))
    ]
    assert verdicts == ["right"] * 4
    assert [path.name for path in tmp_path.iterdir()] == ["model"], "it left something behind"
