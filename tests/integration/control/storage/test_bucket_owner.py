"""The bucket has one owner; a restore of the metadata is recognised; what no row knows stays for days."""

import asyncio
import hashlib
import io
from collections.abc import AsyncIterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import orjson
import pytest

from control.cli.main import run as cli
from control.local.pki import Pki
from control.local.seaweedfs import s3_client
from control.problems import ProblemError
from control.storage import owner_mark
from control.web import lifespan
from tests.support import repeating, replica
from tests.support.backups import Backups
from tests.support.clock import SetClock
from tests.support.control import Control, module, running, until
from tests.support.replica import Site
from tests.support.services import ServerUrls, drop_bucket, fresh_bucket
from tests.support.store_proxy import store_proxy

REASON = "the metadata were restored"


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A start waits until it has seen whose the bucket is, however slow the store is in that moment."""
    monkeypatch.setattr(lifespan, "STORE_PATIENCE", 60.0)


@pytest.fixture
async def other_database_url(services: ServerUrls) -> AsyncIterator[str]:
    url = await services.fresh_database()
    yield url
    await services.give_back(url)


async def mark(bucket_url: str) -> Any:
    """What the bucket says of its owner."""
    async with s3_client(bucket_url) as client:
        answer = await client.get_object(Bucket=bucket_url.rpartition("/")[2], Key=owner_mark.KEY)
        async with answer["Body"] as body:
            return orjson.loads(await body.read())


async def put_mark(bucket_url: str, body: bytes) -> None:
    """What somebody else writes who can write to the bucket."""
    async with s3_client(bucket_url) as client:
        await client.put_object(Bucket=bucket_url.rpartition("/")[2], Key=owner_mark.KEY, Body=body)


async def keys(bucket_url: str) -> set[str]:
    """The keys of artifacts, without the objects that a replica writes about itself when it comes to it."""
    async with s3_client(bucket_url) as client:
        listed = await client.list_objects_v2(Bucket=bucket_url.rpartition("/")[2])
        return {key for item in listed.get("Contents", ()) if not (key := item["Key"]).startswith(owner_mark.PREFIX)}


async def ready(at: Control | replica.Replica) -> bool:
    return (await at.call("GET", "/readyz", token="")).status == 200


async def described(control: Control | replica.Replica) -> Any:
    return await control.services.db.read(lambda conn: conn.fetchrow("SELECT * FROM artifact_store"))


async def upload(to: replica.Replica, text: str) -> None:
    wasm = module(text)
    answer = await to.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", wasm)
    assert answer.status == 201, answer


async def sweep_of_years(to: replica.Replica, clock: SetClock) -> None:
    for _ in range(4):
        clock.advance(40 * 86400.0)
        await to.services.deletions.sweep()


@pytest.mark.background("bucket's owner")
async def test_a_bucket_is_claimed_and_gets_the_steps_of_the_metadata(control: Control, bucket_url: str) -> None:
    first = await mark(bucket_url)
    await control.push("f", module("f"))

    async def agree() -> bool:
        row, there = await described(control), await mark(bucket_url)
        return bool((str(row["owner"]), row["counter"], str(row["step"])) == tuple(there.values())[:3])

    await until(agree)
    assert (await mark(bucket_url))["counter"] > first["counter"]
    shown = await control.ok("GET", "/v1/artifact-store")
    assert (shown["state"], shown["deletions"], shown["problem"]) == ("owned", "on", None)
    await until(lambda: ready(control))
    assert await control.ok("GET", "/readyz", token="") == {"status": "ready"}


async def test_another_control_neither_starts_nor_sweeps(
    control: Control, bucket_url: str, other_database_url: str, pki: Pki
) -> None:
    await control.push("f", module("f"))
    before = await keys(bucket_url)
    with pytest.raises(ProblemError) as caught:
        async with running(other_database_url, bucket_url, pki):
            pass
    assert caught.value.code == "store_not_owned"
    assert "take-over" in caught.value.detail
    assert await keys(bucket_url) == before


@pytest.mark.background("bucket's owner")
async def test_a_control_that_finds_another_owner_later_uses_nothing_of_the_bucket(
    control: Control, bucket_url: str, other_database_url: str, pki: Pki, tmp_path: Path
) -> None:
    """The store was away when it started: it serves nodes, and leaves the bucket alone."""
    async with store_proxy(bucket_url) as proxy:
        proxy.answers(503, "SlowDown")
        async with running(other_database_url, proxy.url, pki) as other:
            proxy.answer = b""

            async def told() -> bool:
                reply = await other.call("GET", "/readyz", token="")
                return reply.status == 503 and "another control" in reply.body["detail"]

            await until(told)
            wasm = module("x")
            reply = await other.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", data=wasm)
            assert reply.code == "store_not_owned"
            with pytest.raises(ProblemError, match="store_not_owned"):
                await other.services.deletions.sweep()
    assert await keys(bucket_url) == set()


async def test_artifacts_that_no_row_knows_keep_a_bucket_from_being_claimed(
    bucket_url: str, database_url: str, pki: Pki
) -> None:
    """A bucket of an earlier version, which has no owner yet, and another control's metadata."""
    async with s3_client(bucket_url) as client:
        key = f"{'0' * 64}/00000000-0000-0000-0000-000000000001"
        await client.put_object(Bucket=bucket_url.rpartition("/")[2], Key=key, Body=b"x")
    with pytest.raises(ProblemError, match="knows none"):
        async with running(database_url, bucket_url, pki):
            pass


