"""What a node can be told: every setting once, with its default and its explanation. Pure.

Flags, environment variables and keys of the configuration file are all derived from the fields of
`Settings` (see proxy/commands/options.py), so a new setting is one field here and one entry in
config/node.toml.
"""

# ruff: noqa: RUF009 -- _setting is dataclasses.field with our metadata; it runs once, as it should

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from proxy.hub.xet import XetUse
from proxy.units import HostPort, parse_duration, parse_host_pattern, parse_rate, parse_size

Role = Literal["peer", "seed"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """How one setting is written and explained; kept in its field's metadata under "about"."""

    help: str
    # Reads one value from text (or a TOML number); raises ValueError. None: yes or no.
    parse: Callable[[Any], object] | None
    # The default as a user would write it; None: not set.
    default: str | bool | None
    metavar: str | None
    choices: tuple[str, ...]
    # Given as often as wanted, under this name in the singular.
    repeated_as: str | None


def _setting(
    default: str | bool | None,
    help: str,
    parse: Callable[[Any], object] | None = None,
    metavar: str | None = None,
    *,
    choices: tuple[str, ...] = (),
    repeated_as: str | None = None,
) -> Any:
    about = About(
        help=help,
        parse=str if choices else parse,
        default=default,
        metavar=metavar,
        choices=choices,
        repeated_as=repeated_as,
    )

    def value() -> object:
        if repeated_as is not None:
            return ()
        return about.parse(default) if about.parse is not None and default is not None else default

    return field(default_factory=value, metadata={"about": about})


def _path(text: object) -> Path:
    if "\0" in str(text):
        raise ValueError(f"{text!r} is no path: there is a NUL character in it")
    try:
        return Path(str(text)).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text!r}: no such home directory is known here; give the whole path, such as --data-dir /var/lib/hubmesh"
        ) from None


def _origin(text: object) -> str:
    """An http(s) URL without a trailing slash; it may have a path, nothing after it, and no user name."""
    url = str(text).strip().rstrip("/")
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment or "@" in parts.netloc:
        raise ValueError(f"{text!r} is not the URL of a Hub such as https://huggingface.co")
    return url


def _wait(text: str | float) -> float:
    """What a clock is set to. The system's own limit for a socket is 24 days."""
    return _at_most("1d", text)


def _time_limit(text: str | float) -> float:
    if (seconds := _wait(text)) <= 0:
        raise ValueError(f"{text!r}: must be more than zero")
    return seconds


def _age(text: str | float) -> float:
    """What the age of something is compared with; as good as for ever, too."""
    return _at_most("3650d", text)


