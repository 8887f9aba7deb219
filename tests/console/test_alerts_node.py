"""The alerts about a node itself: whether it is there and at its target, and the ends of what it shows others."""

from datetime import timedelta

import asyncpg
import pytest

from edge_runtime.sync.join import join
from tests.support.cluster import NODE, VERSION
from tests.support.watched import Watched

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_node_is_away(watched: Watched) -> None:
    front = watched.cluster.front
    front.wanted.clear()
    front.kill()
    await watched.fires("SkerryEdgeDown", "SkerryNodesOffline", "SkerryGroupOffline")
    front.wanted.set()
    await watched.ends("SkerryEdgeDown", "SkerryNodesOffline", "SkerryGroupOffline")


async def test_a_release_fails_on_the_node(watched: Watched) -> None:
    made = watched.cluster
    for text in ("'xab'", "'xcd'"):
        await watched.write(f"INSERT OR IGNORE INTO written VALUES ({text})")
    # The check's own rows are distinct, and the node's aren't.
    await made.seed(range(2, 3), lambda _: "CREATE UNIQUE INDEX one ON written (length(id)) WHERE id LIKE 'x%'")
    release = await made.call("POST", "/v1/releases", {"functions": {VERSION: 2}, "schema": 2, "now": True})
    await watched.fires("SkerrySyncsFail", "SkerryEdgeSyncsFail", "SkerryEdgeNotAtTarget")
    await watched.fires("SkerryNodesFailing", "SkerryNodesOverdue")
    await watched.write("DELETE FROM written WHERE id = 'xcd'")
    await made.call("POST", f"/v1/nodes/{NODE}/retry")
    await made.converged(release["number"])
    await watched.ends("SkerrySyncsFail", "SkerryEdgeSyncsFail", "SkerryEdgeNotAtTarget")
    await watched.ends("SkerryNodesFailing", "SkerryNodesOverdue")


async def test_its_certificate_ends_soon(watched: Watched) -> None:
    front, folder = watched.cluster.front, watched.folder / "tls"
    # Alerts are for what ends within 30 days.
    files = watched.authority.issue("the node's", timedelta(days=10)).put(folder, "node")
    settings = dict(zip(("SKERRY_EDGE_TLS_CERT", "SKERRY_EDGE_TLS_KEY"), map(str, files), strict=True))
    front.environment |= settings
    await watched.tell_now()
    await watched.fires("SkerryEdgeCertificateEnds", "SkerryGroupCertificateEnds")
    watched.authority.issue("the node's", timedelta(days=60)).put(folder, "node")
    # The node reads the files anew.
    await watched.ends("SkerryEdgeCertificateEnds")
    await watched.tell_now()
    await watched.ends("SkerryGroupCertificateEnds")
    for name in settings:
        del front.environment[name]
    front.kill()


async def test_it_was_cloned(watched: Watched) -> None:
    """As its polls have shown it (tests/integration/control/sync/test_cloned_nodes.py)."""
    conn = await asyncpg.connect(watched.cluster.services.metadata_url)
    try:
        await conn.execute("UPDATE node_presence SET cloned = true, crossed_at = now()")
        await watched.fires("SkerryNodesCloned")
        await conn.execute("UPDATE node_presence SET crossed_at = now() - interval '1 hour'")
        await watched.ends("SkerryNodesCloned")
    finally:
        await conn.close()


async def join_again(watched: Watched) -> None:
    """Have the node join again by a token for that."""
    made = watched.cluster
    token = (await made.call("POST", "/v1/join-tokens", {"rejoin": NODE}))["token"]
    await join(made.folder / "edge", f"https://{made.control_address}", token, NODE, {}, again=True)
    # A front that starts reads who it is.
    await watched.tell_now()


async def test_it_is_revoked_and_asks_on(watched: Watched) -> None:
    await watched.cluster.call("POST", f"/v1/nodes/{NODE}/revoke")
    await watched.fires("SkerryNodesRevoked", "SkerryEdgeCredentialRefused")
    await join_again(watched)
    await watched.ends("SkerryNodesRevoked", "SkerryEdgeCredentialRefused")


async def test_its_credential_ends_soon(watched: Watched) -> None:
    made = watched.cluster
    # A credential is good from now on, for as long as control's are.
    made.control.environment["SKERRY_CREDENTIAL_LIFE"] = str(86400)
    await watched.restart_control()
    await join_again(watched)
    await watched.fires("SkerryEdgeCredentialEnds", "SkerryGroupCredentialEnds")
    del made.control.environment["SKERRY_CREDENTIAL_LIFE"]
    await watched.restart_control()
    await join_again(watched)
    await watched.ends("SkerryEdgeCredentialEnds", "SkerryGroupCredentialEnds")
