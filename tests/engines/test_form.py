"""What SGLang is told, in its own words."""

from urllib.parse import urlsplit

import pytest

from actors.engines.sglang_form import meeting_place
from messages.work import Bootstrap


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "prefill-0.cluster.local"])
def test_each_life_of_a_prefill_has_an_address_of_its_own_for_decode(host: str) -> None:
    """SGLang's decode side puts the host before the port and asks there by HTTP."""
    said = [
        meeting_place(Bootstrap(host=host, port=8998, room=7, generation=life), prefills=False) for life in (1, 2, 2)
    ]
    assert said[0]["bootstrap_host"] != said[1]["bootstrap_host"] == said[2]["bootstrap_host"]
    for each in said:
        url = urlsplit(f"http://{each['bootstrap_host']}:{each['bootstrap_port']}/route")
        assert (url.hostname, url.port, each["bootstrap_room"]) == (host, 8998, 7)


def test_prefill_and_probes_are_told_the_address_as_it_is() -> None:
    """SGLang knows the fake host, of which a probe makes use, by its name."""
    plain = {"bootstrap_host": "2.2.2.2", "bootstrap_port": 8998, "bootstrap_room": 0}
    assert meeting_place(Bootstrap(host="2.2.2.2", port=8998, room=0), prefills=False) == plain
    assert meeting_place(Bootstrap(host="2.2.2.2", port=8998, room=0, generation=3), prefills=True) == plain
