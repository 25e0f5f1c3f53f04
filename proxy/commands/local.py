"""The node on this machine: how commands find it and talk to it."""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click

from proxy.admin.status import Status, decode
from proxy.commands.options import load, node_settings
from proxy.commands.uri import HfUri
from proxy.settings import Settings

_STATUS = "/-/status"
_TIMEOUT = 10.0  # seconds; a node answers from memory
_PATIENCE = 60.0  # seconds, for actions that may have to ask the Hub

_Command = TypeVar("_Command", bound=Callable[..., Any])


def node_flags(command: _Command) -> _Command:
    """Add the flags that locate the node to a command: --listen, --data-dir and --config. `find` evaluates them."""
    return node_settings("listen", "data_dir")(command)


def find(flags: Mapping[str, Any]) -> LocalNode:
    """Return the node that the flags and the environment mean.

    That is the node at --listen, or at HUBMESH_LISTEN if no data directory is named; else the one recorded in the data
    directory; else the one at HF_ENDPOINT; else the one at the default address.
    """
    settings = load(flags)
    return LocalNode(address(settings, os.environ.get("HF_ENDPOINT", ""), is_listen_given=is_told(settings, flags)))


def is_told(settings: Settings, flags: Mapping[str, Any]) -> bool:
    """Whether `listen` tells which node is meant: not if a data directory was named at least as explicitly.

    The setting says where a node is to listen; the data directory records where the running one does.
    """
    if flags.get("listen") is not None:
        return True
    if flags.get("data_dir") is not None or os.environ.get("HUBMESH_DATA_DIR", "").strip():
        return False
    return bool(os.environ.get("HUBMESH_LISTEN", "").strip()) and settings.listen.port != 0


def address(settings: Settings, hf_endpoint: str, *, is_listen_given: bool) -> str:
    """The URL of the node's client port, without a trailing slash."""
    if not is_listen_given:
        if (listen := _recorded(settings)) is not None:
            return listen
        if settings.listen != Settings().listen:
            return f"http://{settings.listen.reachable}"
        endpoint = urlsplit(hf_endpoint)
        # A path is the prefix of the Hub's name space; the node's own pages are not below it.
        if endpoint.scheme == "http" and endpoint.netloc:
            return f"http://{endpoint.netloc}"
    return f"http://{settings.listen.reachable}"


def _recorded(settings: Settings) -> str | None:
    try:
        record = json.loads((settings.data_dir / "node.json").read_text())
        listen = type(settings.listen).parse(record["listen"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return f"http://{listen.reachable}"


def each(repos: Iterable[HfUri], do: Callable[[HfUri], int]) -> int:
    """Call `do` for each repository; return the greatest exit code. Errors are printed, and do not stop the rest."""
    codes = [0]
    for repo in repos:
        try:
            codes.append(do(repo))
        except click.ClickException as error:
            click.echo(f"hubmesh: {repo.id}: {error.format_message()}", err=True)
            codes.append(error.exit_code)
    return max(codes)


class LocalNode:
    """A client of a node's own pages. Every failure is a ClickException that says what to do."""

    def __init__(self, url: str) -> None:
        self.url = url
        # Never through a proxy: the node is on this machine.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def status(self) -> Status:
        document = self.get(_STATUS)
        try:
            return decode(document)
        except ValueError as error:
            raise click.ClickException(f"the server at {self.url} is not a hubmesh node of this version") from error

    def get(self, path: str) -> bytes:
        return self._open(urllib.request.Request(f"{self.url}{path}"))

    def act(self, action: str, order: Mapping[str, object], token: str | None = None) -> dict[str, int]:
        """Have the node pin, unpin, rm or preheat (see proxy/admin/actions.py); return its result."""
        headers = {"Content-Type": "application/json"}
        if token:
            headers["Authorization"] = f"Bearer {token}"
        body = json.dumps(order).encode()
        answer = self._open(urllib.request.Request(f"{self.url}/-/{action}", body, headers), _PATIENCE)
        try:
            done: dict[str, int] = json.loads(answer)
        except ValueError as error:
            raise click.ClickException(f"the server at {self.url} is not a hubmesh node of this version") from error
        return done

    def _open(self, request: urllib.request.Request, timeout: float = _TIMEOUT) -> bytes:
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                body: bytes = answer.read()
                return body
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 404 and request.selector == _STATUS:
                    raise click.ClickException(f"the server at {self.url} is not a hubmesh node") from error
                raise click.ClickException(
                    _said(error) or f"the node at {self.url} answered HTTP {error.code}"
                ) from error
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise click.ClickException(
                f"no node answers at {self.url} ({reason}). Start one with `hubmesh serve`, or give its address "
                "with --listen, or its directory with --data-dir"
            ) from error


def _said(error: urllib.error.HTTPError) -> str | None:
    try:
        said = json.loads(error.read())["error"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return str(said)