async def test_a_bucket_of_an_earlier_version_is_claimed_by_whose_metadata_know_it(
    control_site: Site, bucket_url: str
) -> None:
    async with control_site.running() as before:
        await upload(before, "known")
    name = bucket_url.rpartition("/")[2]
    async with s3_client(bucket_url) as client:
        await client.delete_object(Bucket=name, Key=owner_mark.KEY)
    async with control_site.running() as after:
        assert after.services.ownership.problem is None
        assert after.services.ownership.held is None
    async with s3_client(bucket_url) as client:
        await client.delete_object(Bucket=name, Key=owner_mark.KEY)
        await client.put_object(Bucket=name, Key=f"{'0' * 64}/00000000-0000-0000-0000-000000000001", Body=b"x")
    async with control_site.running() as after:
        assert after.services.ownership.problem is None
        assert after.services.ownership.held is not None, "what is unknown is looked at by a person first"


async def test_nothing_is_swept_after_a_restore_until_an_operator_says_so(
    control_site: Site, backups: Backups, bucket_url: str
) -> None:
    clock = SetClock()
    async with control_site.running(clock=clock) as control:
        await upload(control, "old")
    backup = await backups.take()
    async with control_site.running(clock=clock) as control:
        for n in range(5):
            await upload(control, f"new {n}")
    newer = await backups.take()
    before = await keys(bucket_url)
    assert len(before) == 6

    await backups.restore(backup)
    async with control_site.running(clock=clock) as control:

        async def notes() -> Any:
            reply = await control.call("GET", "/readyz", token="")
            return reply.json()["notes"] if reply.status == 200 else None

        assert REASON in (await until(notes))[0]
        await sweep_of_years(control, clock)
        assert await keys(bucket_url) == before

    # The newer backup is worth what it was.
    await backups.restore(newer)
    async with control_site.running(clock=clock) as control:
        for n in range(5):
            wasm = module(f"new {n}")
            assert (await control.call("HEAD", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}")).status == 200

    await backups.restore(backup)
    async with control_site.running(clock=clock) as control:
        shown = (await control.call("GET", "/v1/artifact-store")).json()
        assert shown["deletions"] == "held"
        answer = await control.call("POST", "/v1/artifact-store/resume")
        assert (answer.status, answer.json()["deletions"]) == (200, "on")
        audit = (await control.call("GET", "/v1/audit")).json()["items"]
        assert {("admin", "artifacts.resume"), ("control", "artifacts.hold")} <= {
            (entry["actor"], entry["action"]) for entry in audit
        }
        await sweep_of_years(control, clock)
        assert await keys(bucket_url) == set(), "none of them is used by a version"


async def test_metadata_that_went_on_after_a_restore_are_recognised_by_their_steps(
    control_site: Site, backups: Backups
) -> None:
    """The counter came to the same number again before control looked."""
    async with control_site.running() as control:
        await upload(control, "old")
    backup = await backups.take()
    async with control_site.running() as control:
        await upload(control, "new")
        # The bucket gets an upload's last step in the background.
        await control.services.ownership.confirm()
        row = await described(control)
    await backups.restore(backup)
    conn = await asyncpg.connect(control_site.settings.metadata_url)
    await conn.execute("UPDATE artifact_store SET counter = $1, step = gen_random_uuid()", row["counter"])
    await conn.close()
    async with control_site.running() as control:
        assert control.services.ownership.held is not None


async def test_a_kill_between_the_metadatas_step_and_the_buckets_is_no_restore(
    control_site: Site, bucket_url: str
) -> None:
    async with control_site.running() as control:
        await upload(control, "old")
    conn = await asyncpg.connect(control_site.settings.metadata_url)
    await conn.execute("UPDATE artifact_store SET counter = counter + 1, step = gen_random_uuid()")
    counter = await conn.fetchval("SELECT counter FROM artifact_store")
    await conn.close()
    async with control_site.running() as control:
        assert control.services.ownership.held is None
        assert (await mark(bucket_url))["counter"] == counter


async def test_replicas_that_step_at_once_agree(
    control_site: Site, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As the command line does, where many write one row at once.
    monkeypatch.setattr(repeating, "REPEATS", True)
    async with control_site.running() as one, control_site.running() as two:
        await asyncio.gather(*(upload(to, f"{to.url} {n}") for n in range(8) for to in (one, two)))
        await one.services.ownership.confirm()
        await two.services.ownership.confirm()
        assert one.services.ownership.held is None
        assert two.services.ownership.held is None
        row = await described(one)
        assert (await mark(bucket_url))["counter"] == row["counter"]
    async with control_site.running() as again:
        assert again.services.ownership.held is None


async def test_controls_that_claim_a_bucket_at_once_make_one_owner(
    bucket_url: str, database_url: str, other_database_url: str, pki: Pki, tmp_path: Path
) -> None:
    sites = [await replica.prepare(url, bucket_url, pki, tmp_path) for url in (database_url, other_database_url)]
    started = []

    async def start(site: Site) -> None:
        async with site.running() as control:
            started.append(str((await described(control))["owner"]))

    found = await asyncio.gather(*(start(site) for site in sites), return_exceptions=True)
    assert [type(error) for error in found if error is not None] == [ProblemError]
    assert started == [(await mark(bucket_url))["owner"]]


async def test_one_command_takes_a_bucket_over_on_purpose(
    control_site: Site,
    other_database_url: str,
    bucket_url: str,
    pki: Pki,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    clock = SetClock()
    other = await replica.prepare(other_database_url, bucket_url, pki, tmp_path)
    async with control_site.running() as before:
        await upload(before, "theirs")
        # The bucket has the upload's last step, which comes in the background: nothing else writes its owner now.
        await before.services.ownership.confirm()
        monkeypatch.setenv("SKERRY_METADATA_URL", other_database_url)
        monkeypatch.setenv("SKERRY_ARTIFACTS_URL", bucket_url)
        assert await asyncio.to_thread(cli, ["artifacts", "take-over", "--yes", "--json"]) == 0
        told = orjson.loads(capsys.readouterr().out)
        assert told["taken_over"] is True
        with pytest.raises(ProblemError, match="store_not_owned"):
            await before.services.ownership.confirm()
        assert (await before.call("GET", "/v1/artifact-store")).json()["state"] == "store_not_owned"

        async def unready() -> bool:
            return (await before.call("GET", "/readyz", token="")).status == 503

        await until(unready)
        async with other.running(clock=clock) as after:
            held = after.services.ownership.held
            assert held is not None
            assert told["before"] in held.reason
            await sweep_of_years(after, clock)
            assert len(await keys(bucket_url)) == 1
            audit = (await after.call("GET", "/v1/audit")).json()["items"]
            assert ("cli", "artifacts.take-over") in {(entry["actor"], entry["action"]) for entry in audit}
    with pytest.raises(ProblemError, match="store_not_owned"):
        async with control_site.running():
            pass
    assert await asyncio.to_thread(cli, ["artifacts", "take-over", "--yes", "--json"]) == 0
    assert orjson.loads(capsys.readouterr().out)["taken_over"] is False


async def taken_over(control_site: Site, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether `skerry artifacts take-over` says that it has done something."""
    monkeypatch.setenv("SKERRY_METADATA_URL", control_site.settings.metadata_url)
    monkeypatch.setenv("SKERRY_ARTIFACTS_URL", control_site.settings.artifacts_url)
    return await asyncio.to_thread(cli, ["artifacts", "take-over", "--yes"]) == 0


@pytest.mark.parametrize("written", ["garbage", "far ahead", "as far as can be"])
async def test_a_mark_that_somebody_else_wrote_is_refused_and_made_anew(
    control_site: Site, bucket_url: str, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    async with control_site.running() as control:
        await upload(control, "old")
        await control.services.ownership.confirm()
        node = await control.join("one")
        good, before = await mark(bucket_url), await described(control)
        forged: dict[str, Any] = {
            "far ahead": good | {"counter": good["counter"] + 1000},
            "as far as can be": good | {"counter": 2**62},
        }
        await put_mark(bucket_url, orjson.dumps(forged[written]) if written in forged else written.encode())
        # While it runs, and when it is started.
        for again in (False, True):
            async with control_site.running() if again else nullcontext(control) as live:
                if not again:
                    with pytest.raises(ProblemError, match="store_mark_refused"):
                        await live.services.ownership.confirm()
                wasm = module("new")
                answer = await live.call("PUT", f"/v1/artifacts/{hashlib.sha256(wasm).hexdigest()}", wasm)
                assert (answer.status, answer.json()["code"]) == (503, "store_mark_refused")
                assert "take-over" in answer.json()["detail"]
                assert not await ready(live)
                assert (await replace(node, replica=live).ask(report=True)).status == 204
                row = await described(live)
                # Nothing was believed of it: the uploads that were refused have made their steps, and no others.
                assert before["counter"] <= row["counter"] <= before["counter"] + 2
                assert (row["held_since"], row["restored_at"]) == (None, None)
    assert await taken_over(control_site, monkeypatch)
    async with control_site.running() as control:
        assert control.services.ownership.problem is None
        assert control.services.ownership.held is not None
        await upload(control, "newer")
        await control.services.ownership.confirm()
        assert good["counter"] < (await mark(bucket_url))["counter"] < good["counter"] + 10
        await until(lambda: ready(control))


async def test_metadata_that_counted_on_from_a_forged_mark_begin_anew(
    control_site: Site, bucket_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a version before marks had codes did."""
    async with control_site.running() as control:
        await upload(control, "old")
    conn = await asyncpg.connect(control_site.settings.metadata_url)
    for counter in (2**62 + 1, 2**62 - 1):
        await conn.execute("UPDATE artifact_store SET counter = $1", counter)
        async with control_site.running() as control:
            assert control.services.ownership.problem is not None
            assert control.services.ownership.problem.code == "store_mark_refused"
        assert await taken_over(control_site, monkeypatch)
        async with control_site.running() as control:
            await upload(control, f"after {counter}")
            await control.services.ownership.confirm()
            assert control.services.ownership.problem is None
    await conn.close()


async def test_a_mark_of_a_version_without_codes_gets_one(control_site: Site, bucket_url: str) -> None:
    async with control_site.running() as control:
        await upload(control, "old")
        await control.services.ownership.confirm()
        good = await mark(bucket_url)
    for behind in (0, 1):
        plain = {"owner": good["owner"], "counter": good["counter"] - behind, "step": good["step"]}
        await put_mark(bucket_url, orjson.dumps(plain))
        async with control_site.running() as control:
            assert (control.services.ownership.problem, control.services.ownership.held) == (None, None)
            assert await mark(bucket_url) == good


async def test_status_tells_of_a_held_bucket_and_resume_ends_it(
    control: Control, monkeypatch: Any, capsys: Any, pki: Pki
) -> None:
    monkeypatch.setenv("SKERRY_URL", control.url)
    monkeypatch.setenv("SKERRY_TOKEN", control.token)
    monkeypatch.setenv("SKERRY_CA", str(pki.ca))
    await control.services.db.transaction(
        lambda conn: conn.execute("UPDATE artifact_store SET held_since = now(), held_reason = 'a reason'")
    )
    assert await asyncio.to_thread(cli, ["status"]) == 0
    assert "nothing is deleted since" in capsys.readouterr().out
    assert await asyncio.to_thread(cli, ["artifacts", "resume", "--yes"]) == 0
    assert await asyncio.to_thread(cli, ["artifacts", "show"]) == 0
    assert "in order" in capsys.readouterr().out


@pytest.mark.background("bucket's owner")
async def test_a_bucket_that_keeps_versions_is_told_of(
    services: ServerUrls, database_url: str, pki: Pki, tmp_path: Path
) -> None:
    bucket_url = await fresh_bucket(services.artifacts_url)
    async with s3_client(bucket_url) as client:
        await client.put_bucket_versioning(
            Bucket=bucket_url.rpartition("/")[2], VersioningConfiguration={"Status": "Enabled"}
        )
    async with (await replica.prepare(database_url, bucket_url, pki, tmp_path)).running() as control:
        control.services.ownership.wake()

        async def told() -> bool:
            return bool((await control.call("GET", "/v1/artifact-store")).json()["keeps_versions"])

        await until(told)
    await drop_bucket(bucket_url, again=False)


async def test_a_sweep_that_the_store_refuses_is_told_of(database_url: str, bucket_url: str, pki: Pki) -> None:
    """The key's policy lets nobody list the bucket."""
    async with store_proxy(bucket_url) as proxy, running(database_url, proxy.url, pki) as control:
        proxy.refused = lambda line: "list-type" in line
        with pytest.raises(ProblemError, match="s3:ListBucket"):
            await control.services.deletions.sweep()
        assert "s3:ListBucket" in (await control.ok("GET", "/v1/artifact-store"))["sweep_problem"]
        proxy.refused = lambda line: False
        await control.services.deletions.sweep()
        assert (await control.ok("GET", "/v1/artifact-store"))["sweep_problem"] is None


async def test_an_unknown_object_that_becomes_known_is_forgotten(control: Control) -> None:
    key = f"{'0' * 64}/00000000-0000-0000-0000-000000000002"
    await control.services.store.put(key, io.BytesIO(b"x"))
    control.clock.advance(hours=2)
    await control.services.deletions.sweep()
    assert (await control.ok("GET", "/v1/artifact-store"))["unknown_objects"] == 1
    await control.services.db.transaction(
        lambda conn: conn.execute(
            "INSERT INTO artifacts (id, sha256, size, state, created_at, state_since)"
            " VALUES ('00000000-0000-0000-0000-000000000002', $1, 1, 'ready', $2, $2)",
            "0" * 64,
            control.clock.now(),
        )
    )
    await control.services.deletions.sweep()
    assert (await control.ok("GET", "/v1/artifact-store"))["unknown_objects"] == 0
