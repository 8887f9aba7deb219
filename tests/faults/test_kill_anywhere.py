"""Every process of a cluster is killed at every step of a sync, and at random, while clients call, write and read.

Whatever is killed, the node is wholly at the old or the new release, loses nothing that it acknowledged, and comes to
the newest release by itself. SKERRY_TEST_KILLS says how many kills, SKERRY_TEST_SEED repeats a run's order.
"""

import asyncio
import contextlib
import hashlib
import os
import random
import signal
import time
from dataclasses import dataclass

import pytest

from control.local.seaweedfs import s3_client
from tests.support.cluster import Cluster, cluster
from tests.support.load import LOST, Load, check_writes

KILLS = int(os.environ.get("SKERRY_TEST_KILLS", "4"))
SEED = int(os.environ.get("SKERRY_TEST_SEED") or random.SystemRandom().randrange(1_000_000))

WHO = {
    "control.poll": "control",
    "edge.sync.fetch": "front",
    "edge.sync.compile": "front",
    "edge.birth.compiler": "zygote",
    "edge.compile": "compiler",
    "edge.sync.flip": "front",
    "edge.load": "worker",
    "edge.sync.prepare": "front",
    "edge.birth.applier": "zygote",
    "edge.apply": "applier",
    "edge.commit": "applier",
    "edge.call.commit": "worker",
    "edge.sync.swap": "front",
    "edge.sync.report": "front",
    "control.result": "control",
}
"""The steps of a sync, and the process that takes each; a call's commit may come at any time."""
STEPS = list(WHO)

ALSO = {
    "front": STEPS,
    "zygote": [step for step in STEPS if step.startswith("edge.")],
    "worker": [step for step in STEPS if step.startswith("edge.")],
    "control": [step for step in STEPS if step.startswith("edge.sync.")] + ["edge.apply", "edge.commit"],
    "database": ["control.poll", "edge.sync.fetch", "edge.sync.report", "control.result"],
    "store": ["control.poll", "edge.sync.fetch"],
}
"""The steps in which a process takes part, or that must not need it, besides its own."""

MAY_FAIL = {
    "front": {LOST},
    "zygote": {"worker_crashed", "commit_unknown"},
    "worker": {"worker_crashed", "commit_unknown"},
}
"""What calls may fail of when a process is killed; those of the others cost no call anything."""

WORKERS = 2
AT_MOST = {"zygote": WORKERS, "worker": 1}
"""So many calls: those that ran in the processes that ended."""


@dataclass(frozen=True)
class Kill:
    """When the process `victim` is killed: as a sync reaches `point`, or at a random moment where `point` is empty."""

    victim: str
    point: str = ""

    def __str__(self) -> str:
        return f"{self.victim} is killed {f'at {self.point}' if self.point else 'at random'}"


