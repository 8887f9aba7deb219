"""Signing in at an OpenID provider: authorization code and PKCE (OpenID Connect Core 3.1, RFC 7636, RFC 9207).

Everything that a sign-in must remember until the browser returns is derived from one secret in the browser's cookie:
the state, which ties the answer to this browser, the nonce, which ties the ID token to it, and the verifier, without
which nobody else can use the code. So any replica can take the answer, and nothing is stored.
"""

import asyncio
import hashlib
import hmac
import logging
import secrets
from base64 import b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import aiohttp
import msgspec
from joserfc.errors import JoseError
from joserfc.jwk import KeySet

from control.access import id_tokens, openid_groups
from control.access.auth import AuthError
from control.access.id_tokens import Expected, KeyUnknown, TokenRefused
from control.access.openid_groups import GrantsError, GroupGrants
from control.access.rights import Rights
from control.clock import Clock
from control.problems import ProblemError
from control.protocol.bounded_http_client import BoundedConnector
from control.reread_files import stamp
from control.settings import ControlSettings, is_safe

CALLBACK = "/sign-in/provider/done"
"""The path below `SKERRY_PUBLIC_URL` to which the provider sends the browser back."""
PATIENCE = 10.0
"""Seconds for an answer of the provider, and for its description and its keys together."""
MOST_BYTES = 1024 * 1024
"""The most bytes of an answer of the provider."""
METADATA_KEPT = 3600.0
"""Seconds after which the provider's description and its keys are read again."""
KEYS_KEPT = 10.0
"""Seconds after a read within which an unknown key causes no other."""
FAILURE_KEPT = 5.0
"""Seconds for which the provider counts as unavailable after its description couldn't be read."""
LONGEST_NAME = 100
"""The most characters of a person's displayed name."""
MOST_GROUPS = 1000

log = logging.getLogger("skerry.control")


class ProviderMetadata(msgspec.Struct):
    """The provider's description of itself (OpenID Connect Discovery 3); other fields are ignored."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    userinfo_endpoint: str = ""
    end_session_endpoint: str = ""
    token_endpoint_auth_methods_supported: list[str] = msgspec.field(default_factory=lambda: ["client_secret_basic"])
    authorization_response_iss_parameter_supported: bool = False


class Tokens(msgspec.Struct):
    """The answer to a code."""

    id_token: str
    access_token: str = ""


@dataclass(frozen=True)
class Person:
    """Who has signed in, according to the provider."""

    issuer: str
    subject: str
    """Identifies the person: the provider never gives it to somebody else."""
    name: str
    """Their current name, which they may change."""
    rights: Rights
    groups: int
    """How many groups the provider reported."""


@dataclass
class _ReadProvider:
    """The provider's description and keys, and when they were read."""

    metadata: ProviderMetadata
    keys: KeySet
    read_at: float


class ProviderFiles:
    """The files that the settings name, as they were when last usable: the grants of the provider's groups, and the
    secret of control as its client."""

    def __init__(self, settings: ControlSettings) -> None:
        """Read the files. Raises: GrantsError, when one is wrong."""
        assert settings.oidc_grants is not None  # noqa: S101
        self.error = ""
        """Why the files can't be used as they are now; '' if they can."""
        self._grants: Path = settings.oidc_grants
        self._secret = settings.oidc_client_secret
        self._stamps = self._stamps_now()
        self.granted, self.client_secret = self._read()

    def look(self, *, anew: bool = False) -> bool:
        """Read them again if one has changed or couldn't be used, or `anew`; return whether they say something else."""
        stamps = self._stamps_now()
        if not (anew or self.error or stamps != self._stamps):
            return False
        self._stamps, before = stamps, (self.granted, self.client_secret)
        try:
            made = self._read()
        except GrantsError as error:
            if anew or str(error) != self.error:
                log.error("oidc: %s; what was read before stays in use", error)
            self.error = str(error)
            return False
        self.error = ""
        self.granted, self.client_secret = made
        if made == before:
            return False
        log.info("oidc: %s was read again: from the next sign-in on, people have what it says", self._grants)
        return True

    def _stamps_now(self) -> list[tuple[int, ...]]:
        return [stamp(path) for path in (self._grants, self._secret) if path is not None]

    def _read(self) -> tuple[GroupGrants, str]:
        granted = openid_groups.read(self._grants)
        try:
            return granted, "" if self._secret is None else self._secret.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise GrantsError(f"{self._secret} can't be read: {error}") from None


