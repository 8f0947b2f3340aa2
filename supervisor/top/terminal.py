"""The terminal of `troupe top`: keys in, rows out, by curses; the one file that touches it."""

import asyncio
import contextlib
import curses
import locale
import os
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Final

from supervisor.top.screen import Row, Style

KEYS: Final = {
    curses.KEY_UP: "up",
    curses.KEY_DOWN: "down",
    curses.KEY_ENTER: "enter",
    curses.KEY_BACKSPACE: "backspace",
    10: "enter",
    13: "enter",
    27: "escape",
    127: "backspace",
    8: "backspace",
    3: "q",
}
COLOURS: Final = {"good": curses.COLOR_GREEN, "busy": curses.COLOR_YELLOW, "bad": curses.COLOR_RED}
ESCAPE_MS: Final = 25


class Terminal:
    """A terminal in the hands of curses; `on_key` is called with each key, `on_size` when it has another size."""

    def __init__(self, window: "curses.window") -> None:
        self._window = window
        self._styles: dict[Style, int] = {
            "plain": curses.A_NORMAL,
            "bold": curses.A_BOLD,
            "dim": curses.A_DIM,
            "chosen": curses.A_REVERSE,
            "good": curses.A_NORMAL,
            "busy": curses.A_BOLD,
            "bad": curses.A_BOLD,
        }
        self._encoding = locale.getpreferredencoding(False)
        if curses.has_colors() and not os.environ.get("NO_COLOR"):
            curses.use_default_colors()
            for number, (style, colour) in enumerate(COLOURS.items(), start=1):
                curses.init_pair(number, colour, -1)
                self._styles[style] |= curses.color_pair(number)  # type: ignore[index]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, in characters."""
        height, width = self._window.getmaxyx()
        return width, height

    def listen(self, on_key: Callable[[str], None], on_size: Callable[[], None]) -> None:
        """Call back with keys and changes of size, from the running loop."""
        loop = asyncio.get_running_loop()

        def read() -> None:
            while (code := self._window.getch()) != -1:
                if code == curses.KEY_RESIZE:
                    on_size()
                elif key := KEYS.get(code) or (chr(code) if 32 <= code < 127 else ""):
                    on_key(key)

        def resized() -> None:
            size = os.get_terminal_size(sys.stdout.fileno())
            curses.resizeterm(size.lines, size.columns)
            on_size()

        loop.add_reader(sys.stdin.fileno(), read)
        loop.add_signal_handler(signal.SIGWINCH, resized)

    def paint(self, rows: list[Row]) -> None:
        """Show these rows; curses sends what has changed."""
        self._window.erase()
        width, height = self.size
        for at, row in enumerate(rows[:height]):
            column = 0
            for text, style in row:
                shown = text.encode(self._encoding, "replace").decode(self._encoding)[: width - column]
                # Writing the last cell of the screen is an error to curses, though it is written.
                with contextlib.suppress(curses.error):
                    self._window.addstr(at, column, shown, self._styles[style])
                column += len(shown)
        self._window.refresh()


@contextlib.contextmanager
def opened() -> Iterator[Terminal]:
    """Take the terminal, and give it back as it was, whatever happens. Raises curses.error for one of no known kind."""
    locale.setlocale(locale.LC_ALL, "")
    curses.setupterm()
    if not curses.tigetstr("cup"):
        raise curses.error("it cannot write to a place of its screen")
    window = curses.initscr()
    try:
        curses.noecho()
        curses.raw()
        window.keypad(True)
        window.nodelay(True)
        curses.set_escdelay(ESCAPE_MS)
        with contextlib.suppress(curses.error):
            curses.curs_set(0)
        with contextlib.suppress(curses.error):
            curses.start_color()
        yield Terminal(window)
    finally:
        window.keypad(False)
        curses.noraw()
        curses.echo()
        curses.endwin()
