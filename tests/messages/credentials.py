"""A NATS operator with one account and one user: the server's configuration, and the user's credentials file.

The form of the tokens is NATS's own (JWT with `alg: ed25519-nkey`, ADR-14); `nsc` makes the same for people.
"""

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import nkeys


def operator(folder: Path) -> tuple[Path, Path]:
    """Write `server.conf` and `me.creds` into the folder; return both paths."""
    root, user = _pair(nkeys.PREFIX_BYTE_OPERATOR), _pair(nkeys.PREFIX_BYTE_USER)
    account, system = _pair(nkeys.PREFIX_BYTE_ACCOUNT), _pair(nkeys.PREFIX_BYTE_ACCOUNT)
    unlimited = {"subs": -1, "data": -1, "payload": -1, "conn": -1, "mem_storage": -1, "disk_storage": -1}
    of_operator = _token(root, root, {"type": "operator", "version": 2})
    of_account = _token(root, account, {"type": "account", "version": 2, "limits": unlimited})
    of_system = _token(root, system, {"type": "account", "version": 2})
    of_user = _token(account, user, {"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1})
    config, credentials = folder / "server.conf", folder / "me.creds"
    known = f"{_name(account)}: {of_account}, {_name(system)}: {of_system}"
    config.write_text(
        f"operator: {of_operator}\nsystem_account: {_name(system)}\nresolver: MEMORY\nresolver_preload: {{ {known} }}\n"
    )
    credentials.write_text(
        f"-----BEGIN NATS USER JWT-----\n{of_user}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{user.seed.decode()}\n------END USER NKEY SEED------\n"
    )
    return config, credentials


def _pair(kind: int) -> Any:
    return nkeys.from_seed(nkeys.encode_seed(os.urandom(32), kind))


def _name(pair: Any) -> str:
    name: str = pair.public_key.decode()
    return name


def _token(issuer: Any, subject: Any, nats: dict[str, Any]) -> str:
    claims = {
        "jti": base64.b32encode(os.urandom(20)).decode(),
        "iat": int(time.time()),
        "iss": _name(issuer),
        "name": nats["type"],
        "sub": _name(subject),
        "nats": nats,
    }
    signed = ".".join(_base64(json.dumps(part).encode()) for part in ({"typ": "JWT", "alg": "ed25519-nkey"}, claims))
    return f"{signed}.{_base64(issuer.sign(signed.encode()))}"


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