class Provider:
    """The provider that the settings name."""

    def __init__(self, settings: ControlSettings, clock: Clock) -> None:
        """Read the files of the settings. Raises: GrantsError, when the file of grants is wrong."""
        self.issuer = settings.oidc_issuer
        self.name = settings.oidc_name or urlsplit(settings.oidc_issuer).netloc
        self._client_id = settings.oidc_client_id
        self._scopes = settings.oidc_scopes
        self._claim = settings.oidc_groups_claim
        self.files = ProviderFiles(settings)
        """What its groups may do, and the client's secret."""
        self._public_url = settings.public_url
        self._clock = clock
        self._known: _ReadProvider | None = None
        self._reading: asyncio.Task[_ReadProvider] | None = None
        """The running read of the description, shared by everybody who needs it."""
        self._failed: tuple[float, str] | None = None
        """When it couldn't be read, and why."""
        self._session: aiohttp.ClientSession | None = None

    async def begin(self, to: str) -> tuple[str, str]:
        """Return the address at which the browser signs in, and the secret that it keeps; `to`: the page to show then.

        Raises: ProblemError provider_unavailable.
        """
        known = await self._read()
        secret = secrets.token_urlsafe(32)
        parameters = {
            "response_type": "code",
            "client_id": self._client_id,
            "redirect_uri": self._public_url + CALLBACK,
            "scope": self._scopes,
            "state": _state(secret, to),
            "nonce": _derived(secret, "nonce"),
            "code_challenge": _base64(hashlib.sha256(_derived(secret, "verifier").encode()).digest()),
            "code_challenge_method": "S256",
        }
        address = known.metadata.authorization_endpoint
        return f"{address}{'&' if '?' in address else '?'}{urlencode(parameters, quote_via=quote)}", secret

    async def finish(self, secret: str | None, answer: Mapping[str, list[str]]) -> tuple[Person, str]:
        """Return who has signed in, and the page to show then; `answer`: the parameters that the browser brings back.

        Raises: AuthError, when the answer isn't for this browser's request, or the provider's token isn't valid;
        ProblemError provider_unavailable.
        """
        if any(len(values) > 1 for values in answer.values()):
            raise _not_signed_in("a parameter is twice in the answer", "state")
        given = {name: values[0] for name, values in answer.items()}
        to = _page_of(given.get("state", ""))
        if secret is None or not hmac.compare_digest(given.get("state", "").encode(), _state(secret, to).encode()):
            raise _not_signed_in(
                "it isn't the answer to a sign-in that this browser began, within ten minutes", "state"
            )
        known = await self._read()
        if given.get("iss", self.issuer) != self.issuer or (
            known.metadata.authorization_response_iss_parameter_supported and "iss" not in given
        ):
            raise _not_signed_in("it is the answer of another provider (iss)", "issuer")
        if "error" in answer:
            code = given.get("error", "")[:50]
            raise _not_signed_in(
                f"{self.name} refused it ({code if code.isascii() and code.isidentifier() else '?'})", "error"
            )
        if "code" not in given:
            raise _not_signed_in("there is no code in the answer", "code")
        tokens = await self._exchange(known.metadata, given["code"], _derived(secret, "verifier"))
        claims = await self._claims(known, tokens, _derived(secret, "nonce"))
        return self._person(claims), to

    async def end_url(self) -> str:
        """Return where somebody also signs out at the provider; '' if it has no such place, or can't be asked."""
        try:
            metadata = (await self._read()).metadata
        except ProblemError:
            return ""
        if not metadata.end_session_endpoint:
            return ""
        back = {"client_id": self._client_id, "post_logout_redirect_uri": f"{self._public_url}/sign-in"}
        return f"{metadata.end_session_endpoint}?{urlencode(back)}"

    async def close(self) -> None:
        """Close the connections to the provider."""
        if self._reading is not None:
            self._reading.cancel()
            await asyncio.gather(self._reading, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    # Requests to the provider

    async def _exchange(self, metadata: ProviderMetadata, code: str, verifier: str) -> Tokens:
        """Exchange a code, which works once, for the provider's tokens."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._public_url + CALLBACK,
            "code_verifier": verifier,
        }
        headers = {}
        secret = self.files.client_secret
        if not secret:
            form["client_id"] = self._client_id
        elif "client_secret_basic" in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote(self._client_id, safe='')}:{quote(secret, safe='')}"
            headers["authorization"] = f"Basic {b64encode(pair.encode()).decode()}"
        else:
            form |= {"client_id": self._client_id, "client_secret": secret}
        status, body = await self._ask("POST", metadata.token_endpoint, form, headers)
        if 400 <= status < 500:
            raise _not_signed_in(f"{self.name} doesn't take the code ({_error(body)})", "code")
        given: Tokens = self._decode(status, body, Tokens, metadata.token_endpoint)
        if not (given.access_token.isascii() and given.access_token.isprintable()):
            raise self._away(f"{metadata.token_endpoint} answered an access token that no header can have")
        return given

    async def _claims(self, known: _ReadProvider, tokens: Tokens, nonce: str) -> dict[str, Any]:
        """Return the claims about whoever signed in: the ID token's, and userinfo's if the groups aren't there."""
        expected = Expected(self.issuer, self._client_id, nonce, self._clock.now())
        try:
            try:
                found = id_tokens.claims(tokens.id_token, known.keys, expected, tokens.access_token)
            except KeyUnknown:
                known = await self._read(unknown_key=True)
                found = id_tokens.claims(tokens.id_token, known.keys, expected, tokens.access_token)
        except TokenRefused as refused:
            raise _not_signed_in(str(refused), "token") from refused
        endpoint = known.metadata.userinfo_endpoint
        if self._claim not in found and endpoint and tokens.access_token:
            headers = {"authorization": f"Bearer {tokens.access_token}"}
            status, body = await self._ask("GET", endpoint, None, headers)
            more = self._decode(status, body, dict[str, Any], endpoint)
            if more.get("sub") != found["sub"]:
                raise _not_signed_in("the userinfo endpoint tells of somebody else (sub)", "token")
            found = {**more, **found}
        return found

    def _person(self, claims: Mapping[str, Any]) -> Person:
        told = claims.get(self._claim, [])
        told = [told] if isinstance(told, str) else told
        groups = [group for group in told if isinstance(group, str)] if isinstance(told, list) else []
        names = (claims.get(name) for name in ("preferred_username", "email", "name", "sub"))
        name = next(name for name in names if isinstance(name, str) and name.strip())
        shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in name)[:LONGEST_NAME]
        held = openid_groups.rights(self.files.granted, groups[:MOST_GROUPS])
        return Person(self.issuer, claims["sub"], shown, held, len(groups))

    async def _read(self, *, unknown_key: bool = False) -> _ReadProvider:
        """Return the provider's description and its keys, read once for all who ask meanwhile, so that a late one waits
        for no other read. Raises: ProblemError provider_unavailable.
        """
        now, kept = self._clock.monotonic(), KEYS_KEPT if unknown_key else METADATA_KEPT
        if self._known is not None and now - self._known.read_at < kept:
            return self._known
        if self._failed is not None and now - self._failed[0] < FAILURE_KEPT:
            raise ProblemError("provider_unavailable", self._failed[1])
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_anew())
            # If everybody who waited has left, nobody takes its error.
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    async def _read_anew(self) -> _ReadProvider:
        try:
            async with self._clock.timeout(PATIENCE):
                known = await self._description()
        except ProblemError as away:
            said = away
        except TimeoutError:
            said = self._away(f"{self.issuer} answers too slowly")
        else:
            self._known, self._failed = known, None
            return known
        self._failed = self._clock.monotonic(), said.detail
        raise said

    async def _description(self) -> _ReadProvider:
        where = self.issuer.rstrip("/") + "/.well-known/openid-configuration"
        metadata = self._decode(*await self._ask("GET", where), ProviderMetadata, where)
        if metadata.issuer != self.issuer:
            raise self._away(f"{where} is the description of another issuer: set SKERRY_OIDC_ISSUER to its `issuer`")
        required = (metadata.authorization_endpoint, metadata.token_endpoint, metadata.jwks_uri)
        for url in (*required, metadata.userinfo_endpoint, metadata.end_session_endpoint):
            if (url or url in required) and not (is_safe(url) and url.isascii() and url.isprintable()):
                raise self._away(f"{where} names an endpoint that isn't https, or no URL")
        raw = self._decode(*await self._ask("GET", metadata.jwks_uri), dict[str, Any], metadata.jwks_uri)
        try:
            signing = [key for key in raw["keys"] if key.get("use", "sig") == "sig" and key.get("kty") != "oct"]
            keys = KeySet.import_key_set({"keys": signing})
        except (JoseError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise self._away(f"the keys at {metadata.jwks_uri} can't be read ({type(error).__name__})") from error
        return _ReadProvider(metadata, keys, self._clock.monotonic())

    async def _ask(
        self, method: str, url: str, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes]:
        """Return status and body of the provider's answer. Raises: ProblemError provider_unavailable."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=BoundedConnector(),
                timeout=aiohttp.ClientTimeout(total=PATIENCE),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=True,
            )
        sent = {"accept": "application/json", **(headers or {})}
        try:
            async with self._session.request(method, url, data=form, headers=sent, allow_redirects=False) as answer:
                body = await answer.content.read(MOST_BYTES)
                while len(body) < MOST_BYTES and (more := await answer.content.read(MOST_BYTES - len(body))):
                    body += more
                return answer.status, body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._away(f"{urlsplit(url).netloc} doesn't answer ({type(error).__name__})") from error

    def _decode(self, status: int, body: bytes, type: type[Any], url: str) -> Any:
        try:
            if status == 200:
                return msgspec.json.decode(body, type=type)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise self._away(f"{url} answered something else than what the standard says") from error
        raise self._away(f"{url} answered {status}")

    def _away(self, why: str) -> ProblemError:
        return ProblemError(
            "provider_unavailable", f"nobody can sign in by {self.name} now: {why}. Signing in by a token goes on"
        )


def _not_signed_in(why: str, what: str) -> AuthError:
    return AuthError(
        "credentials_invalid", f"signing in by the provider failed: {why}. Begin again", f"provider_{what}"
    )


def _error(body: bytes) -> str:
    """Return the code of an error of the token endpoint (RFC 6749)."""
    try:
        code = msgspec.json.decode(body)["error"]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, KeyError, TypeError):
        return "?"
    return code[:50] if isinstance(code, str) and code.isascii() and code.isidentifier() else "?"


def _derived(secret: str, what: str) -> str:
    return hashlib.sha256(f"{what} of {secret}".encode()).hexdigest()


def _state(secret: str, to: str) -> str:
    """Make the state of a sign-in, with the page to show then."""
    return f"{_derived(secret, f'state for {to}')}.{_base64(to.encode())}"


def _page_of(state: str) -> str:
    """Return the page in a state, which nobody else has changed if the state is the browser's."""
    text = state.partition(".")[2]
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode()
    except ValueError:
        return "/"


def _base64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()
