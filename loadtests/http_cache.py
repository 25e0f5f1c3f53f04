"""Run the public http-cache-tests suite through a node's generic route, beside squid and nginx.

    python -m loadtests.http_cache [CACHE...]

Installs the suite from npm into `.build/http-cache-tests`, runs its server as the origin, and its client through each
cache in turn. Prints, for what a cache must, should and may do, how many tests each passes, and writes the verdict on
every test to `.build/http_cache.json`. Caches that are not installed are left out. docs/http.md explains the score.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from loadtests.rivals import free_port
from tests.node import NodeProcess

VERSION = "0.4.5"
OUTPUT = Path(".build")
_START_SECONDS = 20.0
_RUN_SECONDS = 900.0

NGINX = """
daemon off; error_log stderr; pid {folder}/nginx.pid;
events {{}}
http {{
    access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=cache:8m max_size=100m;
    server {{
        listen 127.0.0.1:{port};
        location / {{ proxy_pass http://localhost:{origin}; proxy_cache cache; proxy_cache_revalidate on; }}
    }}
}}
"""
SQUID = """
http_port 127.0.0.1:{port} accel defaultsite=localhost no-vhost
cache_peer localhost parent {origin} 0 no-query no-digest originserver default name=origin
http_access allow all
pid_filename {folder}/squid.pid
cache_log {folder}/squid.log
access_log none
coredump_dir {folder}
shutdown_lifetime 1 second
connect_retries 3
"""


def suite(folder: Path) -> Path:
    """Install the suite and its dependencies from npm, and return its folder."""
    package = folder / "package"
    if not (folder / "node_modules/node-fetch").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run = {"cwd": folder, "check": True, "capture_output": True}
        subprocess.run(["npm", "pack", f"http-cache-tests@{VERSION}"], **run)  # type: ignore[call-overload]
        subprocess.run(["tar", "xzf", f"http-cache-tests-{VERSION}.tgz"], **run)  # type: ignore[call-overload]
        # Beside the package: inside it, npm would install the package's own dependencies, which include all of npm.
        subprocess.run(["npm", "install", "--prefix", ".", "node-fetch@2", "liquidjs@9"], **run)  # type: ignore[call-overload]
    return package


@contextmanager
def process(command: list[str], port: int, folder: Path, **more: Any) -> Iterator[None]:
    """Run a program: enter when it accepts connections on its port, terminate it on exit."""
    with (folder / f"{Path(command[0]).name}-{port}.log").open("wb") as log:
        running = subprocess.Popen(command, stdout=log, stderr=log, **more)
        try:
            until = time.monotonic() + _START_SECONDS
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if running.poll() is not None or time.monotonic() > until:
                        raise RuntimeError(f"{command[0]} does not answer; see {log.name}") from None
                    time.sleep(0.05)
            yield
        finally:
            running.terminate()
            try:
                running.wait(10)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


@contextmanager
def cache(name: str, origin: int, folder: Path) -> Iterator[str]:
    """Run a cache in front of the origin and yield its base URL."""
    folder.mkdir()
    if name == "hubmesh":
        with NodeProcess(folder / "node", f"http://localhost:{origin}") as node:
            yield node.url
        return
    port = free_port()
    folder.chmod(0o777)  # nginx and squid drop root's privileges
    config = folder / f"{name}.conf"
    config.write_text({"nginx": NGINX, "squid": SQUID}[name].format(folder=folder, port=port, origin=origin))
    command = {"nginx": ["nginx", "-p", str(folder), "-c", str(config)], "squid": ["squid", "-N", "-f", str(config)]}
    with process(command[name], port, folder):
        yield f"http://127.0.0.1:{port}"


def definitions(package: Path) -> dict[str, dict[str, Any]]:
    """Return the suite's tests that apply to shared caches, by id."""
    code = (
        "import tests from './tests/index.mjs';"
        "const all = tests.flatMap(suite => suite.tests);"
        "console.log(JSON.stringify(all.map(test => ({...test, requests: undefined}))))"
    )
    done = subprocess.run(
        ["node", "--input-type=module", "-e", code], cwd=package, check=True, capture_output=True, text=True
    )
    tests = json.loads(done.stdout)
    return {test["id"]: test for test in tests if not test.get("browser_only") and not test.get("cdn_only")}


def run_client(package: Path, base: str) -> dict[str, Any]:
    """Run the suite against the cache at `base`. Return its results by test id: true, or the reason for the failure."""
    environment = os.environ | {"npm_config_base": base, "npm_package_config_id": "", "NO_PROXY": "*"}
    done = subprocess.run(
        ["node", "--no-warnings", "cli.mjs"],
        cwd=package,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_RUN_SECONDS,
        check=True,
    )
    results: dict[str, Any] = json.loads(done.stdout[done.stdout.index("{\n") :])
    return results


def judge(tests: dict[str, dict[str, Any]], results: dict[str, Any]) -> dict[str, str]:
    """Return each test's verdict: pass, fail, or "does not apply" if the cache lacks a behaviour the test needs."""

    def verdict(test_id: str) -> str:
        test, result = tests[test_id], results.get(test_id)
        if any(tests.get(name) and results.get(name) is not True for name in test.get("depends_on", ())):
            return "does not apply"
        if result is True:
            return "pass"
        return "does not apply" if isinstance(result, list) and result[0] == "Setup" else "fail"

    return {test_id: verdict(test_id) for test_id in tests}


def main() -> int:
    if shutil.which("node") is None or shutil.which("npm") is None:
        print("this needs node and npm", file=sys.stderr)
        return 1
    package = suite(OUTPUT.absolute() / "http-cache-tests")
    tests = definitions(package)
    names = sys.argv[1:] or ["hubmesh", *(name for name in ("squid", "nginx") if shutil.which(name) is not None)]
    verdicts: dict[str, dict[str, str]] = {}
    results: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        folder.chmod(0o755)
        environment = os.environ | {"npm_config_port": str(port), "npm_config_protocol": "http"}
        environment["npm_config_pidfile"] = str(folder / "server.pid")
        with process(["node", "server/server.mjs"], port, folder, cwd=package, env=environment):
            urllib.request.install_opener(urllib.request.build_opener(urllib.request.ProxyHandler({})))
            for name in names:
                with cache(name, port, folder / name) as base:
                    results[name] = run_client(package, base)
                    verdicts[name] = judge(tests, results[name])
    kinds = {"required": "must", "optimal": "should", "check": "may"}
    print(f"http-cache-tests {VERSION}: {len(tests)} tests for shared caches; passed / failed / does not apply\n")
    print(f"{'':10}" + "".join(f"{title:>18}" for title in kinds.values()))
    for name, verdict in verdicts.items():
        cells = []
        for kind in kinds:
            count = Counter(v for test_id, v in verdict.items() if tests[test_id].get("kind", "required") == kind)
            cells.append(f"{count['pass']} / {count['fail']} / {count['does not apply']}")
        print(f"{name:10}" + "".join(f"{cell:>18}" for cell in cells))
    for test_id, what in verdicts.get("hubmesh", {}).items():
        if what == "fail" and tests[test_id].get("kind", "required") == "required":
            print(f"hubmesh fails {test_id}: {results['hubmesh'][test_id]}")
    OUTPUT.mkdir(exist_ok=True)
    (OUTPUT / "http_cache.json").write_text(json.dumps({"verdicts": verdicts, "said": results}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