def _at_most(limit: str, text: str | float) -> float:
    if (seconds := parse_duration(text)) > parse_duration(limit):
        raise ValueError(f"{text!r}: must be at most {limit}")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One node's settings. Durations are seconds, sizes bytes, rates bytes per second.

    Raises ValueError when two of them cannot go together.
    """

    listen: HostPort = _setting(
        "127.0.0.1:8090", "Where clients connect. Port 0 takes any free one.", HostPort.parse, "HOST:PORT"
    )
    mesh_listen: HostPort = _setting(
        "0.0.0.0:8091", "Where peers connect. Port 0 takes any free one.", HostPort.parse, "HOST:PORT"
    )
    advertise: HostPort | None = _setting(
        None,
        "The address peers should use, when it differs from --mesh-listen as seen from outside.",
        HostPort.parse,
        "HOST:PORT",
    )
    allow_hosts: tuple[str, ...] = _setting(
        None,
        "A further host name clients may use for this node; '*.example.org' covers all below, '*' any. "
        "Requests for unknown names are refused, so that no web page can reach the node by DNS rebinding.",
        parse_host_pattern,
        "NAME",
        repeated_as="allow_host",
    )
    origin: str = _setting(
        "https://huggingface.co", "The Hub, or a mirror of it. TLS is always verified.", _origin, "URL"
    )
    offline: bool = _setting(False, "Never go to the origin: serve what is here or with peers.")
    xet: XetUse = _setting(
        "auto",
        "Speak Xet to clients: for files above their plain HTTP limit of 50 GB (auto), for all large ones, or none.",
        choices=("auto", "always", "never"),
    )

    data_dir: Path = _setting("~/.cache/hubmesh", "Where blobs and the catalog are kept.", _path, "DIR")
    # None: 90 % of what is free but for its own files (see proxy/budget.py).
    max_size: int | None = _setting(
        None,
        "Keep at most this much, e.g. 200GiB; what was not used for longest goes first. "
        "Default: 90 % of what would be free without these.",
        parse_size,
        "SIZE",
    )
    hf_cache: Path | None = _setting(
        None, "An existing Hugging Face cache to serve from and to share disk blocks with.", _path, "DIR"
    )

    role: Role = _setting("peer", "A seed goes to the origin on behalf of the others.", choices=("peer", "seed"))
    seeds: tuple[HostPort, ...] = _setting(
        None,
        "The mesh address of a seed; repeat for several. A DNS name with several addresses is several seeds.",
        HostPort.parse,
        "HOST:PORT",
        repeated_as="seed",
    )
    mdns: bool = _setting(True, "Find and be found by nodes on the local network (_hubmesh._tcp.local.).")
    mesh_key_file: Path | None = _setting(None, "File with the secret that all nodes of the mesh share.", _path, "FILE")
    mesh_tls_cert_file: Path | None = _setting(
        None, "Speak TLS with peers, and show them the certificate in this PEM file.", _path, "FILE"
    )
    mesh_tls_private_key_file: Path | None = _setting(None, "The private key of that certificate.", _path, "FILE")
    mesh_tls_ca_file: Path | None = _setting(
        None, "Let in whoever has a certificate of this authority, which signs for this mesh alone.", _path, "FILE"
    )

    max_upload: int | None = _setting(None, "Send peers at most this, e.g. 500MB/s.", parse_rate, "RATE")
    max_download: int | None = _setting(None, "Take from peers at most this.", parse_rate, "RATE")
    max_origin: int | None = _setting(None, "Take from the origin at most this.", parse_rate, "RATE")

    # Hugging Face clients give up after 10 s without an answer or a byte, and nobody changes that: the
    # limits towards the origin leave us time to say so, or to try again, before they do.
    origin_connect_timeout: float = _setting("4s", "Give up connecting to the origin or its CDN.", _time_limit, "TIME")
    origin_metadata_timeout: float = _setting(
        "8s", "Give up waiting for an answer about a file or repository.", _time_limit, "TIME"
    )
    origin_first_byte_timeout: float = _setting(
        "8s", "Give up waiting for the first byte of a body, and ask again.", _time_limit, "TIME"
    )
    origin_stall_timeout: float = _setting(
        "5s", "Break off a body that brings no byte for this long, and resume it.", _time_limit, "TIME"
    )
    freshness: float = _setting(
        "60s",
        "Ask the origin again what a branch or a listing holds when the answer is older. 0 asks always.",
        _age,
        "TIME",
    )
    grant_life: float = _setting(
        "5m",
        "Ask the Hub again whether a token may read a repository when its last word is older. 0 asks always.",
        _age,
        "TIME",
    )
    # None: see proxy/node.py.
    discovery_timeout: float | None = _setting(
        None,
        "Call the node ready when no peer has answered for this long. "
        "Default: 3s where seeds are named, 0.6s with mDNS alone.",
        _time_limit,
        "TIME",
    )
    # Container engines kill 10 s after they asked politely.
    drain_timeout: float = _setting(
        "8s",
        "When stopping, let running downloads go on for this long before breaking them off.",
        _wait,
        "TIME",
    )

    log_format: LogFormat = _setting("text", "Lines for people or for machines.", choices=("text", "json"))
    log_level: str = _setting("info", "Log this and what is worse.", choices=("debug", "info", "warning", "error"))

    @property
    def mesh_tls_files(self) -> tuple[Path, Path, Path] | None:
        """Certificate, private key and authority: what `mesh.tls.load_tls` wants, where the mesh has certificates."""
        cert, private_key, ca = self.mesh_tls_cert_file, self.mesh_tls_private_key_file, self.mesh_tls_ca_file
        if cert is None and private_key is None and ca is None:
            return None
        if cert is None or private_key is None or ca is None:
            raise ValueError("mesh-tls-cert-file, mesh-tls-private-key-file and mesh-tls-ca-file go together")
        return cert, private_key, ca

    def __post_init__(self) -> None:
        _ = self.mesh_tls_files
        own = self.advertise or self.mesh_listen
        if _collide(self.listen, self.mesh_listen):
            raise ValueError(f"listen and mesh-listen are both {self.listen}: clients and peers need a port each")
        if self.advertise is not None and (self.advertise.wildcard or not self.advertise.port):
            raise ValueError(f"advertise is {self.advertise}: nobody can connect to that")
        for seed in self.seeds:
            if seed.wildcard or not seed.port:
                raise ValueError(f"seed is {seed}: nobody can connect to that")
            # A list that all seeds share names each of them; anybody else has it from a mistake.
            if seed == own and self.role != "seed":
                raise ValueError(f"seed {seed} is this node itself: give it the role seed, or name another")
        origin = urlsplit(self.origin)
        port = origin.port or {"http": 80, "https": 443}[origin.scheme]
        if HostPort(origin.hostname or "", port) == self.listen.reachable:
            raise ValueError(f"origin {self.origin} is this node itself: name the Hub or another mirror of it")


def _collide(one: HostPort, other: HostPort) -> bool:
    """Whether two sockets cannot be bound at these addresses together."""
    return one.port == other.port != 0 and (one.host == other.host or one.wildcard or other.wildcard)