def plan(kills: int, chance: random.Random) -> list[Kill]:
    """Each process at its own steps first, then at those of the others, then, a fifth at least, at random."""
    own = [Kill(who, point) for step, who in WHO.items() for point in _points(step)]
    own += [Kill("database", "control.poll.before"), Kill("database", "control.result.before")]
    own += [Kill("store", "edge.sync.fetch.before")]
    others = [
        Kill(who, f"{step}.{when}") for who, steps in ALSO.items() for step in steps for when in ("before", "after")
    ]
    others = [kill for kill in others if kill not in own]
    chance.shuffle(own)
    chance.shuffle(others)
    chosen = (own + others)[: kills * 4 // 5]
    victims = ["front", "zygote", "worker", "applier", "control", "database", "store"]
    chosen += [Kill(victims[n % len(victims)]) for n in range(kills - len(chosen))]
    chance.shuffle(chosen)
    return chosen


def _points(step: str) -> tuple[str, str]:
    return f"{step}.before", f"{step}.after"


@pytest.mark.timeout(600 + KILLS * 6)
async def test_kill_anywhere() -> None:
    print(f"SKERRY_TEST_KILLS={KILLS} SKERRY_TEST_SEED={SEED}")
    chance = random.Random(SEED)
    kills = plan(KILLS, chance)
    async with cluster(WORKERS) as made:
        await made.seed(range(2, KILLS + 2))
        async with Load(made, versions=4, writers=2, readers=1, slow=60, pause=0.08) as load:
            for number, kill in enumerate(kills, 2):
                made.doing = f"{kill} (kill {number - 1} of {KILLS}, seed {SEED}) in the sync to release {number}"
                began = time.monotonic()
                await _round(made, load, kill, number, chance)
                print(f"{number - 1:4} {time.monotonic() - began:5.1f} s  {kill}")
        made.doing = f"all {KILLS} kills are done, seed {SEED}"
        load.check()
        for program, victim in ((made.front, "front"), (made.control, "control")):
            assert len(program.ends) == sum(kill.victim == victim for kill in kills), (victim, program.ends)
        await check_writes(made, load)
        await _check_control(made)
        _check_leftovers(made)
    assert load.written
    assert load.answered > KILLS * 10


async def _round(made: Cluster, load: Load, kill: Kill, number: int, chance: random.Random) -> None:
    """One release and one kill; then the node must serve, and come to the release."""
    failures = len(load.failures)
    workers = made.born()
    if not kill.point and kill.victim == "applier":
        # It lives for milliseconds.
        made.arm("edge.apply.before", "hold")
    elif kill.point:
        # A process kills itself at its own step; at another's, that one is held meanwhile.
        made.arm(kill.point, "kill" if _own(kill) else "hold")
    # Answered later where control is held, or where what it needs is dead.
    releasing = asyncio.ensure_future(made.release(number))
    try:
        await (_at_point(made, kill, workers) if kill.point else _at_random(made, kill, workers, chance))
        made.disarm()
        await _serves(made, load)
        await _start_again(made, kill)
    except BaseException:
        releasing.cancel()
        raise
    await releasing
    await made.converged(number, hurry=chance.random() < 0.9)
    await load.progress(number)
    made.check_ends()
    # One that was under way at the kill must not be counted as the next kill's.
    await load.settled()
    failed = load.failed(failures)
    other = set(failed) - MAY_FAIL.get(kill.victim, set())
    made.check(not other, f"calls failed: {[f for f in load.failures[failures:] if f.kind in other][:5]}")
    most = AT_MOST.get(kill.victim, 10_000)
    made.check(failed.total() <= most, f"{failed} calls failed, at most {most} were in those processes")


def _own(kill: Kill) -> bool:
    return WHO[kill.point.rpartition(".")[0]] == kill.victim


async def _at_point(made: Cluster, kill: Kill, workers: list[int]) -> None:
    await made.reached(kill.point)
    if not _own(kill):
        await _kill(made, kill.victim, workers)


async def _at_random(made: Cluster, kill: Kill, workers: list[int], chance: random.Random) -> None:
    if kill.victim == "applier":
        applier = await made.reached("edge.apply.before")
        made.let_go("edge.apply.before")
        await asyncio.sleep(chance.uniform(0, 0.02))
        _end(applier)
    else:
        await asyncio.sleep(chance.uniform(0, 0.6))
        await _kill(made, kill.victim, workers)


async def _kill(made: Cluster, victim: str, workers: list[int]) -> None:
    """-9, whatever it is doing. `workers`: process ids before the sync."""
    match victim:
        case "front":
            made.front.kill()
        case "control":
            made.control.kill()
        case "zygote":
            _end(made.zygote())
        case "worker":
            alive = [pid for pid in made.born() if pid in workers]
            _end((alive or workers)[0])
        case "database":
            await made.services.metadata.kill()
        case "store":
            await made.services.artifacts.kill()
        case _:
            raise AssertionError(victim)


def _end(pid: int) -> None:
    assert pid, "there is no such process"
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


async def _start_again(made: Cluster, kill: Kill) -> None:
    """Control and the front have their supervisor; the services of this machine are started by us."""
    if kill.victim == "database":
        await made.services.metadata.start()
    if kill.victim == "store":
        await made.services.artifacts.start()


async def _serves(made: Cluster, load: Load) -> None:
    """Whatever has been killed, calls are answered again at once, on the old release or the new one."""
    answered = load.answered

    async def there() -> bool:
        load.check()
        return load.answered > answered + 5

    await made.until("calls are answered", there, lambda: load.failures[-3:], limit=45)


async def _check_control(made: Cluster) -> None:
    """What control acknowledged is there: releases, versions, the artifacts' bytes; and no sync is open."""
    released = {item["number"] for item in await made.items("/v1/releases")}
    made.check(set(made.released) <= released, f"releases are missing: {set(made.released) - released}")
    versions = {item["version"]: item["sha256"] for item in await made.items("/v1/functions/version/versions")}
    made.check(versions == made.pushed, f"versions are missing: {made.pushed.keys() - versions.keys()}")
    made.check(not await made.items("/v1/syncs?status=running"), "a sync is still open")
    failed = {sync["error"]["code"] for sync in await made.items("/v1/syncs") if sync["error"]}
    made.check("database_unverified" not in failed, "a front didn't believe its libsql file after a kill")
    url = made.services.artifacts_url
    bucket = url.rpartition("/")[2]
    async with s3_client(url) as client:
        there = set()
        async for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
            for found in page.get("Contents", []):
                got = await client.get_object(Bucket=bucket, Key=found["Key"])
                there.add(hashlib.sha256(await got["Body"].read()).hexdigest())
    missing = set(made.pushed.values()) - there
    made.check(not missing, f"artifacts are missing from the store: {missing}")


def _check_leftovers(made: Cluster) -> None:
    """Kills don't fill the node's disk: files of two releases are kept, and a kill leaves a few more at most."""
    for folder, most in (("artifacts", 10), ("aot", 40)):
        found = sorted(path.name for path in (made.folder / "edge" / folder).iterdir())
        made.check(len(found) <= most, f"{len(found)} files are left in {folder}: {found}")
