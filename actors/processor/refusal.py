"""The one way to refuse a request: HTTP's code, a sentence that says what would be right, when to come again."""


class RefusalError(Exception):
    """A request that is not taken; `param` is the field at fault, `retry_after` is in seconds.

    Codes: 400 bad request, 404 no such model, 408 deadline, 409 the id is taken, 413 too large, 429 full,
    500 our own or the engine's fault, 503 gate closed or nobody there.
    """

    def __init__(self, code: int, message: str, *, param: str | None = None, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
