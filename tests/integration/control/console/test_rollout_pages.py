"""Rollouts in the console: what pages say of each state, to whom, live; and acts, as they were shown or not at all."""

import html
import re
from typing import Any

import pytest

from control.console.formats import UNKNOWN
from tests.support import console_rollouts, deploy
from tests.support.console import MARKUP, ShownPage, live, page, send
from tests.support.replica import Replica, Site

KEY = "k" * 12


async def state(replica: Replica, group: str) -> tuple[str, int, str]:
    """Where the rollout of release 2 stands."""
    found = await deploy.ok(replica, "GET", f"/v1/rollouts/{group}/2")
    return found["state"], found["step"], found["waits_for"]


def fields(shown: ShownPage) -> dict[str, str]:
    """What the form of an act sends."""
    form = re.search(r'<form[^>]* action="[^"]*/rollout/.*?</form>', shown.text, re.DOTALL)
    assert form, shown.words
    return hidden(form[0])


def hidden(form: str) -> dict[str, str]:
    """The hidden fields of a form."""
    pairs = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
    return {name: html.unescape(value) for name, value in pairs}


def title(shown: ShownPage) -> str:
    found = re.search("<title>(.*?)</title>", shown.text)
    assert found
    return html.unescape(found[1])


async def act(replica: Replica, group: str, name: str, **more: str) -> ShownPage:
    """Do an act as its page shows it."""
    at = f"/releases/{group}/2/rollout/{name}"
    shown = await page(replica, at)
    assert shown.status == 200, shown.words
    return await send(replica, at, **{**fields(shown), **more})


