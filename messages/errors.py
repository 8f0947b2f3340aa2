"""Errors of the bus by name, and the headers in which one travels to the other side."""


class BusError(Exception):
    """The bus cannot be used as asked; the text says what is wrong and what would be right."""


class NobodyThereError(BusError):
    """No one is subscribed to the subject: told at once by the server, never by a time-out."""


class SilentError(BusError):
    """Somebody is subscribed but did not answer in time."""


class TakenError(BusError):
    """A compare-and-set found another value than the one expected."""


class ServiceError(Exception):
    """An error answered by the other side, with HTTP's code for it."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def error_headers(code: int, message: str) -> dict[str, str]:
    """Make the headers of an error answer (ADR-32); header values can hold neither line breaks nor other than ASCII."""
    clean = " ".join(message.split()).encode("ascii", "replace").decode()
    return {"Nats-Service-Error-Code": str(code), "Nats-Service-Error": clean[:1_024]}
