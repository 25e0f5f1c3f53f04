"""The programs that hubmesh is compared with: nginx, squid and olah as processes, each in front of the same origin."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from typing import Self

OLAH = "olah==0.5.4"
_START_SECONDS = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")

_NGINX = """
daemon off; error_log {folder}/error.log crit; pid {folder}/nginx.pid; worker_processes {workers}; user {user};
events {{ worker_connections 1024; }}
http {{
    access_log off; tcp_nopush on; sendfile on; keepalive_requests 1000000;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/tmp; fastcgi_temp_path {folder}/f;
    uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
    proxy_cache_path {folder}/cache levels=1:2 keys_zone=cache:8m max_size=100g use_temp_path=off;
    upstream origin {{ server {origin}; keepalive 16; }}
    server {{
        listen 127.0.0.1:{port};
        location /files/ {{ alias {files}/; }}
        location /plain/ {{ proxy_pass http://origin/; proxy_http_version 1.1; proxy_set_header Connection ""; }}
        location / {{
            proxy_pass http://origin; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header Host {origin}; proxy_cache cache; proxy_cache_key $uri; proxy_cache_lock on;
            proxy_ignore_headers Set-Cookie Vary;
        }}
    }}
}}
"""
_SQUID = """
http_port 127.0.0.1:{port} accel defaultsite={origin} no-vhost
cache_peer {host} parent {origin_port} 0 no-query no-digest originserver name=origin
http_access allow all
cache_mem 256 MB
maximum_object_size 100 GB
cache_dir ufs {folder}/cache 20000 16 16
pid_filename {folder}/squid.pid
cache_log {folder}/squid.log
access_log none
coredump_dir {folder}
shutdown_lifetime 1 second
"""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process, its threads and its living descendants, user and system."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS + sum(cpu_seconds(int(child)) for child in children)


def memory(pid: int) -> dict[str, int]:
    """Return resident memory in bytes: `VmRSS`, and its anonymous part `RssAnon` (proc(5))."""
    lines = (line.split() for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {line[0][:-1]: int(line[1]) << 10 for line in lines if line and line[0] in ("VmRSS:", "RssAnon:")}


def free_port() -> int:
    """Return a port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


class Rival:
    """A server process, as a context manager that enters when the server accepts connections."""

    def __init__(self, name: str, port: int, command: list[str], environment: dict[str, str] | None = None) -> None:
        self.name, self.url = name, f"http://127.0.0.1:{port}"
        self._port, self._command, self._environment = port, command, environment
        self.pid = 0

    def __enter__(self) -> Self:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")} | (self._environment or {})
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        self.pid = self._process.pid
        until = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", self._port), 1).close()
            except OSError:
                if time.monotonic() > until or self._process.poll() is not None:
                    self.__exit__()
                    raise RuntimeError(f"{self.name} does not listen: {' '.join(self._command)}") from None
                time.sleep(0.05)
            else:
                return self

    def __exit__(self, *_: object) -> None:
        # It has a session of its own, so its workers and helpers end with it.
        try:
            os.killpg(self.pid, signal.SIGTERM)
            self._process.wait(10)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()


def nginx(folder: Path, origin: str, files: Path, workers: int = 1) -> Rival | None:
    """`/files/…` by sendfile, `/plain/…` from `origin` uncached, the rest cached. None if not installed."""
    if not (program := _find("nginx")):
        return None
    folder.mkdir(parents=True)
    port = free_port()
    (folder / "nginx.conf").write_text(
        _NGINX.format(
            folder=folder,
            port=port,
            files=files,
            origin=urlsplit(origin).netloc,
            workers=workers,
            user="root" if os.getuid() == 0 else "nobody",
        )
    )
    return Rival("nginx", port, [program, "-p", str(folder), "-c", str(folder / "nginx.conf")])


def squid(folder: Path, origin: str) -> Rival | None:
    """Everything of `origin`, cached. None if squid is not installed."""
    if not (program := _find("squid")):
        return None
    folder.mkdir(parents=True)
    port, parts = free_port(), urlsplit(origin)
    text = _SQUID.format(folder=folder, port=port, origin=parts.netloc, host=parts.hostname, origin_port=parts.port)
    if os.getuid() == 0:
        text += "cache_effective_user proxy\n"
        for path in (folder, *folder.parents):
            if path.stat().st_uid == os.getuid():
                path.chmod(path.stat().st_mode | 0o111)
        shutil.chown(folder, "proxy", "proxy")
    (folder / "squid.conf").write_text(text)
    subprocess.run([program, "-z", "-N", "-f", str(folder / "squid.conf")], check=True, capture_output=True)
    return Rival("squid", port, [program, "-N", "-f", str(folder / "squid.conf")])


def olah(folder: Path, origin: str, cdn: str, environment: Path) -> Rival | None:
    """Install olah from its package into `environment` if it is not there. None if that fails."""
    program = environment / "bin" / "olah-cli"
    if not program.exists():
        venv.create(environment, with_pip=True)
        got = subprocess.run([environment / "bin" / "pip", "install", "-qq", OLAH], check=False)
        if got.returncode or not program.exists():
            print("olah cannot be installed; it is left out", file=sys.stderr)
            return None
    folder.mkdir(parents=True)
    port = free_port()
    command = [
        *(str(program), "--host", "127.0.0.1", "--port", str(port), "--repos-path", str(folder / "repos")),
        *("--hf-scheme", "http", "--hf-netloc", urlsplit(origin).netloc, "--hf-lfs-netloc", urlsplit(cdn).netloc),
        *("--mirror-scheme", "http", "--mirror-netloc", f"127.0.0.1:{port}", "--log-path", str(folder / "logs")),
    ]
    return Rival("olah", port, command)


def _find(program: str) -> str | None:
    return shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin:/sbin")
