"""The `hubmesh` command. Each sub-command is a module of its own, imported only when it is used."""

from __future__ import annotations

import importlib
import sys

import click

from proxy.version import VERSION

# Command → module under proxy.commands, in the order of the help text.
_COMMANDS = {
    "serve": "serve",
    "status": "status",
    "pull": "pull",
    "preheat": "preheat",
    "pin": "pin",
    "unpin": "pin",
    "ls": "ls",
    "rm": "rm",
    "doctor": "doctor",
}


class _Group(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _COMMANDS:
            return None
        module = importlib.import_module(f"proxy.commands.{_COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(VERSION, prog_name="hubmesh")
def hubmesh() -> None:
    """Local stand-in for huggingface.co: the nodes of a site fetch every byte from the Hub once and share it.

    Start a node with `hubmesh serve`, then set HF_ENDPOINT=http://localhost:8090 for every program that downloads
    from the Hub.
    """


def main() -> None:
    """Run the command line and exit. Errors are one line on stderr; the exit code is 2 for a bad flag or setting."""
    try:
        code = hubmesh.main(prog_name="hubmesh", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.ClickException as error:
        click.echo(f"hubmesh: {' '.join(error.format_message().split())}", err=True)
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:  # `hubmesh ls | head`
        sys.stderr.close()
        code = 0
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
