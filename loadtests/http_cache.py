"""The public http-cache-tests suite through a node's generic route, beside squid and nginx.

    python -m loadtests.http_cache [CACHE...]

Takes the suite from npm into `.build/http-cache-tests`, runs its server as the origin, and its client through each of
the caches in turn. Prints how many of what a cache must, should and may do each does, and writes
`.build/http_cache.json`, with the verdict on each test. Caches whose program is not there are left out. What the score
means is in docs/http.md.
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
    """The suite with what it needs, from npm."""
    package = folder / "package"
    if not (folder / "node_modules/node-fetch").exists():
        folder.mkdir(parents=True, exist_ok=True)
        run = {"cwd": folder, "check": True, "capture_output": True}
        subprocess.run(["npm", "pack", f"http-cache-tests@{VERSION}"], **run)  # type: ignore[call-overload]
        subprocess.run(["tar", "xzf", f"http-cache-tests-{VERSION}.tgz"], **run)  # type: ignore[call-overload]
        # Beside the package, not in it: its own list of dependencies holds all of npm.
        subprocess.run(["npm", "install", "--prefix", ".", "node-fetch@2", "liquidjs@9"], **run)  # type: ignore[call-overload]
    return package


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def process(command: list[str], port: int, folder: Path, **more: Any) -> Iterator[None]:
    """A program that is ready when something answers at its port, and ended after use."""
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
    """The base URL of a cache in front of the origin."""
    folder.mkdir()
    if name == "hubmesh":
        with NodeProcess(folder / "node", f"http://localhost:{origin}") as node:
            yield node.url
        return
    port = free_port()
    folder.chmod(0o777)  # they give up root's rights
    config = folder / f"{name}.conf"
    config.write_text({"nginx": NGINX, "squid": SQUID}[name].format(folder=folder, port=port, origin=origin))
    command = {"nginx": ["nginx", "-p", str(folder), "-c", str(config)], "squid": ["squid", "-N", "-f", str(config)]}
    with process(command[name], port, folder):
        yield f"http://127.0.0.1:{port}"


def definitions(package: Path) -> dict[str, dict[str, Any]]:
    """The tests that concern shared caches, by id."""
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
    """What the suite says of the cache at `base`: by test id, true or why not."""
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
    """Each test's verdict: pass, fail, or "does not apply" where a behaviour that it builds on is missing."""

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
