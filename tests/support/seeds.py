"""Rows that a test needs many of, or without the work of making them: written straight into the metadata database."""

import asyncio
from collections.abc import Mapping
from datetime import datetime
from typing import Any
from uuid import uuid4

import msgspec

from control import tokens
from control.api import artifacts
from control.local.seaweedfs import s3_client
from control.protocol import wire
from control.protocol.manifest import Manifest, manifest_digest
from control.storage import queries
from edge_runtime.oneshot.check import check_module
from tests.support.replica import Replica, TestNode
from tests.support.ways import at_once


async def function(replica: Replica, name: str, *, size: int = 100) -> int:
    """A new version of a function, whose artifact the store doesn't have; returns its number."""
    services = replica.services
    now = services.clock.now()
    manifest = Manifest()

    async def work(conn: Any) -> int:
        version: int = await conn.fetchval(
            "INSERT INTO functions (name, last_version, created_at) VALUES ($1, 1, $2)"
            " ON CONFLICT (name) DO UPDATE SET last_version = functions.last_version + 1 RETURNING last_version",
            name,
            now,
        )
        artifact, sha256 = uuid4(), wire.schema_checksum(f"{name} {version}")
        await conn.execute(
            "INSERT INTO artifacts (id, sha256, size, state, created_at, state_since)"
            " VALUES ($1, $2, $3, 'ready', $4, $4)",
            artifact,
            sha256,
            size,
            now,
        )
        await conn.execute(
            "INSERT INTO function_versions"
            " (name, version, artifact_id, sha256, size, manifest, manifest_digest, created_by, created_at)"
            " VALUES ($1, $2, $3, $4, $5, $6, $7, 'test', $8)",
            name,
            version,
            artifact,
            sha256,
            size,
            msgspec.to_builtins(manifest),
            manifest_digest(manifest),
            now,
        )
        return version

    return await services.db.transaction(work)


async def schema_change(replica: Replica, number: int, sql: str, *, revision: int = 1) -> None:
    """A schema change that nobody has tried."""
    now = replica.services.clock.now()
    await replica.services.db.transaction(lambda conn: add_change(conn, now, number, sql, revision=revision))


async def add_change(conn: Any, now: datetime, number: int, sql: str, *, revision: int = 1) -> None:
    """Write a schema change into the metadata database, as if control had checked it."""
    await conn.execute(
        "INSERT INTO schema_changes (number, revision, name, sql, checksum, created_by, created_at)"
        " VALUES ($1, $2, $3, $4, $5, 'test', $6)",
        number,
        revision,
        f"change {number}",
        sql,
        wire.schema_checksum(sql),
        now,
    )


async def add_versions(
    conn: Any, store_url: str, now: datetime, name: str, modules: Mapping[int, bytes], manifest: Manifest
) -> None:
    """Versions of a function, by their numbers, with their artifacts, as if each had been pushed and checked."""
    sql = queries.load("artifacts") | queries.load("functions")
    bucket = store_url.rpartition("/")[2]
    async with s3_client(store_url) as store:
        for number, wasm in modules.items():
            found, artifact = check_module(wasm), str(uuid4())
            kept = msgspec.structs.replace(manifest, abi=found["abi"])
            sha256, size = found["sha256"], found["size"]
            await store.put_object(Bucket=bucket, Key=artifacts.object_key(sha256, artifact), Body=wasm)
            await conn.execute(sql["begin"], artifact, sha256, size, found["abi"], found["memory_pages"], now)
            await conn.execute(sql["set_ready"], artifact, now)
            assert await conn.fetchval(sql["next_version"], name, now) == number
            fields, digest = msgspec.to_builtins(kept), manifest_digest(kept)
            await conn.execute(sql["add"], name, number, artifact, sha256, size, fields, digest, "test", now)


async def release(replica: Replica, group: str = "default", **body: Any) -> Any:
    """A release, made as operators make it, for all nodes at once, unless `body` says how it goes out."""
    answer = await replica.call("POST", "/v1/releases", {"group": group, **at_once(body), **body})
    assert answer.status == 201, answer.body
    return answer.json()


async def nodes(replica: Replica, count: int) -> list[TestNode]:
    """Nodes of the group `default` that have reported an empty inventory, with credentials that were used before."""
    services = replica.services
    now = services.clock.now()
    made, rows = [], []
    for number in range(count):
        token = tokens.new_token("node")
        node = TestNode(replica, str(uuid4()), token.text)
        made.append(node)
        rows.append((node.id, f"seed-{number}", wire.digest(node.inventory), str(token.id), token.secret_hash))
    ids, names, digests, credentials, hashes = (list(column) for column in zip(*rows, strict=True))

    async def work(conn: Any) -> None:
        await conn.execute(
            "INSERT INTO nodes (id, name, group_id, state, state_since, joined_at, digest)"
            " SELECT u.id::uuid, u.name, (SELECT id FROM groups WHERE name = 'default'), 'online', $4, $4, u.digest"
            " FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, name, digest)",
            ids,
            names,
            digests,
            now,
        )
        await conn.execute(
            "INSERT INTO node_presence (node_id, last_seen_at, confirmed_at)"
            " SELECT id::uuid, $2, $2 FROM unnest($1::text[]) AS u (id)",
            ids,
            now,
        )
        await conn.execute(
            "INSERT INTO credentials (id, node_id, secret_hash, created_at, first_used_at)"
            " SELECT u.id::uuid, u.node::uuid, u.hash, $4, $4"
            " FROM unnest($1::text[], $2::text[], $3::text[]) AS u (id, node, hash)",
            credentials,
            ids,
            hashes,
            now,
        )

    await services.db.transaction(work)
    return made


async def behind(replica: Replica, count: int) -> list[TestNode]:
    """Nodes that aren't at their target: each next poll begins a sync."""
    made = await nodes(replica, count)
    await asyncio.gather(*(node.poll() for node in made))
    await release(replica, functions={"hello": await function(replica, "hello")})
    return made


def name_of(replica: Replica, node: TestNode) -> str:
    """The name of a node that the replica knows."""
    return replica.services.fleet.nodes[node.id].name
