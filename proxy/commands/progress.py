"""Progress of parallel downloads on a terminal: a line per file, and a last line with the total, speed and sources."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from proxy.units import format_size

if TYPE_CHECKING:
    from typing import Self

_TICK = 0.2  # seconds between two updates of the display
_SPEED_SECONDS = 3.0  # the displayed speed is the average over this time
_BAR = 24  # characters
_MAX_LINES = 12  # files shown at once; the others are only part of the last line


class Stopped(Exception):
    """Raised inside the downloads once they are to stop."""


class FileBar:
    """Progress of one file, with the parts of tqdm's interface that huggingface_hub's downloader uses."""

    disable = False

    def __init__(self, progress: Progress, name: str, size: int) -> None:
        self.name = name
        self.total: float | None = size
        self.n = 0.0
        self._progress = progress

    def update(self, count: float = 1) -> None:
        """Add `count` bytes, negative to take some back. Raises Stopped."""
        self._progress.advance(self, count)

    def refresh(self, *_: object, **__: object) -> None:
        """Do nothing: `Progress` draws at its own intervals."""

    set_description = set_postfix_str = set_postfix = reset = refresh

    def close(self) -> None:
        """Do nothing: `Progress.finish` removes the line."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Progress:
    """Progress of all files. A context manager that draws while it is open, if `out` is a terminal.

    `sources` returns the text at the end of the last line, such as where the bytes come from. It is called about once a
    second, in a thread of its own.
    """

    def __init__(self, size: int, count: int, out: TextIO, sources: Callable[[], str]) -> None:
        self.size = size
        self.count = count
        self.done = 0
        self.arrived = 0.0
        self._out = out
        self._sources = sources
        self._said = ""
        self._bars: list[FileBar] = []
        self._history = [(time.monotonic(), 0.0)]
        self._lock = threading.Lock()
        self._is_over = threading.Event()
        self._is_stopped = False
        self._drawn = 0
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._draw, self._listen)]

    def bar(self, name: str, size: int) -> FileBar:
        """Add a line for a file, which stays until `finish`."""
        bar = FileBar(self, name, size)
        with self._lock:
            self._bars.append(bar)
        return bar

    def finish(self, bar: FileBar, *, is_good: bool) -> None:
        """Remove the line of a file. A good file counts in full, even if only a part had to be downloaded."""
        with self._lock:
            self._bars.remove(bar)
            self.arrived += (bar.total or 0) - bar.n if is_good else -bar.n
            self.done += is_good

    def advance(self, bar: FileBar, count: float) -> None:
        if self._is_stopped:
            raise Stopped
        with self._lock:
            bar.n += count
            self.arrived += count

    def stop(self) -> None:
        """Make every running download end with Stopped."""
        self._is_stopped = True

    def tqdm(self, bar: FileBar) -> Any:
        """Return a stand-in for a tqdm class whose only instance is `bar`."""
        return lambda *_, **__: bar

    def __enter__(self) -> Self:
        if self._out.isatty():
            for thread in self._threads:
                thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        if self._out.isatty():
            self._threads[0].join()
            self._out.write(f"\x1b[{self._drawn}F\x1b[J" if self._drawn else "")
            self._out.flush()

    def lines(self, now: float, width: int) -> Iterator[str]:
        """Yield the lines to display, cut to `width` characters. `now` is in seconds on a monotonic clock."""
        with self._lock:
            bars, arrived = self._bars[:_MAX_LINES], self.arrived
            self._history.append((now, arrived))
            while len(self._history) > 2 and self._history[1][0] < now - _SPEED_SECONDS:
                self._history.pop(0)
            (then, before), done = self._history[0], self.done
        for bar in bars:
            yield _line(bar.n, bar.total or 0, bar.name, width)
        speed = max(0.0, arrived - before) / (now - then) if now > then else 0.0
        words = f"{done}/{self.count} files  {format_size(speed)}/s  {self._said}"
        yield _line(arrived, self.size, words, width)

    def _draw(self) -> None:
        while not self._is_over.wait(_TICK):
            width = shutil.get_terminal_size().columns
            lines = list(self.lines(time.monotonic(), width - 1))
            # Go up to our first line, overwrite each line and clear the rest of the screen: this avoids flicker.
            up = f"\x1b[{self._drawn}F" if self._drawn else ""
            self._out.write(up + "".join(f"{line}\x1b[K\n" for line in lines) + "\x1b[J")
            self._out.flush()
            self._drawn = len(lines)

    def _listen(self) -> None:
        while not self._is_over.wait(1.0):
            self._said = self._sources()


def _line(n: float, total: float, words: str, width: int) -> str:
    share = min(1.0, n / total) if total else 1.0
    full = int(share * _BAR)
    text = f"{share:4.0%} {'█' * full}{'░' * (_BAR - full)} {format_size(n):>8} of {format_size(total):<8} {words}"
    return text if len(text) <= width else text[: max(0, width - 1)] + "…"
