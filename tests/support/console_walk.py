"""A walk over all pages of the console: a fleet with what breaks pages, and what is looked at on each.

There are one and many of most things, names of 63 characters, markup in texts, times that have been and that come.
"""

from playwright.async_api import Page

from control.protocol import wire
from control.storage.connection import Connection
from tests.support import numbers, seeds
from tests.support.console import MARKUP, fails, release
from tests.support.console_browser import Look
from tests.support.replica import Replica, TestNode

LONG = "a-name-that-is-as-long-as-names-may-be-and-has-no-place-to-be-x"
"""Of a node, a group, a function and an operator: 63 characters, the most that there may be."""
LONG_PATHS = (
    f"/nodes?group={LONG}",
    f"/nodes/{LONG}",
    f"/nodes/{LONG}/log",
    f"/nodes/{LONG}/naming",
    f"/acts/move?node={LONG}&to=default",
    f"/acts/move?node=edge-001&node=edge-002&to={LONG}",
    f"/acts/remove?node={LONG}",
    f"/acts/revoke?node={LONG}",
    f"/releases?group={LONG}",
    f"/releases/{LONG}/1",
    f"/releases/{LONG}/1/rollback",
    f"/releases/new?group={LONG}&do=plan",
    f"/groups/{LONG}/delete",
    "/functions",
    f"/functions/{LONG}",
    f"/audit?actor=admin&target={LONG}",
    "/operators",
    f"/operators/{LONG}",
    f"/operators/{LONG}/revoke",
    "/make-operator",
    "/join-tokens",
    "/join-tokens/new",
    "/schema/new",
    "/schema/1/amend",
    f"/calls?function={LONG}&group={LONG}&node={LONG}",
    f"/go?q={LONG[:20]}",
    "/nodes?error=schema_change_failed",
    "/errors/schema_change_failed",
    "/errors/history_mismatch",
    "/login",
)
"""Pages of those names, and those with a list or a form of them."""
PATHS = (
    "/",
    "/nodes",
    "/nodes?standing=failing&group=default",
    "/nodes?sort=seen",
    "/nodes?find=nothing-is-called-so",
    "/nodes/edge-000",
    "/nodes/edge-001",
    "/nodes/edge-001/log",
    "/acts/retry?node=edge-000&node=edge-001",
    "/acts/move?node=edge-001",
    "/acts/move?node=edge-001&to=shops",
    "/acts/remove?node=edge-001",
    "/releases",
    "/releases/default/1",
    "/releases/new?group=default",
    "/schema",
    "/schema/1",
    "/audit",
    "/settings",
    "/go?q=edge",
    *LONG_PATHS,
)
"""Each page, in each of its states that look different."""
NODES = """
INSERT INTO nodes (id, name, labels, capabilities, protocol, group_id, state, state_since, joined_at,
    confirmed_generation, error_code, error_message, error_at)
SELECT gen_random_uuid(), 'edge-' || lpad(i::text, 3, '0'),
    jsonb_build_object('site', 's' || (i % 9), 'note', $1::text),
    '{}', 2, g.id, CASE WHEN i % 7 = 0 THEN 'offline' WHEN i % 9 = 0 THEN 'syncing' ELSE 'online' END, now(), now(),
    CASE WHEN i % 5 = 0 OR i % 9 = 0 THEN 0 ELSE g.generation END, CASE WHEN i % 5 = 0 THEN 'disk_full' ELSE '' END,
    CASE WHEN i % 5 = 0 THEN $1::text ELSE '' END, now()
FROM generate_series(1, 130) AS i JOIN groups AS g ON g.name = CASE WHEN i % 4 = 0 THEN 'shops' ELSE 'default' END
"""
PRESENCE = """
INSERT INTO node_presence (node_id, last_seen_at, confirmed_at)
SELECT id, now(), now() FROM nodes ON CONFLICT DO NOTHING
"""
ENDED = "UPDATE operators SET expires_at = now() - interval '40 days' WHERE name = 'ended'"
CUT = """() => [...document.querySelectorAll("main *, header *, nav *")].filter((e) => {
  const style = getComputedStyle(e)
  if (e.closest("svg, .vh, [title]") || e.matches("input, select, textarea") || e.clientWidth < 2) return false
  const hides = (way) => way === "hidden" || way === "clip"
  return hides(style.overflowX) && e.scrollWidth > e.clientWidth + 1
    || hides(style.overflowY) && e.scrollHeight > e.clientHeight + 1
}).map((e) => `cut off: ${e.outerHTML.slice(0, 200)}`).concat(
  [...document.querySelectorAll(".tiles")].filter((tiles) =>
    tiles.lastElementChild.getBoundingClientRect().right < tiles.getBoundingClientRect().right - 3
  ).map(() => "a hole behind the last tile"))"""
