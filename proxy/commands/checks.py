"""Checks of the setup of a node and of the clients on its machine. Each yields findings, with a cure for a mistake."""

from __future__ import annotations

import email.utils
import json
import os
import shutil
import socket
import ssl
import stat
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from mesh.proxies import Proxy, proxy_of
from mesh.tls import load_tls
from proxy.admin.status import Status
from proxy.settings import Settings
from proxy.units import HostPort, format_size

_TIMEOUT = 5.0  # seconds
_MULTICAST = "224.0.0.251"
_CLOCK_SECONDS = 30  # nodes with a mesh key refuse each other from 60 s apart
_CERTIFICATE_DAYS = 14  # warn that many days before a certificate expires
_LOW = 0.05  # share of the disk below which free space is low

# Settings that findings depend on, apart from those about which the node itself is asked.
_DECISIVE = {
    *("data-dir", "origin", "offline", "xet", "mesh-listen", "seed", "mdns"),
    *("mesh-key-file", "mesh-tls-cert-file", "mesh-tls-private-key-file", "mesh-tls-ca-file"),
}

Level = Literal["good", "note", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check. `cure` says what to do about it; empty when there is nothing to do."""

    level: Level
    about: str
    what: str
    cure: str = ""


def node(status: Status | None, url: str, settings: Settings) -> Iterator[Finding]:
    """Check that a node answers and is ready, and if not, that its ports are free.

    `status` is the answer of the node; None when no node answered at `url`.
    """
    if status is not None:
        if status.ready:
            yield Finding("good", "node", f"{status.node_id} answers at {url} and is ready")
        else:
            yield Finding(
                "bad",
                "node",
                f"the node is not ready: {status.reason}",
                "wait a moment; if that does not help, read its log",
            )
        return
    for name, address in (("listen", settings.listen), ("mesh-listen", settings.mesh_listen)):
        if not _is_free(address):
            yield Finding(
                "bad",
                "ports",
                f"a program that does not answer as a hubmesh node uses {address}",
                f"stop it, or set --{name} to another port",
            )
            return
    yield Finding("bad", "node", f"no node answers at {url}", "start one: hubmesh serve")


def told(settings: Settings, status: Status | None) -> Iterator[Finding]:
    """Check that this command was given the settings of the node that its other findings depend on."""
    missing = set(status.settings).difference(settings.changed()) & _DECISIVE if status is not None else ()
    if missing:
        flags = ", ".join(f"--{name}" for name in sorted(missing))
        yield Finding(
            "note",
            "settings",
            f"the node was started with {flags}, but this command was not: some of what it says is not about that node",
            "run hubmesh doctor with the same flags or HUBMESH_* variables as hubmesh serve",
        )


def origin(settings: Settings) -> Iterator[Finding]:
    """Check that the Hub can be reached from this machine and that the clocks agree."""
    if settings.offline:
        yield Finding("note", "origin", "not tried, because of --offline")
        return
    hub = urlsplit(settings.origin)
    host = hub.hostname or ""
    try:
        proxy = proxy_of(hub.scheme, host)
    except ValueError as error:
        yield Finding("bad", "origin", f"a node cannot start here: {error}", f"correct it, or add {host} to NO_PROXY")
        return
    try:
        with urllib.request.urlopen(f"{settings.origin}/api/models?limit=1", timeout=_TIMEOUT) as answer:
            date = answer.headers.get("Date")
    except urllib.error.HTTPError as error:
        with error:
            date = error.headers.get("Date")
        if error.code >= 500 or (error.code == 407 and proxy is not None):
            what, cure = f"{settings.origin} answers HTTP {error.code}", "wait, or name a mirror with --origin"
            if proxy is not None:
                what, cure = f"{what} through {_named(proxy)}", f"{_cure_of_proxy(host)}; if it works, {cure}"
            yield Finding("bad", "origin", what, cure)
            return
    except OSError as error:
        reason = getattr(error, "reason", error)
        by = "" if proxy is None else f" through {_named(proxy)}"
        cure = _cure(reason, host) if proxy is None or isinstance(reason, ssl.SSLError) else _cure_of_proxy(host)
        yield Finding("bad", "origin", f"{settings.origin} cannot be reached{by}: {reason}", cure)
        return
    yield Finding("good", "origin", f"{settings.origin} answers")
    yield from clock(date, time.time())


def clock(date: str | None, now: float) -> Iterator[Finding]:
    """Compare a Date header with `now`, in seconds since the epoch; nothing if it is missing or malformed."""
    try:
        apart = now - email.utils.parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return
    if abs(apart) > _CLOCK_SECONDS:
        yield Finding(
            "bad",
            "clock",
            f"this machine's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the Hub's: signed "
            "URLs and requests between nodes may be refused",
            "enable time synchronisation (timedatectl set-ntp true)",
        )
    else:
        yield Finding("good", "clock", "this machine's clock agrees with the Hub's")


def token(settings: Settings, known: str | None) -> Iterator[Finding]:
    """Check that the Hub accepts `known`, the token that clients on this machine would send, if any."""
    if known is None:
        yield Finding("note", "token", "none found: gated and private repositories need one")
        return
    if settings.offline:
        yield Finding("note", "token", "not tried, because of --offline")
        return
    request = urllib.request.Request(f"{settings.origin}/api/whoami-v2", headers={"Authorization": f"Bearer {known}"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            name = json.loads(answer.read()).get("name", "unknown")
        yield Finding("good", "token", f"the Hub accepts it, for the user {name}")
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            yield Finding("bad", "token", "the Hub rejects it", "run `hf auth login`, or set HF_TOKEN to a valid token")
    except (OSError, ValueError):
        return  # the check of the origin reports this


def disk(settings: Settings, status: Status | None) -> Iterator[Finding]:
    """Check that blobs can be written and that the disk has room for --max-size."""
    folder = next(path for path in (settings.data_dir, *settings.data_dir.absolute().parents) if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        yield Finding("bad", "disk", f"{folder} is not writable", "set another --data-dir, or change its permissions")
        return
    usage = shutil.disk_usage(folder)
    held = status.usage.blob_bytes if status is not None else 0
    limit = status.usage.max_bytes if status is not None else settings.max_size or 0
    if usage.free < usage.total * _LOW:
        cure = "free some space, lower --max-size, or move --data-dir"
        yield Finding("bad", "disk", f"only {format_size(usage.free)} are free in {folder}", cure)
    elif limit > held + usage.free:
        cure = f"set --max-size to {format_size(held + usage.free * 0.9)} or less"
        yield Finding(
            "bad", "disk", f"--max-size is {format_size(limit)}, but only {format_size(usage.free)} are free", cure
        )
    else:
        yield Finding("good", "disk", f"{format_size(usage.free)} free in {folder}")


def mesh(settings: Settings, status: Status | None) -> Iterator[Finding]:
    """Check that this node finds peers and that they answer."""
    alive = [peer for peer in status.peers if peer.is_alive] if status is not None else []
    if status is not None and alive:
        gone = len(status.peers) - len(alive)
        yield Finding("good", "peers", f"answering: {len(alive)}" + (f", no longer answering: {gone}" if gone else ""))
    elif status is not None:
        cure = (
            "start a second node, or name one with --seed"
            if not settings.seeds
            else "see the findings for the seeds below"
        )
        yield Finding("note", "peers", "no peer answers: this node fetches everything from the Hub by itself", cure)
    yield from seeds(settings)
    if settings.mesh_listen.host in ("127.0.0.1", "::1", "localhost") and (settings.seeds or settings.mdns):
        yield Finding(
            "note",
            "ports",
            f"other machines cannot reach --mesh-listen {settings.mesh_listen}",
            "use 0.0.0.0, unless all nodes run on this machine",
        )
    if settings.mdns and not settings.seeds and not alive:
        yield from multicast()
    for key in (settings.mesh_key_file, settings.mesh_tls_private_key_file):
        if key is not None and key.exists() and stat.S_IMODE(key.stat().st_mode) & 0o077:
            yield Finding("bad", "key", f"other users of this machine can read {key}", f"chmod 600 {key}")
    yield from certificate(settings, time.time())


def seeds(settings: Settings) -> Iterator[Finding]:
    """Check that the seeds accept this node."""
    from proxy.commands.greeting import trouble  # imports aiohttp, which no other check needs
    from proxy.trust import auth_of

    try:
        auth = auth_of(settings, uuid.uuid4().hex)
    except (OSError, ValueError) as error:
        yield Finding("bad", "mesh", f"a node cannot start with these settings: {error}", "see docs/security.md")
        return
    for seed in settings.seeds:
        if (found := trouble(seed, auth)) is not None:
            yield Finding("bad", "seed", *found)
        else:
            yield Finding("good", "seed", f"{seed} answers and accepts this node")


def certificate(settings: Settings, now: float) -> Iterator[Finding]:
    """Check that the node's certificate is valid, and for how long. `now` is in seconds since the epoch."""
    if settings.mesh_tls_files is None:
        return
    try:
        tls = load_tls(*settings.mesh_tls_files)
    except (OSError, ValueError) as error:
        yield Finding("bad", "certificate", str(error), "docs/security.md says how to make one")
        return
    file, days = settings.mesh_tls_cert_file, (tls.ends_at - now) / 86400
    if trouble := tls.trouble(now):
        yield Finding(
            "bad",
            "certificate",
            f"{file} {trouble}",
            "correct the clock, or sign a new certificate; then restart the node",
        )
    elif days < _CERTIFICATE_DAYS:
        what = f"{file} expires in {days:.0f} days; after that, peers refuse this node"
        yield Finding("bad", "certificate", what, "sign a new certificate, and restart the node")
    else:
        yield Finding("good", "certificate", f"{file} is valid for another {days:.0f} days")


def multicast() -> Iterator[Finding]:
    """Check that a datagram to a multicast group comes back to a member of it. Without that, mDNS finds no nodes."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.settimeout(1.0)
        try:
            link.bind(("", 0))
            member = socket.inet_aton(_MULTICAST) + socket.inet_aton("0.0.0.0")
            link.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
            link.sendto(b"hubmesh", (_MULTICAST, link.getsockname()[1]))
            link.recv(16)
        except OSError as error:
            cure = "name a node with --seed, which needs no multicast"
            yield Finding("bad", "multicast", f"it does not work here ({error}): mDNS finds no nodes", cure)
        else:
            yield Finding("good", "multicast", "it works on this machine")


def clients(environment: Mapping[str, str], url: str) -> Iterator[Finding]:
    """Check that Hugging Face clients started in this environment use the node at `url`."""
    endpoint = environment.get("HF_ENDPOINT", "")
    parts = urlsplit(endpoint)
    if not endpoint:
        yield Finding("bad", "HF_ENDPOINT", "it is not set: clients bypass the node", f"export HF_ENDPOINT={url}")
    elif parts.scheme not in ("http", "https") or not parts.hostname:
        yield Finding("bad", "HF_ENDPOINT", f"{endpoint!r} is not a URL", f"export HF_ENDPOINT={url}")
    elif endpoint.endswith("/"):
        cure = f"export HF_ENDPOINT={endpoint.rstrip('/')}"
        yield Finding("bad", "HF_ENDPOINT", "it ends with a slash, which some clients do not accept", cure)
    elif not _is_node(endpoint):
        yield Finding("bad", "HF_ENDPOINT", f"no hubmesh node answers at {endpoint}", f"export HF_ENDPOINT={url}")
    else:
        yield Finding("good", "HF_ENDPOINT", f"clients use the node at {endpoint}")
    host = parts.hostname or "localhost"
    proxies = {name for name in environment if name.lower() in ("http_proxy", "all_proxy") and environment[name]}
    if proxies and not _is_exempt(host, environment):
        cure = f"export NO_PROXY={host} no_proxy={host}"
        yield Finding("bad", "proxy", f"{min(proxies)} makes clients bypass the node", cure)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_CO_STAGING"):
        if environment.get(name, "").upper() in ("1", "ON", "YES", "TRUE"):
            yield Finding("bad", name, "it is set: clients contact no server, or another one", f"unset {name}")
    for name in ("HF_HUB_ETAG_TIMEOUT", "HF_HUB_DOWNLOAD_TIMEOUT"):
        if (limit := environment.get(name, "")).isdigit() and int(limit) < 10:
            yield Finding("bad", name, f"clients give up after {limit} s instead of 10", f"unset {name}")


def xet(settings: Settings, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Check whether clients can download files above 50 GB, which they take only over Xet, through the node."""
    if settings.xet == "never":
        what = "--xet never: clients refuse files above 50 GB, which they take only over Xet"
        yield Finding("note", "Xet", what, "use --xet auto if you need such files")
    elif environment.get("HF_HUB_DISABLE_XET", "").upper() in ("1", "ON", "YES", "TRUE"):
        what = "HF_HUB_DISABLE_XET is set: clients refuse files above 50 GB"
        yield Finding("note", "Xet", what, "unset HF_HUB_DISABLE_XET; with a node it is not needed")
    else:
        yield Finding("good", "Xet", "the node serves Xet itself: no download bypasses it")


def _cure(reason: object, host: str) -> str:
    if isinstance(reason, ssl.SSLError):
        return "correct the clock, or install your proxy's certificate authority; TLS certificates are always verified"
    if isinstance(reason, socket.gaierror):
        return f"make {host} resolve (DNS, /etc/hosts), set HTTPS_PROXY, or name a mirror with --origin"
    return f"allow this machine to connect to {host}, set HTTPS_PROXY, name a mirror with --origin, or set --offline"


def _named(proxy: Proxy) -> str:
    """The proxy without its user and password."""
    return f"the proxy {HostPort(proxy.host, proxy.port)}, which the environment names"


def _cure_of_proxy(host: str) -> str:
    return f"start that proxy, correct HTTP_PROXY or HTTPS_PROXY, or add {host} to NO_PROXY"


def _is_free(address: HostPort) -> bool:
    if not address.port:
        return True
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind((address.host, address.port))
        except OSError:
            return False
    return True


def _is_node(url: str) -> bool:
    parts = urlsplit(url)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"{parts.scheme}://{parts.netloc}/-/health", timeout=_TIMEOUT) as answer:
            alive: bytes = answer.read(64)
    except (OSError, ValueError):
        return False
    return alive == b"alive\n"


def _is_exempt(host: str, environment: Mapping[str, str]) -> bool:
    rules = environment.get("no_proxy") or environment.get("NO_PROXY") or ""
    names = [rule.strip().lstrip(".") for rule in rules.split(",") if rule.strip()]
    return any(name == "*" or host == name or host.endswith(f".{name}") for name in names)
