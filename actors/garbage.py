"""When Python looks for cyclic garbage: seldom, and never again among what an actor has loaded before its work.

A look at everything stops the event loop: 60 ms in a processor, more beside an engine. What was loaded stays until the
end, so it need not be looked at. Of what requests leave behind most is freed by its reference counts; the cycles among
it may wait until there are some megabytes of them.
"""

import gc
from typing import Final

NEW: Final = 10_000
"""Objects that may come into being, more than go, until Python looks among the young ones; its default is 700, about
what forty requests under way hold."""


def settle() -> None:
    """All that lives as long as the process is there: leave it alone from here on."""
    gc.freeze()
    gc.set_threshold(NEW, *gc.get_threshold()[1:])
