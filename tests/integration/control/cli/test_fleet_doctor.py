"""`skerry doctor` of a real control, which is broken in one way after the other."""

import asyncio
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from control.api import artifact_store
from control.cli.doctor import access_rules
from control.local.pki import Pki
from control.local.seaweedfs import s3_client
from control.sync import fleet_cache
from tests.support import programs
from tests.support.agents import Control, joined, running_control
from tests.support.control import module
from tests.support.deadlines import deadline
from tests.support.ports import free_port
from tests.support.store_proxy import always, never, store_proxy


async def told(control: Control, token: str = "", **environment: str) -> programs.Done:
    """What `skerry doctor --json` says, as an admin or whose token it is."""
    to = {"SKERRY_URL": control.url, "SKERRY_TOKEN": token or control.token, "SKERRY_CA": str(control.pki.ca)}
    return await programs.command("control.cli", "doctor", "--json", **(to | environment))


async def seal(control: Control) -> None:
    """Give rows of the audit log their seals: the first ones are as old as the databases' template."""
    services = control.server.app.services
    assert await services.monitor().seal(services.clock.now())


async def doctor(control: Control, token: str = "", **environment: str) -> tuple[int, dict[str, Any]]:
    """Exit code, and the findings that aren't ok, by their checks."""
    done = await told(control, token, **environment)
    assert done.err == ""
    document = json.loads(done.out)
    assert done.status == {"ok": 0, "note": 7, "wrong": 5}[document["worst"]]
    found = {finding["check"]: finding for finding in document["findings"] if finding["level"] != "ok"}
    assert all(finding["cure"] for finding in found.values())
    return done.status, found


async def all_findings(control: Control, check: str) -> list[tuple[str, str]]:
    """Level and text of each finding of one check that isn't ok."""
    findings = json.loads((await told(control)).out)["findings"]
    return [(f["level"], f["what"]) for f in findings if f["check"] == check and f["level"] != "ok"]


async def test_a_control_and_its_nodes(database_url: str, bucket_url: str, pki: Pki, tmp_path: Path) -> None:
    async with running_control(database_url, bucket_url, pki) as control:
        await seal(control)
        code, found = await doctor(control)
        assert (code, set(found)) == (7, {"operators"})
        assert "is the only admin" in found["operators"]["what"]
        second = await control.call("POST", "operators", {"name": "second", "grants": [{"role": "admin"}]})
        assert await doctor(control) == (0, {})

        _, found = await doctor(control, SKERRY_TOKN="x")
        assert "is SKERRY_TOKEN meant?" in found["settings"]["what"]
        await control.call(
            "POST", "operators", {"name": "brief", "grants": [{"role": "read"}], "expires_in": 3 * 86_400}
        )
        code, found = await doctor(control)
        assert (code, "the token of brief ends" in found["operators"]["what"]) == (7, True)
        await control.call("DELETE", "operators/brief")

        await joined(control, tmp_path / "edge")
        await control.call("POST", "groups", {"name": "empty"})
        await control.call("POST", "releases", {"group": "empty"})
        _, found = await doctor(control)
        assert "empty" in found["groups"]["what"]
        await control.call("POST", "nodes/edge-1/revoke", {})
        _, found = await doctor(control)
        assert "revoked, and still listed: edge-1" in found["nodes"]["what"]

        reader = await control.call("POST", "operators", {"name": "reader", "grants": [{"role": "read"}]})
        _, found = await doctor(control, reader["token"])
        assert "operators, join tokens" in found["access"]["what"]
        assert second["token"] not in json.dumps(found)

        await control.stop()
        code, found = await doctor(control)
        assert (code, set(found)) == (5, {"control"})
        await control.start()


