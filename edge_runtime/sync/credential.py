"""The node's credential for control: when it gets a successor, and which of the two is used meanwhile.

A successor is stored on disk beside the credential that it follows, and replaces it when control has accepted it. So
no lost answer, and no exit of the process at any point, leaves the node without a valid credential.
"""

import asyncio
import logging
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from edge_runtime.sync import identity
from edge_runtime.sync.control_client import ControlClient, ControlRefused, NoAnswer
from edge_runtime.sync.identity import Identity

ROTATE_AFTER = timedelta(days=30)
"""Age of a credential at which the node asks for its successor; control ends it much later."""
ROTATE_AGAIN = 3600.0
"""The fewest seconds between two such requests."""
SLACK = timedelta(hours=1)
"""A credential dated further ahead than this was dated by a wrong clock."""
EXPIRED = "credential_expired"
"""The code of control's refusal of an expired credential that can still be exchanged for its successor."""
REVOKED, REMOVED = "node_revoked", "node_removed"
"""The codes of control's refusals of a node that an operator revoked or removed."""

log = logging.getLogger("skerry.agent")


class OwnCredential:
    """The node's identity and the changes of its credential. Times are control's, not this machine's."""

    def __init__(self, state: Path, who: Identity, rotate_after: timedelta) -> None:
        self.who = who
        self._state = state
        self._rotate_after = rotate_after
        self._rotate_from = 0.0

    @property
    def present(self) -> str:
        """Return the credential for requests."""
        return self.who.next_credential or self.who.credential

    def refused(self, code: str, why: str) -> str:
        """Return the text for people when control refuses the credential with `code`: its reason `why`, what to do."""
        name, rejoin = self.who.name, f"skerry node token --rejoin {self.who.name}"
        known = {
            REVOKED: ("an operator has revoked it", f"`{rejoin}`"),
            REMOVED: ("an operator has removed the node", "`skerry node token`"),
        }
        other = f"{why}; it is too old, or an operator has revoked it or removed the node"
        reason, token = known.get(code, (other, f"`{rejoin}` (without --rejoin if the node was removed)"))
        return (
            f"control refuses the credential of node {name}: {reason}. The node serves its last release on; to have it "
            f"synced again, make a token with {token} and run "
            f"`skerry-edge join --again --control {self.who.control_url} --state {self._state}`"
        )

    async def rotate_when_old(self, client: ControlClient) -> None:
        """Ask for a successor when the credential is old."""
        now, since, passed = client.now(), self.who.credential_since, asyncio.get_running_loop().time()
        due = now >= since + self._rotate_after or since > now + SLACK
        if self.who.next_credential or not due or passed < self._rotate_from:
            return
        self._rotate_from = passed + ROTATE_AGAIN
        try:
            await self.succeed(client)
        except (NoAnswer, ControlRefused) as error:
            # The present credential is valid; the poll will find out whether control can be reached.
            log.warning("there is no new credential yet: %s", error.message)

    async def succeed(self, client: ControlClient) -> None:
        """Get the successor of the current credential. Raises: NoAnswer, ControlRefused."""
        credential = await client.rotate()
        # A request with a successor used it, so the previous credential is no longer valid.
        who = self.who.promoted(client.now()) if self.who.next_credential else self.who
        await self._keep(who.rotated(credential, client.credential_life), client)
        log.info("the node has got a new credential")

    async def accepted(self, client: ControlClient) -> None:
        """Note that control answered a poll: a successor replaces its predecessor, now or with a later answer."""
        if self.who.next_credential:
            try:
                await self._keep(self.who.promoted(client.now()), client)
            except NoAnswer as error:
                # Both are on disk already, in this order.
                log.warning("the new credential is used, and the old one kept, too: %s", error.message)

    async def exchanged(self, client: ControlClient, refusal: ControlRefused) -> bool:
        """Look for a credential to use instead of the refused one; return whether there is one.

        An expired one gets its successor; a successor that control doesn't know is dropped for the previous one.
        Raises: NoAnswer, ControlRefused, when there is no successor yet.
        """
        if refusal.code == EXPIRED:
            await self.succeed(client)
            return True
        if refusal.status != 401 or not self.who.next_credential:
            return False
        log.warning("the new credential is refused; the node goes back to the one that it had")
        await self._keep(self.who.fallen_back(), client)
        return True

    async def rename(self, name: str, client: ControlClient) -> None:
        """Take the name that an operator gave the node.

        If the disk doesn't take it, the node uses it until it exits, and control sends it again after the next start.
        """
        before, who = self.who.name, replace(self.who, name=name)
        log.info("this node was %s, and is called %s now", before, name)
        try:
            await self._keep(who, client)
        except NoAnswer as error:
            self.who = who
            log.warning("the new name isn't kept over a restart: %s", error.message)

    async def joined_again(self) -> bool:
        """Load the identity on disk; return whether it is a different one, because the node has joined again."""
        try:
            who = await asyncio.to_thread(identity.read, self._state)
        except (identity.NotJoined, OSError):
            return False
        # If only the name differs, the disk may not have taken it.
        if replace(who, name=self.who.name) == self.who:
            return False
        log.info("this node has joined again: it is %s (%s) of %s now", who.name, who.node_id, who.control_url)
        self.who = who
        return True

    async def _keep(self, who: Identity, client: ControlClient) -> None:
        """Store the identity. Raises: NoAnswer, when the disk doesn't take it: then nothing has changed."""
        try:
            await asyncio.to_thread(identity.write, self._state, who)
        except OSError as error:
            text = f"the node's identity can't be written to {self._state}: {error}"
            raise NoAnswer("identity_unusable", text) from None
        self.who = who
        client.credential = self.present