"""What shows a part of its content alone, with no way to the rest: neither scrolled nor told by a title. And a row of
tiles that isn't full."""
SAID = """() => {
  const found = []
  for (const time of document.querySelectorAll("time"))
    if (!(time.title || time.textContent).endsWith(" UTC")) found.push(`no zone: ${time.outerHTML}`)
  const text = document.body.innerText
  const words = "nodes|rows|calls|groups|functions|releases|failures|times|causes|errors|operators|changes"
  for (const [said] of text.matchAll(/.{0,20}\\b\\d{4}-\\d\\d-\\d\\d[ T]\\d\\d:\\d\\d(?![\\d:.]*( UTC|Z|\\+00:00))/g))
    found.push(`no zone: ${said}`)
  for (const [said] of text.matchAll(new RegExp(`(?<![\\\\d.,:/-])\\\\b1 (${words})\\\\b`, "g")))
    found.push(`one of many: ${said}`)
  for (const code of document.querySelectorAll("code"))
    if (code.textContent === "schema_change_failed" && !code.closest("a, h1"))
      found.push(`leads nowhere: ${code.outerHTML}`)
  return found
}"""
"""Times whose zone isn't said, words in the plural for one, and codes of errors that are no link."""


async def fill(replica: Replica, first: TestNode) -> None:
    """Have a fleet of which `first`, which has joined, is one that fails."""
    await replica.call("POST", "/v1/groups", {"name": "shops"})
    await release(replica, "default")
    await fails(first, "schema_change_failed", MARKUP)
    await replica.call("POST", "/v1/releases", {"group": "shops", "now": True})
    await replica.call("POST", "/v1/groups", {"name": LONG})
    await seeds.release(replica, LONG, functions={LONG: await seeds.function(replica, LONG)})
    await fails(long := await replica.join(LONG, LONG), "schema_change_failed", MARKUP)
    now = int(replica.services.clock.now().timestamp())
    schedules = [
        wire.LineNumbers(
            LONG, ",".join(map(str, range(36))), now - 90_000, "guest_response_invalid", now - 90, 90, 12_345
        ),
        wire.LineNumbers(LONG, "0 3 * * *", now - 60, "ok", now + 90_000),
        wire.LineNumbers(LONG, "", now - 60, MARKUP[:64]),
    ]
    await numbers.tell(long, numbers.message([], node=wire.NodeNumbers(1, schedules=schedules)))
    await replica.services.numbers.nodes.write()
    grants = [{"role": "deploy", "group": LONG}, {"role": "push", "group": LONG, "functions": [LONG]}]
    for name, expires_in in ((LONG, None), ("ending", 3600), ("ended", 3600)):
        made = await replica.call("POST", "/v1/operators", {"name": name, "grants": grants, "expires_in": expires_in})
        assert made.status == 201, made.body
    for rejoin in ({}, {"rejoin": LONG}):
        made = await replica.call("POST", "/v1/join-tokens", {"group": LONG, **rejoin})
        assert made.status == 201, made.body

    async def write(conn: Connection) -> None:
        await conn.execute(NODES, MARKUP)
        await conn.execute(PRESENCE)
        await conn.execute(ENDED)

    await replica.services.db.transaction(write)


async def faults(tab: Look, width: int) -> list[str]:
    """What is wrong with the page that is shown, at a width and at one between it and the usual ones of its kind."""
    found: list[str] = list(await tab.page.evaluate(SAID))
    for other in (width, 390 if width < 700 else 1280):
        await _resize(tab.page, other)
        wide = await tab.page.evaluate("document.documentElement.scrollWidth")
        found += [f"{wide} px wide at {other}"] * (wide > other)
        found += [f"at {other}: {each}" for each in await tab.page.evaluate(CUT)]
    await _resize(tab.page, width)
    return found


async def _resize(page: Page, width: int) -> None:
    await page.set_viewport_size({"width": width, "height": 900})