async def test_versions_that_arent_next_to_each_other(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with running_control(database_url, bucket_url, pki) as control:
        await seal(control)
        await control.call("POST", "operators", {"name": "second", "grants": [{"role": "admin"}]})
        assert await doctor(control) == (0, {})
        for name, version in (("new", "0.2.0"), ("far", "7.0.0")):
            token = await control.join_token(group="default")
            body = {"name": name, "attempt": str(uuid4()), "capabilities": {"version": version}}
            headers = {"Authorization": f"Bearer {token}"}
            async with control.http.post(f"{control.url}/v1/nodes", json=body, headers=headers) as answer:
                assert answer.status == 201
        found = await all_findings(control, "versions")
        assert [level for level, _ in found] == ["wrong", "note"]
        assert "far (7.0.0)" in found[0][1]
        assert "new (0.2.0)" in found[1][1]

        connection = await asyncpg.connect(database_url)
        # As a replica of another version writes it, and one that is too old to write its version.
        add = "INSERT INTO leases (name, holder, expires_at, version) VALUES ($1, '1', $2, $3)"
        # It writes no second mark, and the commands may take longer than one without marks is taken to run.
        now = datetime.now(UTC) + fleet_cache.MARK_KEPT
        await connection.execute(add, "mark other", now + timedelta(hours=1), "0.2.0+1a2b")
        assert [level for level, _ in await all_findings(control, "replicas")] == ["note"]
        await connection.execute("UPDATE leases SET version = '0.9.0' WHERE name = 'mark other'")
        [(level, what)] = await all_findings(control, "replicas")
        assert (level, "0.9.0" in what) == ("wrong", True)
        await connection.execute("UPDATE leases SET version = '' WHERE name = 'mark other'")
        [(level, what)] = await all_findings(control, "replicas")
        assert (level, "too old to tell" in what) == ("note", True)
        # It has ended a minute ago.
        ended = now - timedelta(minutes=1)
        await connection.execute("UPDATE leases SET expires_at = $1 WHERE name = 'mark other'", ended)
        assert await all_findings(control, "replicas") == []
        await connection.close()


async def test_artifacts_that_releases_need(
    database_url: str, bucket_url: str, pki: Pki, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_control(database_url, bucket_url, pki) as control:
        await control.release(functions={"hello": await control.push("hello", module("hello"))})
        lost, shorter = module("lost"), module("shorter")
        functions = {"lost": await control.push("lost", lost), "shorter": await control.push("shorter", shorter)}
        async with s3_client(bucket_url) as client:
            bucket = bucket_url.rpartition("/")[2]
            keys = [item["Key"] for item in (await client.list_objects_v2(Bucket=bucket))["Contents"]]
            [of_lost] = [key for key in keys if key.startswith(hashlib.sha256(lost).hexdigest())]
            [of_shorter] = [key for key in keys if key.startswith(hashlib.sha256(shorter).hexdigest())]
            await client.delete_object(Bucket=bucket, Key=of_lost)
            await client.put_object(Bucket=bucket, Key=of_shorter, Body=shorter[:-1])
        # Nothing needs these yet.
        assert await all_findings(control, "artifacts") == []
        await control.release(functions=functions)
        # Of two pages.
        monkeypatch.setattr(artifact_store, "PAGE", 2)
        [(level, what)] = await all_findings(control, "artifacts")
        assert level == "wrong"
        assert "lost@1 (missing)" in what
        assert "shorter@1 (of another size)" in what
        assert "hello" not in what


async def test_a_store_that_takes_no_objects(database_url: str, bucket_url: str, pki: Pki) -> None:
    async with store_proxy(bucket_url) as proxy, running_control(database_url, proxy.url, pki) as control:
        assert await all_findings(control, "store") == []
        for refused, permission in (("PUT", "s3:PutObject"), ("GET", "s3:GetObject"), ("DELETE", "s3:DeleteObject")):
            proxy.refused = lambda line, method=refused: line.startswith(method) and "/skerry/trial/" in line
            [(level, what)] = await all_findings(control, "store")
            assert level == "wrong"
            assert permission in what
            assert what.endswith("[store_refused]")
        proxy.refused = never
        async with s3_client(bucket_url) as client:
            listed = await client.list_objects_v2(Bucket=bucket_url.rpartition("/")[2], Prefix="skerry/trial/")
        assert len(listed.get("Contents", ())) == 1, "the one that couldn't be deleted"


async def test_without_its_bucket_control_is_looked_at_all_the_same(
    database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> None:
    async with store_proxy(bucket_url) as proxy, running_control(database_url, proxy.url, pki) as control:
        await joined(control, tmp_path / "edge")
        await control.call("POST", "nodes/edge-1/revoke", {})
        await control.release(functions={"hello": await control.push("hello", module("a"))})
        proxy.refused = always
        async with deadline(60):
            while "control" not in (found := (await doctor(control))[1]):
                await asyncio.sleep(0.1)
        assert found["control"]["what"].endswith("[not_ready]")
        assert set(found) >= {"control", "store", "nodes", "operators"}
        assert "weren't made" not in json.dumps(found)


async def test_where_control_is_down_the_checks_that_were_not_made_are_told(
    database_url: str, bucket_url: str, pki: Pki
) -> None:
    async with running_control(database_url, bucket_url, pki) as control:
        url, token = control.url, control.token
    to = {"SKERRY_URL": url, "SKERRY_TOKEN": token, "SKERRY_CA": str(pki.ca)}
    done = await programs.command("control.cli", "doctor", **to)
    assert done.status == 5
    assert "[unreachable]; so the other checks weren't made" in done.out.decode()


async def test_what_comes_with_time_and_with_strangers(
    database_url: str, bucket_url: str, pki: Pki, tmp_path: Path
) -> None:
    listen = f"0.0.0.0:{free_port()}"
    async with running_control(database_url, bucket_url, pki, metrics_listen=listen) as control:
        await joined(control, tmp_path / "edge")
        await control.join_token(group="default")
        for name in ("gone", "well"):
            await control.call("POST", "webhooks", {"name": name, "url": "https://example.com/x"})
        almost = timedelta(seconds=control.settings.credential_return) - timedelta(days=10)
        connection = await asyncpg.connect(database_url)
        await connection.execute("UPDATE join_tokens SET created_at = created_at - interval '2 days'")
        await connection.execute("UPDATE webhooks SET ended_at = now() WHERE name = 'gone'")
        await connection.execute("UPDATE credentials SET created_at = created_at - $1::interval", almost)
        await connection.execute("UPDATE nodes SET state = 'offline'")
        await connection.execute("UPDATE artifact_store SET restored_at = now()")
        await connection.close()
        for _ in range(access_rules.REFUSED):
            headers = {"Authorization": f"Bearer sko_{uuid4()}_nonsense"}
            async with control.http.get(f"{control.url}/v1/groups", headers=headers) as answer:
                assert answer.status == 401
        await control.server.app.services.failures.flush()
        code, found = await doctor(control)
        assert code == 5
        assert f"metrics are at {listen}" in found["settings"]["what"]
        assert "a join token for default" in found["join_tokens"]["what"]
        assert found["webhooks"]["what"].startswith("gone gets nothing")
        assert "the credential of edge-1, which is offline" in found["node_credentials"]["what"]
        assert "offline: edge-1" in found["nodes"]["what"]
        assert "edge-1" in found["trust"]["what"]
        assert "nobody has recovered" in found["metadata"]["what"]
        assert "of 127.0.0.1" in found["refusals"]["what"]
