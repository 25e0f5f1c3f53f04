"""Tokens for a command: from a flag, a variable, or the file that `hf auth login` writes."""

from __future__ import annotations

import os
import re

import click

_TOKEN = re.compile(r"[!-~]*")  # the characters allowed in a header


class _Token(click.ParamType[str]):
    name = "token"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # A trailing newline comes from the file that the token was read from. Errors must not show the token.
        if not _TOKEN.fullmatch(token := value.strip()):
            self.fail("the token contains blanks or non-ASCII characters", param, ctx)
        return token


_TYPE = _Token()
token_option = click.option(
    "--token",
    type=_TYPE,
    metavar="TEXT",
    help="For gated and private repositories.  [HF_TOKEN, or the one saved by `hf auth login`]",
)


def usual() -> str | None:
    """The token that other clients on this machine use; None without one. Raises BadParameter for a bad HF_TOKEN."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return _TYPE.convert(token, None, None)
    from huggingface_hub import get_token

    return get_token()
