"""The settings of a node: each defined once, with its default and its help text.

Flags, environment variables and keys of the configuration file are all derived from the fields of
`Settings` (see proxy/commands/options.py), so a new setting is one field here and one entry in
config/node.toml.
"""

# ruff: noqa: RUF009 -- _setting is dataclasses.field with our metadata; it is meant to run once

from __future__ import annotations

from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from proxy.hub.xet import XetUse
from proxy.units import HostPort, parse_duration, parse_host_pattern, parse_rate, parse_size

Role = Literal["peer", "seed"]
LogFormat = Literal["text", "json"]


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """How one setting is written and explained; stored in its field's metadata under "about"."""

    help: str
    # Parses one value from text or a TOML number; raises ValueError. None: the setting is true or false.
    parse: Callable[[Any], object] | None
    # The default as a user would write it; None: not set.
    default: str | bool | None
    metavar: str | None
    choices: tuple[str, ...]
    # Name of the flag in the singular, if the setting may be given several times.
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
        raise ValueError(f"{text!r} is not a path: it contains a NUL character")
    try:
        return Path(str(text)).expanduser()
    except RuntimeError:
        raise ValueError(
            f"{text!r}: cannot find that home directory; give an absolute path, such as --data-dir /var/lib/hubmesh"
        ) from None


def _origin(text: object) -> str:
    """Parse an http(s) URL without query, fragment and user name; the result has no trailing slash."""
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
    """Parse the seconds that something waits: at most a day, since sockets take no more than 24 days."""
    return _at_most("1d", text)


def _time_limit(text: str | float) -> float:
    if (seconds := _wait(text)) <= 0:
        raise ValueError(f"{text!r}: must be more than zero")
    return seconds


def _age(text: str | float) -> float:
    """Parse the seconds that an age is compared with: at most ten years, in effect without limit."""
    return _at_most("3650d", text)


