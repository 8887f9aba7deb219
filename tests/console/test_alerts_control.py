"""The alerts about control and what it needs: the replica itself, its certificate, the metadata database, who asks it,
and whom it tells."""

import asyncio
import contextlib
from datetime import timedelta
from pathlib import Path

import aiohttp
import psutil
import pytest

from tests.support.deadlines import deadline
from tests.support.watched import LIMIT, Watched, repeating
from tests.support.webhook_receiver import receiving

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_all_is_scraped(watched: Watched) -> None:
    async with deadline(LIMIT):
        for job in ("skerry-control", "skerry-edge"):
            while await watched.prometheus.up(job) != [1.0]:
                await asyncio.sleep(0.2)


async def test_control_is_away(watched: Watched) -> None:
    control = watched.cluster.control
    control.wanted.clear()
    control.kill()
    await watched.fires("SkerryControlDown", "SkerryEdgeControlSilent")
    control.wanted.set()
    await watched.ends("SkerryControlDown", "SkerryEdgeControlSilent")


async def test_the_metadata_database_is_away(watched: Watched) -> None:
    database = watched.cluster.services.metadata
    await database.kill()
    await watched.fires("SkerryTargetsStale", "SkerryRequestsFail")
    await database.start()
    await watched.ends("SkerryTargetsStale", "SkerryRequestsFail")


async def test_the_metadata_database_is_slow(watched: Watched) -> None:
    server = psutil.Process(watched.cluster.services.metadata.pid)

    async def stop() -> None:
        """It stands still for a while, in which statements don't come to their limit."""
        family = [server, *server.children(recursive=True)]
        try:
            for process in family:
                # A connection's process may have ended since.
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.suspend()
            await asyncio.sleep(1.5)
        finally:
            for process in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.resume()

    async with repeating(stop, 0.5):
        await watched.fires("SkerryDatabaseSlow")
    await watched.ends("SkerryDatabaseSlow")


async def test_somebody_guesses_tokens(watched: Watched) -> None:
    url = f"https://{watched.cluster.control_address}/v1/nodes"
    headers = {"authorization": "Bearer sko_00000000-0000-0000-0000-000000000000_guessed"}
    connector = aiohttp.TCPConnector(ssl=False)
    async with aiohttp.ClientSession(connector=connector, headers=headers) as http:

        async def guess() -> None:
            async with http.get(url) as answer:
                assert answer.status in (401, 429, 503), answer.status

        async with repeating(guess):
            await watched.fires("SkerryAuthenticationsRefused")
    await watched.ends("SkerryAuthenticationsRefused")


async def test_controls_certificate_and_its_ca_end_soon(watched: Watched) -> None:
    control, folder = watched.cluster.control, watched.folder / "tls"
    before = {name: control.environment[name] for name in ("SKERRY_TLS_CERT", "SKERRY_TLS_KEY", "SKERRY_CA_CERT")}
    files = watched.authority.issue("control's", timedelta(days=10)).put(folder, "control")
    (folder / "ca.pem").write_bytes(watched.authority.certificate)
    # Alerts are for what ends within 30 days, as this authority does. The node trusts it alone, too.
    trusted = watched.cluster.folder / "edge" / "ca.pem"
    long = trusted.read_bytes()
    trusted.write_bytes(watched.authority.certificate)
    watched.cluster.tls.load_verify_locations(cadata=watched.authority.certificate.decode())
    control.environment |= dict(zip(before, map(str, (*files, folder / "ca.pem")), strict=True))
    await watched.restart_control()
    await watched.fires("SkerryCertificateEnds", "SkerryCaEnds", "SkerryEdgeTrustEnds")
    await watched.tell_now()
    await watched.fires("SkerryGroupTrustEnds")
    trusted.write_bytes(long)
    control.environment |= before
    await watched.restart_control()
    await watched.ends("SkerryCertificateEnds", "SkerryCaEnds", "SkerryEdgeTrustEnds")
    await watched.tell_now()
    await watched.ends("SkerryGroupTrustEnds")


async def test_controls_certificate_is_exchanged_for_something_else(watched: Watched) -> None:
    file = Path(watched.cluster.control.environment["SKERRY_TLS_CERT"])
    good = file.read_bytes()
    file.write_text("no certificate")
    await watched.fires("SkerryFilesUnfit")
    file.write_bytes(good)
    await watched.ends("SkerryFilesUnfit")


async def test_a_message_to_a_webhook_is_given_up(watched: Watched) -> None:
    made = watched.cluster
    async with receiving() as gone:
        gone.answers = lambda message: 410
        await made.call("POST", "/v1/webhooks", {"name": "gone", "url": gone.url, "kinds": ["node.online"]})
        await made.call("POST", "/v1/webhooks/gone/test")
        await watched.fires("SkerryWebhookGivenUp")
    await made.call("DELETE", "/v1/webhooks/gone")
    await watched.ends("SkerryWebhookGivenUp")
