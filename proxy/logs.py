"""Log lines as text or JSON, with secrets removed."""

from __future__ import annotations

import logging
import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import TextIO

import msgspec
from aiohttp.http_exceptions import HttpProcessingError

_HIDDEN = "[hidden]"


@dataclass(frozen=True, slots=True)
class _Secret:
    """The form of a secret. Every text that contains one has at least one of `words` in it, in any case."""

    words: tuple[str, ...]
    pattern: re.Pattern[str]
    instead: str


_SECRETS = (
    # A URL's user name and password, and its query, which holds signatures.
    _Secret(("://",), re.compile(r"(?i)(https?://)[^\s/?#@'\"<>]+@"), r"\1"),
    _Secret(("://",), re.compile(r"(?i)(https?://[^\s?#'\"<>]+)\?[^\s'\"<>]+"), rf"\1?{_HIDDEN}"),
    _Secret(
        ("x-amz-", "signature=", "policy=", "key-pair-id=", "sig=", "se="),
        re.compile(r"(?i)([?&](?:x-amz-[\w-]+|(?:x-goog-)?signature|policy|key-pair-id|sig|se)=)[^&\s'\"]+"),
        rf"\1{_HIDDEN}",
    ),
    _Secret(
        ("authorization",),
        re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?)(?:(?:bearer|basic)\s+)?[^\s'\",}]+"),
        rf"\1{_HIDDEN}",
    ),
    _Secret(("bearer", "basic"), re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]{6,}"), rf"\1 {_HIDDEN}"),
    _Secret(
        ("token",),
        re.compile(r"(?i)((?:access|refresh|id)?[-_]?token['\"]?\s*[:=]\s*['\"]?)[^\s&'\",})]+"),
        rf"\1{_HIDDEN}",
    ),
    _Secret(
        ("hf_", "api_org_"), re.compile(r"\b(?:hf|api_org|hf_oauth|hf_app)_(?!transfer\b)[A-Za-z0-9]{6,}"), _HIDDEN
    ),
    _Secret(("eyj",), re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"), _HIDDEN),  # a JSON web token
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_OWN_FIELDS = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "request_id"}


def redact(text: str) -> str:
    """The text without tokens, passwords and the queries of URLs."""
    folded = text.casefold()  # searching for the words is cheap, and most lines have none of them
    for secret in _SECRETS:
        for word in secret.words:
            if word in folded:
                text = secret.pattern.sub(secret.instead, text)
                break
    return text


def set_up(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Send all log lines of this process to `stream` (stderr if None), as "text" or "json"."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # Our formats have no source location, thread or process, so do not collect them (Logging HOWTO, "Optimization").
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # They log every packet and selector, which does not help an operator.
    for name in ("asyncio", "zeroconf"):
        logging.getLogger(name).setLevel(max(logging.INFO, logging.getLevelName(level.upper())))
    logging.getLogger("aiohttp.server").addFilter(_is_worth_it)


def _is_worth_it(record: logging.LogRecord) -> bool:
    """Whether to log a record of aiohttp: not a traceback for each malformed request, which anybody could send."""
    if record.exc_info is None or not isinstance(record.exc_info[1], HttpProcessingError):
        return True
    record.levelno, record.levelname, record.exc_info = logging.DEBUG, "DEBUG", None
    return logging.getLogger().isEnabledFor(logging.DEBUG)


class TextFormatter(logging.Formatter):
    """``2026-01-31T10:00:00.123Z INFO proxy.node: message [request id]``, with a traceback on the following lines."""

    def format(self, record: logging.LogRecord) -> str:
        # The message may contain text from a client, which must not be able to add lines.
        message = record.getMessage()
        if not message.isprintable():
            message = _CONTROL.sub(lambda match: ascii(match[0])[1:-1], message)
        request_id = getattr(record, "request_id", "")
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {message}"
        if request_id:
            line += f"  [{_CONTROL.sub('?', request_id)}]"
        return redact("\n".join([line, *filter(None, [_traceback(self, record)])]))


class JsonFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, request_id and exception if any, and `extra` fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": redact(record.getMessage()),
        }
        if request_id := getattr(record, "request_id", ""):
            fields["request_id"] = redact(request_id)
        for name, value in vars(record).items():
            if name not in _OWN_FIELDS and value is not None:
                # Redacted together with its name, so that a field called "token" hides its value.
                fields[name] = redact(f"{name}={value}").removeprefix(f"{name}=")
        if traceback := _traceback(self, record):
            fields["exception"] = redact(traceback)
        return msgspec.json.encode(fields).decode()


def _time(record: logging.LogRecord) -> str:
    second, part = divmod(record.created, 1)
    return f"{_second(int(second))}.{int(part * 1000):03d}Z"


@lru_cache(2)
def _second(second: int) -> str:
    return f"{datetime.fromtimestamp(second, UTC):%Y-%m-%dT%H:%M:%S}"


def _traceback(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    parts = [formatter.formatException(record.exc_info)] if record.exc_info and record.exc_info[0] else []
    if record.stack_info:
        parts.append(formatter.formatStack(record.stack_info))
    return "\n".join(parts)
