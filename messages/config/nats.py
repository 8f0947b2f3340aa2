"""Which NATS server a cluster uses, and its URLs: which can be used, and how they are shown without their secrets."""

from typing import Annotated, Final

from msgspec import Meta

from messages.config.written import Port, Seconds, Written

SCHEMES: Final = ("nats", "tls")
"""What a NATS URL may begin with. nats-py also knows ws:// and wss://, which nothing here needs or tests."""


class Tls(Written, kw_only=True):
    """Files for TLS to NATS: the authority to trust, and a certificate and key of our own."""

    ca: str | None = None
    cert: str | None = None
    key: str | None = None


class Nats(Written, kw_only=True):
    """Which NATS server to use; without a URL the supervisor starts one of its own on a free loopback port.

    `url` is one or a list of them (nats:// or tls://). `port` and `max_payload` (bytes) are for a server of our
    own; port 0 is a free one. `credentials` is a file as `nsc generate creds` makes (it needs `pip install
    'troupe[credentials]'`). `grace` is how many seconds an actor goes on without NATS before it exits.
    `password_file` is a file whose first line is the password, as managers of containers hand out secrets.
    """

    url: str | list[str] = []
    user: str | None = None
    password: str | None = None
    password_file: str | None = None
    credentials: str | None = None
    tls: Tls | None = None
    port: Port = 0
    max_payload: Annotated[int, Meta(ge=65_536, le=67_108_864)] = 8_388_608
    grace: Seconds = 30.0

    @property
    def urls(self) -> list[str]:
        """The server's URLs; none for a server of our own."""
        return [self.url] if isinstance(self.url, str) else self.url


def shown(urls: list[str]) -> str:
    """Write URLs as they may be logged and shown: without the user and the password that may stand in them."""
    return ", ".join(without_secrets(url) for url in urls)


def without_secrets(url: str) -> str:
    """Leave out what stands before the host."""
    scheme, mark, rest = url.rpartition("://")
    return f"{scheme}{mark}{rest.rpartition('@')[2]}"


def wrong_url(urls: list[str]) -> str | None:
    """Say what is wrong with the first NATS URL that cannot be used; None if all can."""
    for url in urls:
        scheme = url.partition("://")[0] if "://" in url else "nats"
        if scheme not in SCHEMES:
            known = " and ".join(f"{scheme}://" for scheme in SCHEMES)
            told = f"{without_secrets(url)!r} begins with {scheme}://"
            return f"{told}; {known} can be used (a server's websocket port cannot)"
    return None
