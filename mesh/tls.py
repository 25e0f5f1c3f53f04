"""Mutual TLS between nodes: only nodes with a certificate of the mesh's own authority are let in.

Both sides of every connection present a certificate. The authority and the dates are checked, but not the name, because
nodes are reached at addresses that change. So the authority must serve this mesh alone.
"""

from __future__ import annotations

import contextlib
import ssl
from dataclasses import dataclass
from pathlib import Path

# X509_V_FLAG_NO_CHECK_TIME, for which `ssl` has no name.
_ANY_TIME = 0x200000
_TURNS = 8  # rounds of a handshake in memory; three are enough


@dataclass(frozen=True, slots=True)
class Tls:
    """The contexts for both ends of a connection, and this node's certificate's dates in seconds since the epoch."""

    server: ssl.SSLContext
    client: ssl.SSLContext
    begins_at: float
    ends_at: float

    def trouble(self, now: float) -> str:
        """Why other nodes reject this node's certificate at the time `now`; empty when they accept it."""
        if now < self.begins_at:
            return "is not valid yet: is the clock right?"
        return "has expired" if now >= self.ends_at else ""


def load_tls(cert_file: Path, private_key_file: Path, ca_file: Path) -> Tls:
    """Load the three PEM files, and try them in a handshake of the node with itself.

    Raises ValueError or OSError that says what is wrong. An expired certificate is no error: a node may be started
    before its clock is right, and serves its clients even without other nodes.
    """
    for file in (cert_file, private_key_file, ca_file):
        with file.open("rb") as readable:  # `ssl` would not say which file it cannot read
            readable.read(1)
    server, client = (
        _context(protocol, cert_file, private_key_file, ca_file)
        for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT)
    )
    begins_at, ends_at = _try(cert_file, private_key_file, ca_file)
    return Tls(server, client, begins_at, ends_at)


def _context(protocol: ssl._SSLMethod, cert_file: Path, private_key_file: Path, ca_file: Path) -> ssl.SSLContext:
    def password() -> bytes:
        raise ValueError(f"{private_key_file} is protected by a password: a node cannot be asked for it")

    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the authority may be an intermediate one
    # Every connection presents certificates: a resumed session would outlive the certificate it began with.
    context.options |= ssl.OP_NO_TICKET | ssl.OP_NO_RENEGOTIATION
    if protocol is ssl.PROTOCOL_TLS_SERVER:
        context.num_tickets = 0
    try:
        context.load_cert_chain(cert_file, private_key_file, password)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ValueError(f"{private_key_file} is not the private key of the certificate in {cert_file}") from error
        raise ValueError(f"{cert_file} and {private_key_file} do not hold a certificate and its key (PEM)") from error
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as error:
        raise ValueError(f"{ca_file} does not hold the certificate of an authority (PEM)") from error
    return context


def _try(cert_file: Path, private_key_file: Path, ca_file: Path) -> tuple[float, float]:
    """Try a handshake in memory between two nodes with these files, whatever the date; returns the certificate's dates.

    Raises ValueError when one would not let the other in.
    """
    contexts = []
    for protocol in (ssl.PROTOCOL_TLS_SERVER, ssl.PROTOCOL_TLS_CLIENT):
        context = _context(protocol, cert_file, private_key_file, ca_file)
        context.verify_flags |= _ANY_TIME
        contexts.append(context)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = contexts[0].wrap_bio(there, back, server_side=True)
    client = contexts[1].wrap_bio(back, there)
    try:
        for _ in range(_TURNS):
            for side in (client, server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    side.do_handshake()
    except ssl.SSLCertVerificationError as error:
        raise ValueError(f"{cert_file} is no good with {ca_file}: {error.verify_message}") from error
    except ssl.SSLError as error:
        raise ValueError(f"{cert_file} is no good: {error}") from error
    certificate = client.getpeercert() or {}
    begins, ends = (str(certificate[name]) for name in ("notBefore", "notAfter"))
    return float(ssl.cert_time_to_seconds(begins)), float(ssl.cert_time_to_seconds(ends))
