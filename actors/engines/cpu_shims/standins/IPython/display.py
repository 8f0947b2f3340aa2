"""The two names that `sglang.utils` imports for notebooks."""


class HTML:
    """Text to be shown by a notebook."""

    def __init__(self, data: str) -> None:
        self.data = data


def display(*_: object) -> None:
    """Show nothing: there is no notebook."""
