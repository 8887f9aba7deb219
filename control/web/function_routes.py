"""The operations on artifacts and functions."""

from control.api import artifacts, bucket, functions, pagination, releases
from control.api.bodies import recovery_responses, release_responses, requests, responses
from control.api.bodies.responses import Page
from control.api.operations import Operation
from control.api.recovery import store_check
from control.web.release_routes import RELEASED

ARTIFACT = "/v1/artifacts/{sha256}"
STORE = ("store_unavailable", "store_refused", "store_full", "store_not_owned", "bucket_missing")
"""Codes of problems that the artifact store may cause."""
FUNCTION = "/v1/functions/{name}"
VERSIONS = "/v1/functions/{name}/versions"
VERSION = "/v1/functions/{name}/versions/{version}"

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "PUT",
        ARTIFACT,
        "Upload an artifact",
        artifacts.upload,
        "push",
        {200: responses.Artifact, 201: responses.Artifact},
        (
            "digest_mismatch",
            "upload_interrupted",
            "artifact_too_large",
            "module_refused",
            "check_unavailable",
            "spool_failed",
            "spool_full",
            *STORE,
        ),
        body=bytes,
        everywhere=False,
    ),
    Operation(
        "HEAD",
        ARTIFACT,
        "Is it uploaded, and whole in the store?",
        artifacts.head,
        "push",
        {200: bytes},
        ("unknown_artifact", *STORE),
        everywhere=False,
    ),
    Operation(
        "GET",
        ARTIFACT,
        "The bytes, for a node that was ever to have them",
        artifacts.download,
        "node",
        {200: bytes, 206: bytes, 307: None},
        ("unknown_artifact", *STORE),
    ),
    Operation(
        "GET",
        "/v1/artifact-store",
        "The bucket of artifacts: whose it is, and whether anything is deleted from it",
        bucket.show,
        "read",
        {200: responses.ArtifactStore},
        everywhere=False,
    ),
    Operation(
        "POST",
        "/v1/artifact-store/resume",
        "Let deletions from the bucket go on, which were held",
        bucket.resume,
        "admin",
        {200: responses.ArtifactStore},
    ),
    Operation(
        "GET",
        "/v1/artifact-store/check",
        "The artifacts whose objects are missing or damaged",
        store_check.check,
        "admin",
        {200: recovery_responses.StoreCheck},
        STORE,
        query=store_check.CheckQuery,
    ),
    Operation(
        "GET",
        "/v1/artifact-store/unknown",
        "The objects of the bucket that the metadata don't know",
        store_check.unknown,
        "admin",
        {200: recovery_responses.UnknownObjects},
        STORE,
        query=store_check.UnknownQuery,
    ),
    Operation(
        "GET",
        "/v1/functions",
        "Functions",
        functions.list_functions,
        "read",
        {200: Page[release_responses.Function]},
        query=pagination.Paging,
        everywhere=False,
    ),
    Operation(
        "GET",
        FUNCTION,
        "A function, and the groups whose newest release has it",
        functions.get_function,
        "read",
        {200: release_responses.DetailedFunction},
        ("unknown_function",),
        everywhere=False,
    ),
    Operation(
        "DELETE",
        FUNCTION,
        "Delete a function with all its versions",
        functions.delete,
        "deploy",
        {200: release_responses.DeletionPlan, 204: None},
        ("unknown_function", "version_in_target", "version_needed"),
        query=functions.DeletionQuery,
    ),
    Operation(
        "GET",
        VERSIONS,
        "Versions of a function, newest first",
        functions.list_versions,
        "read",
        {200: Page[release_responses.Version]},
        ("unknown_function",),
        query=pagination.Paging,
        everywhere=False,
    ),
    Operation(
        "POST",
        VERSIONS,
        "Make a version of an uploaded artifact",
        functions.add_version,
        "push",
        {200: release_responses.VersionPlan, 201: release_responses.PushedVersion},
        ("unknown_artifact", "module_refused", "manifest_unfit", *RELEASED),
        body=requests.NewVersion,
        query=releases.PlanFor,
        everywhere=False,
    ),
    Operation(
        "GET",
        VERSION,
        "A version",
        functions.get_version,
        "read",
        {200: release_responses.Version},
        ("unknown_version",),
        everywhere=False,
    ),
    Operation(
        "DELETE",
        VERSION,
        "Delete a version",
        functions.delete,
        "deploy",
        {200: release_responses.DeletionPlan, 204: None},
        ("unknown_version", "version_in_target", "version_needed"),
        query=functions.DeletionQuery,
    ),
)
