"""Shows that a shop's data outlives its disk, and goes back with its release, and ends: status 0 if no order was lost
that must not be (`just demo-data`).

A control plane with PostgreSQL and SeaweedFS, and a node whose group is backed up, on which a shop takes orders without
a pause. Its disk is lost, and it joins again; then a release spoils its orders, is undone together with its data, and
comes back mended. Each order that was acknowledged is counted afterwards, in the node's database. The commands are
those that a user types. Everything listens on 127.0.0.1, and is gone afterwards, also after Ctrl-C.
"""

import argparse
import asyncio
import contextlib
import csv
import itertools
import os
import random
import re
import shlex
import signal
import sys
import time
from asyncio.subprocess import PIPE, STDOUT
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import orjson

from scripts.demos import Wrong, must, run, say
from tests.guests.build import guest
from tests.support.environment import without_settings
from tests.support.fleet import Fleet, FleetEdge, fleet
from tests.support.ports import free_port
from tests.support.supervised import Supervised

WAIT = 120.0
"""Seconds for anything that must come to be."""
SHOP = "oslo"
INTERVAL = 5.0
"""Seconds between two uploads, half of the usual."""
RPO = 1.5
"""The most of what was written that a lost disk may take with it, in intervals."""
CUSTOMERS = 8
PAUSE = 0.03
"""Seconds between a customer's orders."""
GOES_ON = 3.0
"""Seconds for which orders are taken before and after what happens to the shop."""
AT_ONCE = 0.5
"""Seconds by which customers may see answers later than others that were given after them."""
CENTS = {"milk": 149, "bread": 389, "coffee": 1_295}
BACK = re.compile(r"^Its database is back as it was at (\S+): ", re.MULTILINE)
FILES = {
    "orders.sql": "CREATE TABLE orders (number INTEGER PRIMARY KEY, item TEXT NOT NULL, cents INTEGER NOT NULL);",
    # It fills the wrong column: 149 cents become 1.
    "euros.sql": "ALTER TABLE orders ADD COLUMN euros REAL; UPDATE orders SET cents = cents / 100;",
    "mended.sql": "ALTER TABLE orders ADD COLUMN euros REAL; UPDATE orders SET euros = cents / 100.0;",
}
EUROS = "SELECT count(euros) AS with_euros, coalesce(sum(euros <> cents / 100.0), 0) AS wrong FROM orders"
SUMMARY = "SELECT item, count(*), min(cents), max(cents) FROM orders GROUP BY item"
BINARIES = Path(sys.executable).parent


@dataclass(frozen=True)
class Order:
    """An order that the shop has acknowledged."""

    number: int
    cents: int
    at: float
    """When the customer had the answer (Unix seconds)."""


class Customers:
    """Customers who order without a pause, whatever becomes of their orders."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self.acknowledged: list[Order] = []
        self.failed = 0
        """Orders that had no answer, or an error: nobody counts on them."""
        self._session = session
        self._url = url
        self._numbers = itertools.count(1)

    @asynccontextmanager
    async def ordering(self) -> AsyncIterator[None]:
        """Have them order until the block ends."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._order()) for _ in range(CUSTOMERS)]
            yield
            for task in tasks:
                task.cancel()

    def since(self, at: float) -> list[Order]:
        """Return the orders that were acknowledged after a time."""
        return [order for order in self.acknowledged if order.at > at]

    def until(self, at: float) -> list[Order]:
        """Return the orders that were acknowledged by a time."""
        return [order for order in self.acknowledged if order.at <= at]

    async def _order(self) -> None:
        while True:
            number = next(self._numbers)
            item = random.choice(list(CENTS))  # noqa: S311
            query: dict[str, str | int] = {"number": number, "item": item, "cents": CENTS[item]}
            try:
                async with self._session.post(f"{self._url}/functions/orders", params=query) as answer:
                    good = answer.status == 201 and await answer.text() == f"{number}\n"
            except (aiohttp.ClientError, TimeoutError, OSError):
                good = False
            if good:
                self.acknowledged.append(Order(number, CENTS[item], time.time()))
            else:
                self.failed += 1
            await asyncio.sleep(PAUSE)