async def test_each_state_says_where_it_stands_and_who_decides(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        said = {
            "baking": ("baking at step 2 of 4", ["It bakes until 2026-12-02T02:30:00Z"]),
            "gated": (
                "held at step 2 of 4",
                [
                    "Held at step 2 of 4: gate 1 failed",
                    "No further node starts until somebody with the role deploy decides",
                    "5.8 % measured, 0.5 % allowed, 0.02 % before",
                    "1 failing, 1 syncing, 36 not begun, 2 at target, of 40 nodes",
                ],
            ),
            "rehearsed": ("held by its rehearsal", ["Held by its rehearsal: the rehearsal failed on 2 nodes of 40"]),
            "stopped": ("aborted at step 2 of 4", ["Nodes that run release 2 keep it", "all others run release 1"]),
            "finished": ("at target on 39 nodes", ["It went out to all nodes", "39 of 40 nodes at target"]),
        }
        for group, (verdict, texts) in said.items():
            shown = await page(replica, f"/releases/{group}/2")
            assert shown.status == 200
            assert "<img" not in shown.text
            assert title(shown) == f"{verdict} · {group} 2 · Skerry"
            for text in (verdict, *texts):
                assert text in shown.words, (group, text, shown.words)
        shown = await page(replica, "/releases/gated/1")
        assert "2 goes out in its place" in shown.words
        shown = await page(replica, "/releases")
        for text in ("held at step 2 of 4 4 of 40 nodes started", "held by its rehearsal", "aborted"):
            assert text in shown.words, text
        shown = await page(replica, "/")
        assert "1 node failing, 5 offline, 2 releases held" in shown.words
        assert "gated 2 held at step 2 of 4 Gate 1 failed" in shown.words
        assert "baking 2 baking at step 2 of 4 It bakes until" in shown.words
        flight = shown.words[shown.words.index("Releases in flight") :]
        assert flight.index("gated 2") < flight.index("baking 2"), "those that wait for somebody are first"
        assert "stopped 2" not in flight[: flight.index("What happened last")]


async def test_steps_gates_and_rehearsal_show_their_values(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        shown = await page(replica, "/releases/gated/2")
        steps = shown.part("steps")
        for text in (
            "Step 1 1 node passed 1 of 1 1 at target",
            "Step 2 10% held 1 of 3 1 failing, 1 syncing, 1 at target Gate 1 failed Gates: 1 failed, 2 unknown",
            "Step 3 50% not begun 16 nodes Bakes 10m Then waits for approval by the role admin",
            "Step 4 100% not begun 20 nodes",
        ):
            assert text in steps, (text, steps)
        assert re.search(r'<li class="now" aria-current="step"><h3><span>Step 2', shown.text)
        gates = shown.part("gates")
        for text in (
            "error_ratio at most 1.2x of before and 0.5% 5.80 % of the calls failed, and 0.50 % may failed"
            " 5.8 % ≤ 0.5 % 0.02 % 1,204 calls at least 200",
            f"p99 of orders at most 50ms 7 calls, and it takes 100 unknown {UNKNOWN} ≤ 50.0 ms {UNKNOWN} 7 calls",
            "webhook at checks.example.org it answered with 503",
        ):
            assert text in gates, (text, gates)
        # By its shape too, unknown is never like passed.
        section = shown.text[shown.text.index('id="gates"') :]
        marks = re.findall(r'href="#i-(\w+)"', section[: section.index("</table>")])
        assert marks == ["fail", "inc", "inc"]
        assert "1 node schema_change_failed" in shown.part("failing")
        assert "gated-01" in shown.part("failing")
        shown = await page(replica, "/releases/rehearsed/2")
        told = shown.part("rehearsal")
        assert "passed 37 nodes failed 2 nodes unknown 1 node Schema c0ffeec0ffee on 37 nodes" in told
        assert "1 totals 45,658 rows on 37 nodes, 800 ms at most; writers wait 40.0 ms at most" in told
        assert "2 n 0 rows on 37 nodes, 0 ms at most; writers wait 0 ms at most" in told
        why = shown.part("would-fail")
        assert "failed 2 nodes schema_change_failed" in why
        assert "rehearsed-01 row orders id=1 , rehearsed-02 row orders id=2" in why
        assert "unknown 1 node offline rehearsed-40" in why
        assert "No step has begun" in shown.part("gates")
        # And by node.
        shown = await page(replica, "/releases/rehearsed/2/rehearsal?outcome=failed")
        assert "rehearsed-01 failed schema_change_failed" in shown.words
        assert "row orders id=1" in shown.words
        assert "rehearsed-03" not in shown.words
        shown = await page(replica, "/releases/gated/2/nodes?outcome=syncing")
        assert "gated-02 syncing 2" in shown.words
        assert "gated-01" not in shown.words
        shown = await page(replica, "/releases/gated/2/nodes?outcome=left")
        assert "No node is of the outcome left" in shown.words
        for path, status in (
            ("/releases/gated/1/nodes", 404),
            ("/releases/gated/9/rehearsal", 404),
            ("/releases/gated/2/nodes?outcome=x", 422),
            ("/releases/gated/2/rollout/nothing", 404),
            ("/releases/gated/2/rollout/retry", 409),
        ):
            assert (await page(replica, path)).status == status, path


async def test_what_is_live_follows_the_rollout(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        async with live(replica, "/releases/baking/2") as stream:
            await stream.until(lambda s: "steps" in s.parts)
            kind = stream.parts["kind"]
            for name in ("waits", "steps", "outcomes", "gates", "rehearsal", "would-fail", "failing", "verdict"):
                assert "<form" not in stream.parts[name], "the parts are the same for all with these rights"
            await console_rollouts.start_more(replica, "baking", 6)
            await stream.until(lambda s: "34 not begun, 6 at target" in s.parts["waits"])
            assert stream.parts["kind"] == kind, "numbers change in place"
            await deploy.ok(replica, "POST", "/v1/rollouts/baking/2/pause", {"reason": MARKUP})
            await stream.until(lambda s: s.parts["kind"] != kind)
            assert stream.parts["title"].startswith("paused at step 2 of 4 · baking 2")
            assert MARKUP not in stream.parts["waits"]


async def test_light_acts_are_done_at_once_and_once(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        at = "/releases/baking/2/rollout"
        for _ in range(2):
            sent = await send(replica, f"{at}/pause", key=KEY)
            assert (sent.status, sent.headers["location"]) == (303, "/releases/baking/2?done=pause")
        assert await state(replica, "baking") == ("paused", 2, "operator")
        assert "It is paused: no further node starts" in (await page(replica, sent.headers["location"])).words
        refused = await send(replica, f"{at}/pause", key=KEY.upper())
        assert refused.status == 409
        assert 'href="/releases/baking/2"' in refused.text, "it leads back"
        sent = await send(replica, f"{at}/resume", key="r" * 12)
        assert sent.headers["location"] == "/releases/baking/2?done=resume"
        assert (await state(replica, "baking"))[0] == "running"
        assert (await send(replica, f"{at}/pause")).status == 422, "without a key"
        assert (await state(replica, "baking"))[0] == "running"


async def test_an_act_does_what_its_page_shows(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        shown = await page(replica, "/releases/gated/2/rollout/resume")
        assert "Accepts 1 node that failed so far" in shown.words
        assert "Accepts error_ratio at most 1.2x of before and 0.5%: 5.8 % measured" in shown.words
        sent = await act(replica, "gated", "resume", reason="it is the network")
        assert sent.headers["location"] == "/releases/gated/2?done=resume"
        assert (await state(replica, "gated"))[:2] == ("running", 2)

        shown = await page(replica, "/releases/gated/2/rollout/promote")
        assert "Begins step 3 of 4: 50%" in shown.words
        assert 'value="yes"> <span><b>To the last step' in shown.text
        await act(replica, "gated", "promote")
        assert (await state(replica, "gated"))[:2] == ("running", 3)
        assert "To the last step" not in (await page(replica, "/releases/gated/2/rollout/promote")).words

        await act(replica, "rehearsed", "promote", all="yes", reason="at once")
        assert (await state(replica, "rehearsed"))[:2] == ("running", 4)

        shown = await page(replica, "/releases/baking/2/rollout/abort")
        assert "Stays release 2 on 4 nodes" in shown.words
        assert "Type " not in shown.words, "an abort doesn't ask for much"
        await act(replica, "baking", "abort", reason="wrong prices")
        assert (await state(replica, "baking"))[0] == "aborted"
        assert "Aborted: wrong prices" in (await page(replica, "/releases/baking/2")).words
        await act(replica, "baking", "retry")
        assert await state(replica, "baking") == ("running", 0, "rehearsal")
        assert "Attempt 2" in (await page(replica, "/releases/baking/2")).words
        audit = await deploy.items(replica, "/v1/audit?action=rollout.abort&limit=100")
        assert [(entry["target"], entry["details"]["reason"]) for entry in audit] == [("baking/2", "wrong prices")]


async def test_a_rollback_asks_for_its_name_and_what_has_changed_does_nothing(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        at = "/releases/gated/2/rollout/rollback"
        shown = await page(replica, at)
        for text in (
            "Takes back release 2 from 4 nodes",
            "Makes release 3 with the functions and the floor of release 1",
            "Changes schema floor 1 → 0 nodes keep the schema that they have",
            "Type gated/2",
            "Roll back release 2 on 4 nodes",
        ):
            assert text in shown.words, (text, shown.words)
        asked = fields(shown)
        untyped = await send(replica, at, **asked, reason="why")
        assert untyped.status == 422
        assert "type gated/2 to confirm it" in untyped.words
        assert 'value="why"' in untyped.text, "what was written stays"
        # Meanwhile somebody resumes it.
        await deploy.ok(replica, "POST", "/v1/rollouts/gated/2/resume", {})
        changed = await send(replica, at, **asked, typed="gated/2", reason="wrong prices")
        assert (changed.status, "plan_changed" in changed.words) == (409, True)
        assert (await state(replica, "gated"))[0] == "running"
        for _ in range(2):
            sent = await send(replica, at, **fields(changed), typed="gated/2", reason="wrong prices")
            assert sent.headers["location"] == "/releases/gated/2?done=rollback", sent.words
        assert (await state(replica, "gated"))[0] == "rolled_back"
        made = await deploy.items(replica, "/v1/releases?group=gated")
        assert [release["number"] for release in made] == [3, 2, 1], "two clicks, one release"
        shown = await page(replica, "/releases/gated/2")
        assert title(shown).startswith("rolled back at step 2 of 4")


async def test_who_may_not_is_told_which_role_it_takes(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)

        async def operator(name: str, role: str) -> str:
            grants = [{"role": role, "group": "gated"}]
            made = await deploy.ok(replica, "POST", "/v1/operators", {"name": name, "grants": grants})
            return str(made["token"])

        looker, pusher = await operator("looker", "read"), await operator("pusher", "push")
        shown = await page(replica, "/releases/gated/2", token=looker)
        for text in ("Resume … needs deploy", "Abort … needs deploy", "Roll back … needs deploy"):
            assert text in shown.words
        assert (await page(replica, "/releases/baking/2", token=looker)).status == 404
        assert (await page(replica, "/", token=looker)).words.count("baking") == 0
        for token in (looker, pusher):
            assert (await page(replica, "/releases/gated/2/rollout/abort", token=token)).status == 403
            sent = await send(replica, "/releases/gated/2/rollout/abort", token=token, key=KEY, digest="x")
            assert sent.status == 403
        assert (await state(replica, "gated"))[0] == "paused"


@pytest.mark.parametrize(("role", "allowed"), [("admin", True), ("deploy", False)])
async def test_an_approval_takes_the_role_that_the_policy_names(control_site: Site, role: str, allowed: bool) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        await console_rollouts.place(replica, "gated", "running", 3, "approval", "it waits for an operator")
        grants = [{"role": role, "group": "gated"}]
        token = str((await deploy.ok(replica, "POST", "/v1/operators", {"name": "one", "grants": grants}))["token"])
        shown = await page(replica, "/releases/gated/2", token=token)
        assert "held for approval at step 3 of 4" in shown.words
        assert "Waits for approval by somebody with the role admin" in shown.words
        assert ("Approve … needs admin" in shown.words) is not allowed
        shown = await page(replica, "/releases/gated/2/rollout/promote", token=token)
        assert shown.status == (200 if allowed else 403)
        if allowed:
            at = "/releases/gated/2/rollout/promote"
            assert (await send(replica, at, token=token, **fields(shown))).status == 303
            assert (await state(replica, "gated"))[:2] == ("running", 4)


async def test_a_policy_and_how_a_release_goes_out_are_shown(control_site: Site) -> None:
    async with control_site.running() as replica:
        await console_rollouts.fill(replica)
        shown = await page(replica, "/releases?group=gated")
        assert "How releases of gated go out To all nodes at once" in shown.words
        policy: dict[str, Any] = {**console_rollouts.POLICY, "on_failure": "rollback"}
        await deploy.ok(replica, "PUT", "/v1/groups/gated/policy", policy)
        shown = await page(replica, "/releases?group=gated")
        for text in ("1; 10%; 50%, then approval by the role admin; 100%", "then it is rolled back", "label site"):
            assert text in shown.words, text
        await deploy.ok(replica, "POST", "/v1/rollouts/gated/2/abort", {})
        for goes, told in (
            (
                "",
                "copies of their own data first. It goes out in 4 steps: 1; 10%; 50%, pause approval; 100%",
            ),
            ("rehearsal_only", "first, and then it waits to be resumed"),
            ("now", "It goes to all nodes at once."),
        ):
            shown = await page(replica, f"/releases/new?group=gated&goes={goes}&reason=r&do=plan")
            assert told in shown.words, (goes, shown.words)
        sent = await send(replica, "/releases/new", **_planned(shown))
        assert sent.headers["location"] == "/releases/gated/3"
        assert (await deploy.ok(replica, "GET", "/v1/releases/gated/3"))["rollout"] is None


def _planned(shown: ShownPage) -> dict[str, str]:
    form = re.search(r'<form[^>]* id="plan".*?</form>', shown.text, re.DOTALL)
    assert form, shown.words
    return hidden(form[0])
