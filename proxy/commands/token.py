"""Tokens as people give them to a command: a flag, a variable, what `hf auth login` left."""

from __future__ import annotations

import os
import re

import click

_TOKEN = re.compile(r"[!-~]*")  # what a header can carry


class _Token(click.ParamType[str]):
    name = "token"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        # A newline at the end is the file's that it was read from. The text itself is nobody's to see.
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
    """The token any other client on this machine would use. Raises BadParameter when it cannot be one."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return _TYPE.convert(token, None, None)
    from huggingface_hub import get_token

    return get_token()