def _at_most(limit: str, text: str | float) -> float:
    if (seconds := parse_duration(text)) > parse_duration(limit):
        raise ValueError(f"{text!r}: must be at most {limit}")
    return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """One node's settings. Durations are seconds, sizes bytes, rates bytes per second.

    Raises ValueError when two settings contradict each other.
    """

    listen: HostPort = _setting(
        "127.0.0.1:8090", "Address for clients. Port 0 picks a free port.", HostPort.parse, "HOST:PORT"
    )
    mesh_listen: HostPort = _setting(
        "0.0.0.0:8091", "Address for peers. Port 0 picks a free port.", HostPort.parse, "HOST:PORT"
    )
    advertise: HostPort | None = _setting(
        None,
        "Address that peers use to reach this node, if they cannot use --mesh-listen.",
        HostPort.parse,
        "HOST:PORT",
    )
    allow_hosts: tuple[str, ...] = _setting(
        None,
        "Another host name that clients may use for this node; repeat for several. '*.example.org' allows every name "
        "below example.org, '*' any. Requests for other names are refused, so that web pages "
        "cannot reach the node by DNS rebinding.",
        parse_host_pattern,
        "NAME",
        repeated_as="allow_host",
    )
    origin: str = _setting(
        "https://huggingface.co",
        "URL of the Hub, or of a mirror. TLS certificates are always verified.",
        _origin,
        "URL",
    )
    offline: bool = _setting(False, "Never contact the origin: serve only what this node and its peers hold.")
    xet: XetUse = _setting(
        "auto",
        "Files to serve over Xet: those above 50 GB, which clients refuse over plain HTTP (auto), "
        "all large files (always), or none (never).",
        choices=("auto", "always", "never"),
    )

    data_dir: Path = _setting("~/.cache/hubmesh", "Directory for blobs and the catalog.", _path, "DIR")
    # None: 90 % of the space that is free or taken by the node's own blobs (see proxy/budget.py).
    max_size: int | None = _setting(
        None,
        "Disk space for blobs, e.g. 200GiB; the least recently used are evicted first. "
        "Default: 90 % of the space that is free or taken by blobs already.",
        parse_size,
        "SIZE",
    )
    hf_cache: Path | None = _setting(
        None, "Existing Hugging Face cache to serve files from and to share disk space with.", _path, "DIR"
    )

    role: Role = _setting("peer", "A seed fetches from the origin for all other nodes.", choices=("peer", "seed"))
    seeds: tuple[HostPort, ...] = _setting(
        None,
        "Mesh address of a seed, or of any running node; repeat for several. "
        "A DNS name with several addresses stands for several seeds.",
        HostPort.parse,
        "HOST:PORT",
        repeated_as="seed",
    )
    mdns: bool = _setting(True, "Discover nodes on the local network by multicast DNS (_hubmesh._tcp.local.).")
    mesh_key_file: Path | None = _setting(None, "File with the secret that all nodes of the mesh share.", _path, "FILE")
    mesh_tls_cert_file: Path | None = _setting(
        None, "Certificate of this node (PEM), for mutual TLS with peers. Needs the next two flags too.", _path, "FILE"
    )
    mesh_tls_private_key_file: Path | None = _setting(None, "Private key of that certificate (PEM).", _path, "FILE")
    mesh_tls_ca_file: Path | None = _setting(
        None,
        "Certificate of the authority that signs the nodes' certificates (PEM). It must sign for this mesh only.",
        _path,
        "FILE",
    )

    max_upload: int | None = _setting(None, "Limit on what is sent to peers, e.g. 500MB/s.", parse_rate, "RATE")
    max_download: int | None = _setting(None, "Limit on what is taken from peers.", parse_rate, "RATE")
    max_origin: int | None = _setting(None, "Limit on what is taken from the origin.", parse_rate, "RATE")

    # Hugging Face clients give up after 10 s without an answer or a byte, by defaults that hardly anyone changes. These
    # timeouts leave time to report the failure, or to try again, before that.
    origin_connect_timeout: float = _setting("4s", "Time to connect to the origin or its CDN.", _time_limit, "TIME")
    origin_metadata_timeout: float = _setting(
        "8s",
        "Time to wait for an answer from the origin about a file, and about a repository if there is an older answer.",
        _time_limit,
        "TIME",
    )
    # Clients wait without a limit for answers about repositories, datasets 100 s.
    origin_silence_timeout: float = _setting(
        "90s",
        "Time an answer about a repository may take to begin, or pause, before the node gives it up.",
        _time_limit,
        "TIME",
    )
    origin_first_byte_timeout: float = _setting(
        "8s", "Time to wait for the first byte of a body from the origin before asking again.", _time_limit, "TIME"
    )
    origin_stall_timeout: float = _setting(
        "5s", "Time a body from the origin may pause before the node breaks it off and resumes it.", _time_limit, "TIME"
    )
    freshness: float = _setting(
        "60s",
        "Time for which an answer about a branch or a listing is used before asking the origin again. "
        "0 asks every time.",
        _age,
        "TIME",
    )
    grant_life: float = _setting(
        "5m",
        "Time for which the Hub's permission for a token to read a repository is remembered. 0 asks every time.",
        _age,
        "TIME",
    )
    # None: chosen in proxy/node.py.
    discovery_timeout: float | None = _setting(
        None,
        "Time to look for peers before the node counts as ready. Default: 3s if seeds are named, 0.6s with mDNS only.",
        _time_limit,
        "TIME",
    )
    # Container engines send SIGKILL 10 s after SIGTERM.
    drain_timeout: float = _setting(
        "8s",
        "Time that running downloads have to finish when the node stops.",
        _wait,
        "TIME",
    )

    log_format: LogFormat = _setting(
        "text", "Log lines for people (text), or one JSON object per line.", choices=("text", "json")
    )
    log_level: str = _setting("info", "Least severe level to log.", choices=("debug", "info", "warning", "error"))

    def changed(self) -> tuple[str, ...]:
        """The names of the flags of all settings that are not at their defaults."""
        return tuple(key_of(setting) for setting in fields(self) if getattr(self, setting.name) != _default(setting))

    @property
    def mesh_tls_files(self) -> tuple[Path, Path, Path] | None:
        """Files with certificate, private key and authority, for `mesh.tls.load_tls`; None without certificates.

        Raises ValueError when only some of the three are set.
        """
        cert, private_key, ca = self.mesh_tls_cert_file, self.mesh_tls_private_key_file, self.mesh_tls_ca_file
        if cert is None and private_key is None and ca is None:
            return None
        if cert is None or private_key is None or ca is None:
            raise ValueError(
                "mesh-tls-cert-file, mesh-tls-private-key-file and mesh-tls-ca-file go together: set all or none"
            )
        return cert, private_key, ca

    def __post_init__(self) -> None:
        _ = self.mesh_tls_files
        own = self.advertise or self.mesh_listen
        if _collide(self.listen, self.mesh_listen):
            raise ValueError(
                f"listen {self.listen} and mesh-listen {self.mesh_listen} overlap: clients and peers need a port each"
            )
        if self.advertise is not None and (self.advertise.wildcard or not self.advertise.port):
            raise ValueError(f"advertise {self.advertise}: no peer can connect to this; give a host and a port")
        for seed in self.seeds:
            if seed.wildcard or not seed.port:
                raise ValueError(f"seed {seed}: no node can connect to this; give a host and a port")
            # Seeds may share one list that names all of them. For any other node, its own address is a mistake.
            if seed == own and self.role != "seed":
                raise ValueError(f"seed {seed} is this node itself: set role to seed, or name another node")
        origin = urlsplit(self.origin)
        port = origin.port or {"http": 80, "https": 443}[origin.scheme]
        if HostPort(origin.hostname or "", port) == self.listen.reachable:
            raise ValueError(f"origin {self.origin} is this node itself: name the Hub or a mirror of it")


def key_of(setting: Field[Any]) -> str:
    """The key of a setting in the file, which is its flag without the leading dashes."""
    about: About = setting.metadata["about"]
    return (about.repeated_as or setting.name).replace("_", "-")


def _default(setting: Field[Any]) -> object:
    """The default of a setting; None if there is none on this machine, as for a folder in a home directory."""
    try:
        return setting.default_factory()  # type: ignore[operator]  # all settings have one
    except ValueError:
        return None


def _collide(one: HostPort, other: HostPort) -> bool:
    """Whether sockets cannot be bound to both addresses at once."""
    return one.port == other.port != 0 and (one.host == other.host or one.wildcard or other.wildcard)
