"""Certificates for tests, made with the command of docs/security.md: an authority, and certificates of nodes."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """Three PEM files, as the settings want them."""

    cert: Path
    key: Path
    ca: Path

    @property
    def flags(self) -> tuple[str, ...]:
        return (
            *("--mesh-tls-cert-file", str(self.cert)),
            *("--mesh-tls-private-key-file", str(self.key)),
            *("--mesh-tls-ca-file", str(self.ca)),
        )


class Authority:
    """A certificate authority. `folder` holds everything it made."""

    def __init__(self, folder: Path, name: str = "mesh") -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._name = name
        self._key, self._cert = folder / f"{name}-ca.key", folder / f"{name}-ca.pem"
        _openssl("req", "-x509", *_new(self._key), "-subj", f"/CN={name}", "-days", "30", "-out", self._cert)

    def sign(
        self, name: str, *, begins: str = "", ends: str = "", days: int = 7, usage: str = "", address: str = ""
    ) -> Certificate:
        """Sign a node's certificate. `begins` and `ends` (YYYYMMDDHHMMSSZ) replace `days`; `usage` restricts its use.

        With an IP `address` it is the certificate of a web server there.
        """
        key, request, cert = (self._folder / f"{self._name}-{name}.{end}" for end in ("key", "csr", "pem"))
        _openssl("req", "-new", *_new(key), "-subj", f"/CN={name}", "-out", request)
        extensions = self._folder / f"{self._name}-{name}.ext"
        lines = {"extendedKeyUsage": usage, "subjectAltName": f"IP:{address}" if address else ""}
        extensions.write_text("".join(f"{name}={value}\n" for name, value in lines.items() if value))
        if begins:
            database = self._folder / f"{self._name}-{name}.db"
            database.write_text("")
            config = self._folder / f"{self._name}-{name}.cnf"
            config.write_text(
                f"[ca]\ndefault_ca=a\n[a]\ndatabase={database}\nnew_certs_dir={self._folder}\nrand_serial=yes\n"
                "default_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n"
            )
            signer = ("-cert", self._cert, "-keyfile", self._key, "-startdate", begins, "-enddate", ends)
            _openssl("ca", "-batch", "-notext", "-config", config, *signer, "-in", request, "-out", cert)
        else:
            signer = ("-CA", self._cert, "-CAkey", self._key, "-CAcreateserial", "-days", str(days))
            _openssl("x509", "-req", "-in", request, *signer, "-extfile", extensions, "-out", cert)
        return Certificate(cert, key, self._cert)


def _new(key: Path) -> tuple[str | Path, ...]:
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", key)


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
