"""What aiohttp says of its own: a client that hangs up, or speaks no HTTP, is nobody's stack trace."""

import pytest
from aiohttp.client_exceptions import ClientConnectionResetError
from aiohttp.http_exceptions import BadHttpMessage

from actors.processor.door_http import wire_log


@pytest.mark.parametrize(
    "error", [ClientConnectionResetError("Cannot write to closing transport"), BadHttpMessage("no HTTP")]
)
def test_a_clients_doing_is_not_told(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    caplog.set_level("ERROR")
    wire_log.error("Error handling request", exc_info=error)
    assert caplog.records == []
    wire_log.error("Error handling request", exc_info=ValueError("a defect of ours"))
    assert len(caplog.records) == 1
