"""A request to the page's server that is refused: with a status and a sentence."""


class RefusalError(Exception):
    """The request is refused; the sentence says why, and what would be right."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
