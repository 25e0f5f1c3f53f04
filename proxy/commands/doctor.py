"""`hubmesh doctor`: find mistakes in the setup, and say how to correct them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from proxy.admin.status import Status
from proxy.commands import checks
from proxy.commands.checks import Finding
from proxy.commands.local import LocalNode, address, is_told
from proxy.commands.options import load, node_settings
from proxy.settings import Settings

_MARKS = {"good": "ok ", "note": "-- ", "bad": "BAD"}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list of objects.")
@node_settings()
def doctor(as_json: bool, **flags: Any) -> int:
    """Find mistakes in the setup and say how to correct them. Exits with 1 if there are any.

    Run it where the clients run, with the settings of the node: it checks both. It sends the origin two small
    requests, one of them with your token.
    """
    settings = load(flags)
    findings = list(examine(settings, os.environ, is_listen_given=is_told(settings, flags)))
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            click.echo(f"{_MARKS[finding.level]} {finding.about:<12} {finding.what}")
            if finding.cure:
                click.echo(f"{'':16} → {finding.cure}")
    return int(any(finding.level == "bad" for finding in findings))


def examine(settings: Settings, environment: Mapping[str, str], *, is_listen_given: bool) -> Iterator[Finding]:
    """Run all checks, one after the other."""
    # HF_ENDPOINT, which the clients use, is itself checked, so it is not used to find the node.
    node = LocalNode(address(settings, "", is_listen_given=is_listen_given))
    status = _ask(node)
    yield from checks.node(status, node.url, settings)
    yield from checks.told(settings, status)
    yield from checks.clients(environment, node.url)
    yield from checks.xet(settings, environment)
    yield from checks.origin(settings)
    yield from checks.token(settings, _token())
    yield from checks.disk(settings, status)
    yield from checks.mesh(settings, status)


def _ask(node: LocalNode) -> Status | None:
    try:
        return node.status()
    except click.ClickException:
        return None


def _token() -> str | None:
    from huggingface_hub import get_token

    return get_token()
