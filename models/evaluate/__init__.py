"""How well troupe-small-chat does: held-out requests, the right answers, and ways to ask for them."""