class Shop:
    """A terminal beside the node, and the node, which a supervisor starts again when it has ended."""

    def __init__(self, made: Fleet) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._made = made
        self._environment = {
            **without_settings(),
            "PATH": f"{BINARIES}:{os.environ.get('PATH', os.defpath)}",
            "SKERRY_URL": made.url,
            "SKERRY_TOKEN": made.token,
            "SKERRY_CA": str(made.ca),
        }

    async def typed(self, command: str, *, shown: bool = True) -> str:
        """Run a command as somebody types it, and show it; return what it prints. Raises: Wrong, when it fails."""
        if shown:
            say(f"$ {command}")
        process = await asyncio.create_subprocess_exec(
            *("timeout", str(WAIT), "bash", "-c", command),
            cwd=self._made.folder,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=PIPE,
            stderr=STDOUT if shown else None,
            start_new_session=True,
        )
        try:
            printed = (await process.communicate())[0].decode()
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        if shown and printed.strip():
            say(printed.rstrip())
        must(process.returncode == 0, f"it ended with status {process.returncode}: {command}")
        return printed

    async def document(self, command: str) -> Any:
        """Run a command that prints a JSON document, unseen, and return that."""
        return orjson.loads(await self.typed(command, shown=False))

    async def orders(self) -> dict[int, int]:
        """Return the cents of each order in the node's database, by its number."""
        query = shlex.quote("SELECT number, cents FROM orders")
        await self.typed(f"skerry-edge sql --state {SHOP} --csv {query} > orders.csv")
        with (self._made.folder / "orders.csv").open(newline="") as file:
            return {int(number): int(cents) for number, cents in list(csv.reader(file))[1:]}

    async def summary(self) -> None:
        """Show the prices."""
        await self.typed(f"skerry-edge sql --state {SHOP} {shlex.quote(SUMMARY)}")

    async def status(self) -> Any:
        """Return what the node says of itself; None while it doesn't run."""
        with contextlib.suppress(aiohttp.ClientError, OSError):
            async with self._made.session.get(f"{self.url}/_skerry/status") as answer:
                if answer.status == 200:
                    return orjson.loads(await answer.read())
        return None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Supervised]:
        """Run the node, and start it again whenever it has ended, until the block ends."""
        made, listen = self._made, f"127.0.0.1:{self.port}"
        with (made.folder / "node.lock").open("w") as lock:
            arguments = ["edge_runtime.cli.main", "run", "--state", SHOP, "--listen", listen, "--workers", "1"]
            program = Supervised(SHOP, arguments, {}, made.folder, lock.fileno())
            made.edges[SHOP] = FleetEdge(SHOP, program, self.url, made.folder / SHOP)
            task = asyncio.create_task(program.run())
            try:
                yield program
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def until(self, what: str, condition: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a condition holds."""
        await self._made.until(what, condition, limit=WAIT)


class Demo:
    """One run of the demo."""

    def __init__(self, made: Fleet) -> None:
        self._made = made
        self._shop = Shop(made)
        self._customers = Customers(made.session, self._shop.url)
        self._undone: set[int] = set()
        """Numbers of the orders that were taken on the bad release."""
        self._lost: set[int] = set()
        """Numbers of the orders that went with the disk: written after the last upload."""
        self._table: list[tuple[str, str]] = []

    async def run(self) -> None:
        """Do all of it, and print what was counted. Raises: Wrong."""
        shop = self._shop
        for name, text in FILES.items():
            (self._made.folder / name).write_text(f"{text}\n")
        (self._made.folder / "orders.wasm").write_bytes(await asyncio.to_thread(guest, "orders"))
        await self._made.call("GET", "/v1/groups")
        say("# A shop whose node is backed up")
        await shop.typed(f"skerry group backup default --interval {INTERVAL:g}s")
        await shop.typed(self._join())
        say(f"$ skerry-edge run --state {SHOP} --listen 127.0.0.1:{shop.port} &")
        async with shop.running() as node:
            await shop.typed("skerry schema add orders.sql --name orders")
            await shop.typed("skerry function push orders orders.wasm --sql write --wait")
            async with self._customers.ordering():
                await self._lose_the_disk(node)
                await self._spoil_and_undo()
                await self._release_mended()
                await asyncio.sleep(GOES_ON)
            await self._count_the_last()
        self._show()

    def _join(self, rejoin: str = "") -> str:
        token = f"skerry node token {rejoin}".rstrip()
        join = f"skerry-edge join --state {SHOP} --control {self._made.url} --name {SHOP}"
        return f"SKERRY_JOIN_TOKEN=$({token} 2>/dev/null) {join}"

    async def _lose_the_disk(self, node: Supervised) -> None:
        """Lose the disk under load, and bring the node back."""
        shop, customers = self._shop, self._customers
        await self._backed_up(2)
        await asyncio.sleep(INTERVAL * random.random())  # noqa: S311
        say(f"\n# Its disk is lost, while it takes orders: {len(customers.acknowledged)} so far")
        node.wanted.clear()
        await shop.typed(f"kill -9 {node.pid}; until rm -rf {SHOP} && ! [ -e {SHOP} ]; do sleep 0.1; done")
        acknowledged = list(customers.acknowledged)
        lost_at = acknowledged[-1].at
        named = BACK.search(await shop.typed(self._join(f"--rejoin {SHOP}")))
        if named is None:
            raise Wrong("it has joined again without its data")
        say(f"$ skerry-edge run --state {SHOP} --listen 127.0.0.1:{shop.port} &")
        node.wanted.set()
        await self._takes_orders()
        rows = await shop.orders()
        at = _seconds(named[1])
        by_then, later = customers.until(at), [order for order in acknowledged if order.at > at]
        missing = [order for order in by_then if rows.get(order.number) != order.cents]
        lost = max(0.0, lost_at - at)
        self._lost = {order.number for order in later if order.number not in rows}
        self._line("acknowledged before the disk was lost", len(acknowledged))
        self._line(f"  by {named[1]}, which join names", len(by_then))
        self._line("    of those missing afterwards", len(missing))
        self._line(f"  later, in {lost:.1f} s (at most {RPO * INTERVAL:g} s)", len(later))
        must(not missing, f"these orders are missing: {missing[:5]}")
        must(lost <= RPO * INTERVAL, f"{lost:.1f} s of orders were lost, and {RPO * INTERVAL:g} s are allowed")

    async def _spoil_and_undo(self) -> None:
        """Have a release spoil the orders, and undo it with its data."""
        shop, customers = self._shop, self._customers
        await asyncio.sleep(GOES_ON)
        say("\n# A bad release")
        await shop.typed("skerry schema add euros.sql --name euros --wait")
        releases = await shop.document("skerry release list --json")
        bad = max(release["number"] for release in releases)
        await asyncio.sleep(GOES_ON)
        await shop.summary()
        rows = await shop.orders()
        spoiled = [order for order in customers.acknowledged if rows.get(order.number, order.cents) != order.cents]
        must(spoiled, "the bad release has spoiled no order")
        await self._backed_up(1)
        say(f"\n# It is undone, with what it did to the data: {len(spoiled)} orders have a wrong price")
        at = await self._undo()
        await self._takes_orders()
        until = time.time()
        await shop.summary()
        rows = await shop.orders()
        before = [order for order in customers.until(at) if order.number not in self._lost]
        missing = [order for order in before if order.number not in rows]
        wrong = [order for order in before if order.number in rows and rows[order.number] != order.cents]
        since = [order for order in customers.since(at) if order.at <= until]
        later = [order for order in since if order.number not in rows]
        # Some were under way when that state was.
        again = min(order.at for order in since if order.number in rows and order.at > at + AT_ONCE)
        self._undone = {order.number for order in later}
        self._line(f"acknowledged by {_text(at)}, just before release {bad}", len(before))
        self._line(f"  with a wrong price on release {bad}", len(spoiled))
        self._line("  with a wrong price after the undo", len(wrong))
        self._line("  missing after the undo", len(missing))
        self._line(f"taken on release {bad}, and undone with it", len(later))
        must(not wrong, f"these orders still have a wrong price: {wrong[:5]}")
        must(not missing, f"these orders are missing: {missing[:5]}")
        after = [order for order in later if order.at > again + AT_ONCE]
        must(not after, f"these orders were taken after the undo, and are missing: {after[:5]}")

    async def _undo(self) -> float:
        """Undo the bad release with its data; return of which time the shop's data are then."""
        shop = self._shop
        await shop.typed("skerry rollback --data --yes --wait --reason 'prices are wrong'")
        restore: Any = None

        async def done() -> bool:
            nonlocal restore
            (listed,) = await shop.document("skerry data list --json")
            restore = listed["restore"]
            must(restore is None or restore["state"] != "failed", f"the restore failed: {restore}")
            return restore is not None and restore["state"] == "done"

        await shop.until(f"{SHOP} has its data of before", done)
        return _seconds(restore["at"])

    async def _release_mended(self) -> None:
        """Have the release come back without its fault."""
        shop = self._shop
        say("\n# It comes back mended")
        before = list(self._customers.acknowledged)
        await shop.typed("skerry schema amend 2 mended.sql --wait")
        printed = await shop.typed(f"skerry-edge sql --state {SHOP} --csv {shlex.quote(EUROS)}")
        ((filled, wrong),) = list(csv.reader(printed.splitlines()))[1:]
        kept = [order for order in before if order.number not in self._lost | self._undone]
        self._line("with the right price in euros by the mended release", int(filled) - int(wrong))
        must(
            wrong == "0" and int(filled) >= len(kept), f"of {len(kept)} orders, {filled} have euros, {wrong} wrong ones"
        )

    async def _count_the_last(self) -> None:
        """Count all orders, once nobody orders any more."""
        shop, customers = self._shop, self._customers
        say("\n# The customers have gone home")
        await shop.summary()
        await shop.typed("skerry status")
        rows = await shop.orders()
        left = [order for order in customers.acknowledged if order.number not in self._lost | self._undone]
        wrong = [order for order in left if rows.get(order.number) != order.cents]
        self._line("acknowledged in all, and neither lost nor undone", len(left))
        self._line("  missing, or with a wrong price, at the end", len(wrong))
        must(not wrong, f"these orders are missing or wrong: {wrong[:5]}")

    async def _backed_up(self, uploads: int) -> None:
        """Wait until this many more files of the node are at the store."""
        wanted: int | None = None

        async def there() -> bool:
            nonlocal wanted
            backup = ((await self._shop.status()) or {}).get("backup")
            if backup is None:
                return False
            must(not backup["error"], f"the backup: {backup['error']}")
            wanted = backup["uploads"] + uploads if wanted is None else wanted
            return bool(backup["uploads"] >= wanted)

        await self._shop.until("the store has more of the node's files", there)

    async def _takes_orders(self) -> None:
        """Wait until customers' orders are acknowledged again."""
        count = len(self._customers.acknowledged)

        async def there() -> bool:
            return len(self._customers.acknowledged) > count

        await self._shop.until("orders are acknowledged again", there)

    def _line(self, what: str, number: int) -> None:
        self._table.append((what, str(number)))

    def _show(self) -> None:
        rows = [("ORDERS", "COUNTED"), *self._table]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        say("")
        for what, number in rows:
            say(f"{what:<{widths[0]}}  {number:>{widths[1]}}")


def _seconds(time: str) -> float:
    """Return a time of RFC 3339 as Unix seconds."""
    return datetime.fromisoformat(time).timestamp()


def _text(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%H:%M:%S} UTC"


async def main() -> None:
    """Run the demo. Raises: Wrong."""
    async with fleet(replicas=1) as made:
        await Demo(made).run()


if __name__ == "__main__":
    argparse.ArgumentParser(prog="just demo-data", description=(__doc__ or "").partition("\n\n")[0]).parse_args()
    sys.exit(run(main, "no order was lost that must not be"))
