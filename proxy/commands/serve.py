"""`hubmesh serve`: run a node."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

from mesh.auth import load_key
from mesh.errors import MeshError
from mesh.proxies import proxy_of
from mesh.tls import load_tls
from proxy import logs
from proxy.commands.options import SettingsError, load, node_settings
from proxy.settings import Settings

_NO_PLACE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.EINVAL, errno.EOPNOTSUPP)


@click.command()
@node_settings()
def serve(**flags: Any) -> int:
    """Run a node until SIGTERM, SIGHUP or Ctrl-C.

    Each flag is also an environment variable (--max-size is HUBMESH_MAX_SIZE) and a key of the configuration file. A
    flag overrides the environment, and the environment overrides the file.
    """
    settings = load(flags)
    _check_paths(settings)
    if not settings.offline:
        _check_proxy(settings)
    logs.set_up(settings.log_format, settings.log_level)
    from proxy.node import run

    try:
        return run(settings)
    except MeshError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise click.ClickException(f"{where}{error.strerror or error}") from error


def _check_paths(settings: Settings) -> None:
    """Raise SettingsError for files and directories that are missing or unusable, before anything starts."""
    key, cache = settings.mesh_key_file, settings.hf_cache
    if key is not None:
        try:
            load_key(key)
        except OSError as error:
            raise SettingsError(f"mesh-key-file {key}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"mesh-key-file {error}") from error
    if settings.mesh_tls_files is not None:
        try:
            load_tls(*settings.mesh_tls_files)
        except OSError as error:
            raise SettingsError(f"mesh-tls: {error.filename}: {error.strerror}") from error
        except ValueError as error:
            raise SettingsError(f"mesh-tls: {error}") from error
    if cache is not None and not _is_directory(cache, "hf-cache"):
        raise SettingsError(f"hf-cache {cache}: no such directory")
    # The nearest existing parent has to be a directory that this process may write to.
    data = settings.data_dir
    for path in (data, *data.absolute().parents):
        if (is_directory := _is_directory(path, "data-dir")) is not None:
            if not is_directory or not os.access(path, os.W_OK | os.X_OK):
                raise SettingsError(f"data-dir {data}: cannot write in {path}")
            break
    try:
        data.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=data):
            pass
    except OSError as error:
        # /proc and similar file systems accept no files, whatever their permissions say. A full or broken disk is not a
        # wrong setting.
        if error.errno in _NO_PLACE:
            raise SettingsError(f"data-dir {data}: cannot write there: {error.strerror}") from error


def _check_proxy(settings: Settings) -> None:
    """Raise SettingsError if the proxy to the Hub is one that a node cannot use."""
    hub = urlsplit(settings.origin)
    try:
        proxy_of(hub.scheme, hub.hostname or "")
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _is_directory(path: Path, setting: str) -> bool | None:
    """Whether `path` is a directory; None if it does not exist. Raises SettingsError if this cannot be determined."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise SettingsError(f"{setting} {path}: {error.strerror}") from error
