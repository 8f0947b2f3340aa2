"""Where an attempt goes: one function of the prompt, who is ready, and how loaded they are.

Power of two choices: of two seats drawn at random, the less loaded. It is nearly as even as always taking the least
loaded, and many processors with the same old figures do not all run to the same seat (Mitzenmacher, "The power of two
choices in randomized load balancing", 1996). Routing by what prefixes a seat has in its KV cache belongs here too.
"""

import random
from collections.abc import Mapping, Sequence

from actors.processor.view import Seat


def choose(prompt: bytes, seats: Sequence[Seat], refused: Mapping[str, int], chance: random.Random) -> Seat | None:
    """Choose a seat for a prompt (packed token ids) among those that are ready, or None if none can take it now.

    `refused` tells at which version of it an incarnation has refused this request: it is asked again only after
    something changed there.
    """
    open_to_it = [seat for seat in seats if not seat.full and refused.get(seat.incarnation) != seat.version]
    if len(open_to_it) < 2:
        return open_to_it[0] if open_to_it else None
    one, other = chance.sample(open_to_it, 2) if len(open_to_it) > 2 else open_to_it
    if one.load == other.load:
        return one if chance.random() < 0.5 else other
    return one if one.load < other.load else other
