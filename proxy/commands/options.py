"""The settings of a node from flags, environment variables and a TOML file, in that order of precedence."""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from proxy.settings import About, Settings, key_of

ENV_PREFIX = "HUBMESH_"
CONFIG_FILES = ("~/.config/hubmesh/node.toml", "/etc/hubmesh/node.toml")

# Kubernetes sets HUBMESH_SERVICE_HOST, HUBMESH_PORT_8090_TCP_ADDR and similar variables in all containers of a
# namespace with a service called hubmesh (or hubmesh-seed …). They are not misspelt settings.
_SERVICE_LINK = re.compile(
    r"(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)", re.ASCII
)
_YES_AND_NO = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}

_Command = TypeVar("_Command", bound=Callable[..., Any])


class SettingsError(click.ClickException):
    """An invalid setting. The message says where it was found; the exit code is 2, as for bad flags."""

    exit_code = 2


def node_settings(*only: str) -> Callable[[_Command], _Command]:
    """Add the flags of `Settings` (`only` for these fields, if any are named) and --config to a command.

    The command is called with them as keyword arguments, which `load` turns into settings.
    """

    def decorate(command: _Command) -> _Command:
        for setting in reversed(dataclasses.fields(Settings)):
            if not only or setting.name in only:
                command = _option(setting)(command)
        return click.option(
            "--config",
            type=click.Path(path_type=Path),
            help=f"TOML file with settings.  [{' or else '.join(CONFIG_FILES)}, if present]",
        )(command)

    return decorate


def load(flags: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings from flags, environment and file. Raises SettingsError."""
    known = {_variable(setting) for setting in dataclasses.fields(Settings)} | {f"{ENV_PREFIX}CONFIG"}
    for name in sorted(environment):
        short = name.removeprefix(ENV_PREFIX)
        if short != name and name not in known and not _SERVICE_LINK.fullmatch(short):
            raise SettingsError(f"{name}: no such setting{_did_you_mean(name, known)}")
    file = flags.get("config") or environment.get(f"{ENV_PREFIX}CONFIG")
    in_file = _read_file(Path(file) if file else _usual_file())
    values = {}
    for setting in dataclasses.fields(Settings):
        for where, raw in _candidates(setting, flags, environment, in_file):
            try:
                values[setting.name] = _parse(setting.metadata["about"], raw)
            except ValueError as error:
                raise SettingsError(f"{where}: {error}") from error
            break
    try:
        return Settings(**values)
    except ValueError as error:
        raise SettingsError(str(error)) from error


def _variable(setting: dataclasses.Field[Any]) -> str:
    return ENV_PREFIX + key_of(setting).replace("-", "_").upper()


def _option(setting: dataclasses.Field[Any]) -> Callable[[_Command], _Command]:
    about: About = setting.metadata["about"]
    key = key_of(setting)
    default = {None: "none", True: "on", False: "off"}.get(about.default, about.default)  # type: ignore[arg-type]
    return click.option(
        f"--{key}/--no-{key}" if about.parse is None else f"--{key}",
        setting.name,
        # `load` parses all values, from whatever source. A flag that is not given is None.
        default=None,
        metavar="|".join(about.choices) or about.metavar,
        multiple=about.repeated_as is not None,
        help=about.help if "Default:" in about.help else f"{about.help}  [{default}]",
    )


def _candidates(
    setting: dataclasses.Field[Any],
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    in_file: Mapping[str, tuple[str, Any]],
) -> Iterator[tuple[str, Any]]:
    """Yield where a setting is set and its raw value there, in order of precedence."""
    key, variable = key_of(setting), _variable(setting)
    repeated = setting.metadata["about"].repeated_as
    if (raw := flags.get(setting.name)) not in (None, ()):
        yield f"--{key}", raw
    # Container templates set a variable to an empty string to mean "not set".
    if text := environment.get(variable, "").strip():
        yield variable, re.split(r"[\s,]+", text) if repeated else text
    if key in in_file:
        yield in_file[key]


def _parse(about: About, raw: Any) -> Any:
    if about.repeated_as is not None:
        return tuple(_parse_one(about, item) for item in (raw if isinstance(raw, list | tuple) else [raw]))
    return _parse_one(about, raw)


def _parse_one(about: About, raw: Any) -> Any:
    if about.parse is None:
        if (answer := _YES_AND_NO.get(str(raw).lower())) is None:
            raise ValueError(f"{raw!r} is neither true nor false")
        return answer
    if not isinstance(raw, str | int | float) or isinstance(raw, bool) or str(raw).strip() == "":
        raise ValueError(
            f"{raw!r} is not {'a valid ' + about.metavar if about.metavar else 'one of ' + ', '.join(about.choices)}"
        )
    if about.choices and str(raw).lower() not in about.choices:
        raise ValueError(f"{raw!r} is not one of {', '.join(about.choices)}")
    return about.parse(raw if not about.choices else str(raw).lower())


def _usual_file() -> Path | None:
    for name in CONFIG_FILES:
        try:
            path = Path(name).expanduser()
            if stat.S_ISREG(path.stat().st_mode):
                return path
        except RuntimeError:  # no home directory, as for users in some containers
            continue
        except PermissionError:
            # A home directory that this user may not read belongs to another user; skip it. The machine's own file was
            # meant for this node, so report the error.
            if not name.startswith("~"):
                return path
        except OSError:
            continue
    return None


def _read_file(file: Path | None) -> dict[str, tuple[str, Any]]:
    """Read a TOML file: key → (where it is set, raw value). Raises SettingsError."""
    if file is None:
        return {}
    try:
        values = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SettingsError(f"{file}: {error.strerror if isinstance(error, OSError) else error}") from error
    known = [key_of(setting) for setting in dataclasses.fields(Settings)]
    found = {}
    for name, value in values.items():
        key = name.replace("_", "-")
        if key not in known:
            raise SettingsError(f"{file}: {name}: no such setting{_did_you_mean(key, known)}")
        found[key] = (f"{file}: {name}", value)
    return found


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""
