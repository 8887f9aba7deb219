"""Where messages may lead: every address that a name has is checked, and the checked one is connected to."""

import asyncio
import ipaddress
import socket
from typing import Any

import pytest

from control.access import certificates
from control.clock import SystemClock
from control.local import pki
from control.telemetry.webhooks import webhook_client, webhook_signature
from control.telemetry.webhooks.webhook_client import WebhookClient
from tests.support.webhook_receiver import Receiver, receiving

CLOCK = SystemClock()
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128"))
HEADERS = webhook_signature.headers(webhook_signature.new_secret(), "id", 0, b"{}")
INSIDE = [
    *("127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "169.254.169.254"),
    *("224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "fec0::1", "ff02::1", "2001:db8::1"),
    *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::1", "2001:0:7f00:1::"),
]


class Names:
    """The name server: what each look-up answers, one after the other, the last one for good."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> None:
        self.asked: list[str] = []
        self._answers = list(answers)
        self._real = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)

    def look_up(self, host: Any, port: Any, *more: Any, **named: Any) -> Any:
        if not str(host).endswith(".example"):
            return self._real(host, port, *more, **named)
        self.asked.append(host)
        found = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        infos = []
        for text in found:
            family = socket.AF_INET6 if ":" in text else socket.AF_INET
            place = (text, port, 0, 0) if ":" in text else (text, port)
            infos.append((family, socket.SOCK_STREAM, 6, "", place))
        return infos


@pytest.mark.parametrize("address", INSIDE)
async def test_a_name_that_leads_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    names = Names(monkeypatch, [address])
    async with WebhookClient((), CLOCK) as client:
        attempt = await client.post("https://hooks.example/secret", HEADERS, b"{}")
    assert "isn't public" in attempt.error
    assert "hooks.example leads to" in attempt.error
    assert "secret" not in attempt.error
    assert names.asked == ["hooks.example"]


@pytest.mark.parametrize("address", INSIDE)
async def test_an_address_inside_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    host = f"[{address}]" if ":" in address else address
    async with WebhookClient((), CLOCK) as client:
        attempt = await client.post(f"https://{host}/secret", HEADERS, b"{}")
    assert "isn't public" in attempt.error


@pytest.mark.parametrize(
    "host",
    [
        *("localhost", "localhost.", "127.1", "2130706433", "0x7f000001", "0x7f.1", "0177.0.0.1"),
        *("[::1%25lo]", "%31%32%37.0.0.1"),
    ],
)
async def test_no_other_way_of_writing_leads_inside(receiver: Receiver, host: str) -> None:
    port = receiver.url.split(":")[2].partition("/")[0]
    async with WebhookClient((ipaddress.ip_network("203.0.113.0/24"),), CLOCK) as client:
        for scheme in ("https", "http"):
            attempt = await client.post(f"{scheme}://{host}:{port}/hook", HEADERS, b"{}")
            assert attempt.error
            assert attempt.status == 0
    assert receiver.received == []


async def test_a_name_of_which_one_address_is_inside_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Names(monkeypatch, ["93.184.215.14", "127.0.0.1"])
    async with WebhookClient((), CLOCK) as client:
        attempt = await client.post("https://hooks.example/", HEADERS, b"{}")
    assert "127.0.0.1, which isn't public" in attempt.error


@pytest.mark.parametrize("address", ["93.184.215.14", "::ffff:93.184.215.14"])
async def test_a_public_address_of_this_machine_is_refused(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(webhook_client, "is_own", lambda address: str(address) == "93.184.215.14")
    Names(monkeypatch, [address])
    async with WebhookClient((), CLOCK) as client:
        assert "93.184.215.14" in (await client.post("https://hooks.example/", HEADERS, b"{}")).error


async def test_the_address_that_was_checked_is_connected_to(
    monkeypatch: pytest.MonkeyPatch, receiver: Receiver
) -> None:
    """A second look-up would lead elsewhere: there is none within an attempt, and one for each attempt."""
    names = Names(monkeypatch, ["127.0.0.1"], ["10.0.0.1"])
    url = receiver.url.replace("127.0.0.1", "hooks.example")
    async with WebhookClient(LOOPBACK, CLOCK) as client:
        assert (await client.post(url, HEADERS, b"{}")).error == ""
        assert names.asked == ["hooks.example"]
        assert "10.0.0.1" in (await client.post(url, HEADERS, b"{}")).error
    assert len(receiver.received) == 1
    assert receiver.received[0].headers["host"].startswith("hooks.example:")


async def test_plain_http_is_for_networks_that_are_named(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    Names(monkeypatch, ["93.184.215.14"])
    async with WebhookClient((), CLOCK) as client:
        assert "plain http" in (await client.post("http://hooks.example/", HEADERS, b"{}")).error
        assert "plain http" in (await client.post(receiver.url, HEADERS, b"{}")).error
    async with WebhookClient(LOOPBACK, CLOCK) as client:
        assert "plain http" in (await client.post("http://hooks.example/", HEADERS, b"{}")).error
        assert (await client.post(receiver.url, HEADERS, b"{}")).error == ""
        # The address of a network that is named is so in its mapped form too, where this machine has IPv6.
        mapped = receiver.url.replace("127.0.0.1", "[::ffff:127.0.0.1]")
        error = (await client.post(mapped, HEADERS, b"{}")).error
        assert not error or error.startswith("the request to ::ffff:127.0.0.1 failed")


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed(receiver: Receiver, status: int) -> None:
    receiver.answers = lambda message: status
    async with WebhookClient(LOOPBACK, CLOCK) as client:
        attempt = await client.post(receiver.url, HEADERS, b"{}")
    assert (attempt.status, len(receiver.received)) == (status, 1)
    assert "redirect" in attempt.error


async def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Any) -> None:
    own = pki.ensure(tmp_path)
    async with (
        receiving(certificates.server_context(own.certificate, own.key)) as receiver,
        WebhookClient(LOOPBACK, CLOCK) as client,
    ):
        attempt = await client.post(receiver.url, HEADERS, b"{}")
        assert "the certificate of localhost isn't trusted" in attempt.error
        assert receiver.received == []


async def test_an_answer_that_is_no_http_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    async def babble(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"what?\r\n\r\n" * 10)
        writer.close()

    server = await asyncio.start_server(babble, "127.0.0.1")
    async with server, WebhookClient(LOOPBACK, CLOCK) as client:
        port = server.sockets[0].getsockname()[1]
        attempt = await client.post(f"http://127.0.0.1:{port}/secret", HEADERS, b"{}")
    assert attempt.error
    assert "secret" not in attempt.error


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch, receiver: Receiver) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with WebhookClient(LOOPBACK, CLOCK) as client:
        assert (await client.post(receiver.url, HEADERS, b"{}")).error == ""


def test_the_signature_is_the_standards() -> None:
    """The example that the standard's own libraries are tested with."""
    made = webhook_signature.headers(
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert made["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
