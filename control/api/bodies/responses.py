"""Bodies of answers about operators, artifacts and control itself, and the page of every list.

Times are RFC 3339 in UTC; a value that is missing is null.
"""

from datetime import datetime
from typing import Generic, TypeVar

from msgspec import Struct, field

from control.protocol import wire

T = TypeVar("T")


class Page(Struct, Generic[T]):
    """A page of a list; `next` is the cursor of the next page, or null."""

    items: list[T]
    next: str | None = None


class Artifact(Struct):
    sha256: wire.Sha256
    size: int
    abi: str


class AuthFailure(Struct):
    """Refused authentications of one minute, address and reason (R 7.4)."""

    minute: datetime
    address: str
    reason: str
    count: int
    first_at: datetime
    last_at: datetime


class HeldGrant(Struct):
    role: str
    group: str | None
    """Null: for all groups."""
    functions: list[str] | None
    """The functions that the role `push` is for; null: for all."""


class ProvidersPerson(Struct):
    """Whom an OpenID provider knows."""

    issuer: str
    subject: str
    name: str
    """How the provider called them when they last signed in."""


class Operator(Struct):
    id: str
    """Tells it apart from others that had its name before and were revoked."""
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    """When the token ends; null: it doesn't. Of somebody who signs in by a provider: when the last session ends."""
    created_at: datetime
    last_used_at: datetime | None
    """When it last asked for something, by its token or in a session, to within two minutes; null: never."""
    old_token_ends_at: datetime | None
    """Until when the token is good that was exchanged for the present one; null: it has ended, or there was none."""
    person: ProvidersPerson | None = None
    """Who it is, where it signs in by a provider; null: it has a token."""


class MadeOperator(Struct):
    id: str
    name: str
    grants: list[HeldGrant]
    expires_at: datetime | None
    token: str
    """The token's text, which is answered only once."""


class Asking(Struct):
    """Who asks, and what it may."""

    operator: str
    id: str
    grants: list[HeldGrant]
    by_session: bool
    """Whether it has signed in; else it asks by its token."""
    ends_at: datetime | None
    """When the session, or the token, ends; null: it doesn't."""


class SignInCode(Struct):
    code: str
    """To be typed at `/sign-in`, once."""
    expires_at: datetime


class BegunLogin(Struct):
    """As RFC 8628 has it; times are RFC 3339 here."""

    device_code: str
    """The secret with which one asks whether the login was allowed."""
    user_code: str
    """To be typed at `verification_path` by somebody who is signed in there."""
    verification_path: str
    expires_at: datetime
    interval: int
    """Seconds between two questions."""


class TakenLogin(Struct):
    token: str
    """A token of the operator who allowed it, which is answered only once."""
    operator: str
    expires_at: datetime
    """When it ends at the latest."""


class Health(Struct, omit_defaults=True):
    status: str
    notes: list[str] = field(default_factory=list)
    """What an operator should know, although control serves."""


class CertificateInUse(Struct):
    what: str
    """`control`: what it shows its clients. `ca`: one of those that nodes are to trust."""
    name: str
    sha256: str
    begins_at: datetime
    ends_at: datetime
    """Of `control`: the end of the first certificate on its way to the CA, if that is before its own."""


class Certificates(Struct):
    """What a replica has in use, and why files that were changed can't be used."""

    certificates: list[CertificateInUse]
    trust: str
    """The digest of the CAs that nodes are to trust; '' where control has none to give out."""
    notes: list[str]
    """A line for each certificate that has ended or ends within 30 days, and for files that can't be used."""


class ArtifactStore(Struct):
    """The bucket of artifacts: which control owns it, and whether artifacts are deleted from it."""

    bucket: str
    owner: str | None
    """The id of this control, which the bucket's mark has; null until it has a bucket."""
    counter: int
    """The number of the metadata's last step that made an artifact needed."""
    state: str
    """`owned`, or the code of the problem that keeps this replica from using the bucket."""
    problem: str | None
    deletions: str
    """Whether artifacts are deleted: `on` or `held`."""
    held_since: datetime | None
    held_reason: str | None
    sweep_problem: str | None
    """Why the last sweep failed, or null."""
    unknown_objects: int
    """Objects that no row knows; each is deleted after SKERRY_UNKNOWN_OBJECTS_KEPT seconds."""
    keeps_versions: bool
    """Whether the bucket keeps old versions of deleted objects, so that deletions free no space."""
    restored_at: datetime | None
    """When control noticed that its metadata were restored; null where they weren't, or `POST /v1/recovery` came since.
    """
    access_waiting: int
    """Revocations, joins and the like that aren't in the bucket yet: a backup of before would undo them."""
    access_waiting_since: datetime | None


class ListedWebhook(Struct):
    """A URL that events are sent to."""

    name: str
    url: str
    kinds: list[str]
    """The kinds of events that it gets; none: all."""
    created_by: str
    created_at: datetime
    ended_at: datetime | None
    """When its receiver answered that it is gone (410), after which it gets nothing more; null where it hasn't."""
    waiting: int
    """Messages that wait to be sent, or to be sent again."""
    given_up: int
    """Messages of the last seven days that were given up."""


class MadeWebhook(Struct):
    id: str
    """Which webhook it is: another one may have its name later."""
    name: str
    url: str
    kinds: list[str]
    secret: str | None
    """The secret that messages are signed with, which is answered only once; null where the request had it."""


class WebhookTest(Struct):
    """The message that a test sends."""

    id: str


class WebhookDelivery(Struct):
    """A message to a webhook, and what became of it."""

    id: str
    """The message's id, its `webhook-id`: the same for all webhooks that get it."""
    webhook: str
    kind: str
    times: int
    """How many things happened that the message tells."""
    created_at: datetime
    state: str
    """`waiting`, `delivered` or `given_up`."""
    attempts: int
    next_at: datetime | None
    """When it is sent next; null where it has ended."""
    ended_at: datetime | None
    status: int | None
    """The receiver's last answer; null without one."""
    error: str
    """Why the last attempt failed, or why the message was given up."""
