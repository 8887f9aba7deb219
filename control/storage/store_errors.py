"""Errors of the artifact store as problems to answer, with how to fix them: pure rules, without I/O."""

import ssl
from dataclasses import dataclass, replace
from typing import Any

from aiohttp import ClientError as HttpError
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from control.problems import ProblemError

RETRY_AFTER = 5
"""Seconds after which a client may retry when an operator must do something first."""


@dataclass(frozen=True)
class Action:
    """A kind of request to the store, in words, and the permission it needs."""

    words: str
    permission: str

    def of(self, key: str) -> "Action":
        """Return the same action with its object."""
        return replace(self, words=self.words.replace("an object", f"the object {key}"))


PUT = Action("store an object", "s3:PutObject")
GET = Action("read an object", "s3:GetObject")
DELETE = Action("delete an object", "s3:DeleteObject")
LIST = Action("list the objects", "s3:ListBucket")

_FULL = {
    "InsufficientStorage",
    "QuotaExceeded",
    "StorageFull",
    "XMinioAdminBucketQuotaExceeded",
    "XMinioStorageFull",
}
_KEY = {
    "InvalidAccessKeyId": "it doesn't know the access key",
    "SignatureDoesNotMatch": "the secret doesn't belong to the access key",
    "ExpiredToken": "the access key has expired",
    "InvalidToken": "the access key isn't valid",
}
_REGION = {"AuthorizationHeaderMalformed", "IllegalLocationConstraintException", "PermanentRedirect", "301"}
_SKEW = {"RequestTimeTooSkewed", "RequestExpired"}


def code_of(error: boto.ClientError) -> str:
    """Return S3's code of an error; for a HEAD, which has no body, the status as text."""
    return str(error.response.get("Error", {}).get("Code", ""))


def problem(error: Exception, action: Action, bucket: str) -> ProblemError:
    """Return the problem to answer when a request to the store failed with `error`. It contains no secret."""
    if isinstance(error, boto.ClientError):
        return _answered(error, action, bucket)
    text = f"the artifact store {_unanswered(error)} when asked to {action.words}; try again"
    return ProblemError("store_unavailable", text)


def no_progress(action: Action, seconds: float) -> ProblemError:
    """Return the problem to answer when the store accepted a request and made no progress for `seconds`."""
    return ProblemError(
        "store_unavailable",
        f"the artifact store made no progress for {seconds:g} s when asked to {action.words}; try again",
    )


def no_bucket(bucket: str) -> ProblemError:
    """Return the problem to answer when the bucket doesn't exist."""
    return ProblemError(
        "bucket_missing",
        f"there is no bucket {bucket} in the artifact store: make it, or correct SKERRY_ARTIFACTS_URL",
        retry_after=RETRY_AFTER,
    )


def _answered(error: boto.ClientError, action: Action, bucket: str) -> ProblemError:
    code = code_of(error)
    status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    message = str(error.response.get("Error", {}).get("Message", ""))[:300]
    if code == "NoSuchBucket":
        return no_bucket(bucket)
    if code in _FULL or status == 507:
        return ProblemError(
            "store_full", f"the artifact store has no room ({code}: {message}): make room in it, or raise its quota"
        )
    if code in _KEY:
        return _refused(f"{_KEY[code]} ({code}): correct SKERRY_ARTIFACTS_URL")
    if code in _SKEW:
        return _refused(f"control's clock and the store's are too far apart ({code}): set both clocks by NTP")
    if code in _REGION:
        return _refused(f"it is in another region ({code}: {message}): correct SKERRY_ARTIFACTS_REGION")
    if status in (401, 403) or code == "403":
        # Without a body (HEAD) the store can't say which of these it is.
        why = "it refuses the key, or the clocks differ" if code == "403" else f"{code}: {message}"
        return _refused(
            f"it refuses to {action.words} in bucket {bucket} ({why}): "
            f"the key's policy must allow {action.permission} there"
        )
    what = f"{status} {code}".strip() if code != str(status) else code
    if status >= 500 or status == 429:
        return ProblemError(
            "store_unavailable", f"the artifact store answered {what} when asked to {action.words}; try again"
        )
    return ProblemError(
        "store_unavailable",
        f"the artifact store answered {what or 'nothing of S3'} when asked to {action.words}"
        f"{f': {message}' if message else ''}; is SKERRY_ARTIFACTS_URL an S3 store's?",
    )


def _refused(why: str) -> ProblemError:
    return ProblemError("store_refused", f"the artifact store refuses control: {why}", retry_after=RETRY_AFTER)


def _unanswered(error: BaseException) -> str:
    """Return why there is no answer, as the rest of a sentence that begins with "the artifact store"."""
    cause = _cause(error)
    if isinstance(error, boto.SSLError) or isinstance(cause, ssl.SSLError):
        return f"can't be trusted: {cause or error}"
    if isinstance(error, boto.ConnectTimeoutError):
        return "takes no connection in time"
    if isinstance(error, (boto.ReadTimeoutError, TimeoutError)):
        return "doesn't answer in time"
    if isinstance(error, ResponseParserError):
        return "answers what isn't S3's; is SKERRY_ARTIFACTS_URL an S3 store's?"
    if isinstance(cause, ConnectionRefusedError):
        return "refuses connections (does it run, and is SKERRY_ARTIFACTS_URL right?)"
    if isinstance(error, boto.ConnectionClosedError) or isinstance(cause, ConnectionError):
        return "closed the connection"
    if isinstance(error, (boto.EndpointConnectionError, HttpError, OSError)):
        return f"can't be reached: {cause or error}"
    return f"failed ({type(error).__name__}: {str(error)[:300]})"


def _cause(error: BaseException) -> BaseException | None:
    """Return the operating system's error behind the libraries' errors, if there is one."""
    found: Any = error
    for _ in range(5):
        if isinstance(found, OSError) and found.errno is not None and not isinstance(found, HttpError):
            return found
        kwargs = getattr(found, "kwargs", None) or {}
        below = kwargs.get("error") or getattr(found, "os_error", None) or found.__cause__ or found.__context__
        if not isinstance(below, BaseException):
            break
        found = below
    return found if isinstance(found, OSError) else None
