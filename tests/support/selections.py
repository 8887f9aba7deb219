"""The tests that `.ci/run` has more than once: selections of folders and files, beside its one run of all.

`python -m tests.support.selections NAME…` prints what pytest's command line has for these selections.
"""

import sys
from typing import Final

METADATA: Final = (
    "tests/acceptance",
    "tests/integration/control/backups",
    "tests/integration/control/rollouts",
    "tests/integration/control/storage",
    "tests/integration/control/sync",
    "tests/integration/control/access/test_operator_rights.py",
    "tests/integration/control/api/test_audit.py",
    "tests/integration/control/api/test_group_backups.py",
    "tests/integration/control/api/test_join_tokens.py",
    "tests/integration/control/api/test_losses.py",
    "tests/integration/control/api/test_recovery.py",
    "tests/integration/control/api/test_rollouts.py",
    "tests/integration/control/api/test_trust.py",
    "tests/integration/control/console/test_function_and_schema_pages.py",
    "tests/integration/control/console/test_rollout_pages.py",
    "tests/integration/control/console/test_signing_in.py",
    "tests/integration/control/telemetry/test_fleet_summary.py",
    "tests/integration/control/telemetry/watching/test_watch_service.py",
    "tests/integration/control/telemetry/test_numbers.py",
    "tests/integration/control/telemetry/webhooks/test_webhook_sending.py",
    "tests/integration/control/web/test_background.py",
    "tests/integration/control/web/test_traces.py",
)
"""Behind the proxy that behaves as CockroachDB: what touches metadata, and one file each for the statements of
sql/queries that these folders never have carried out (`tests.support.every_statement`)."""

UNCOMPILED: Final = (
    "tests/integration/edge_runtime/dispatch",
    "tests/integration/edge_runtime/children",
    "tests/integration/edge_runtime/web",
    "tests/integration/edge_runtime/native",
    # Whole calls, which the C library runs where it is built.
    "tests/integration/edge_runtime/guests/test_direct_http.py",
    "tests/integration/edge_runtime/guests/test_guest.py",
    "tests/integration/edge_runtime/guests/test_guest_direct.py",
    "tests/integration/edge_runtime/guests/test_guest_extism.py",
    "tests/integration/edge_runtime/guests/test_wagi_http.py",
    "tests/integration/edge_runtime/guests/test_wasi_guests.py",
    "tests/integration/edge_runtime/test_call_records.py",
    "tests/integration/edge_runtime/test_repeated_traps.py",
    "tests/security/test_guest_sandbox.py",
    "tests/security/test_hostile.py",
    "tests/security/test_memory_of_others.py",
    "tests/acceptance/test_end_to_end.py",
    "tests/unit/edge_runtime",
)
"""On nothing that `just compile` built: what has a compiled counterpart, modules of the front
(`scripts/compile_front.py`) and the workers' loop (`edge_runtime/native`), and once from end to end."""

USER: Final = (
    # Servers, their files and their users.
    "tests/integration/control/local",
    "tests/integration/control/cli/test_up.py",
    "tests/unit/control/cli/test_up_steps.py",
    "tests/unit/project/test_setup.py",
    # A node's commands: files of others, and what `doctor` says of them.
    "tests/integration/edge_runtime/cli",
    # What a child may still do, in namespaces that an ordinary user makes otherwise than root.
    "tests/security/test_fence.py",
    "tests/security/test_fence_alone.py",
    "tests/security/test_guest_sandbox.py",
    # Owners and modes of files, sockets and folders.
    "tests/integration/control/access/test_certificates.py",
    "tests/integration/control/backups/test_builder.py",
    "tests/integration/control/cli/test_dev.py",
    "tests/integration/control/cli/test_signing_in_commands.py",
    "tests/integration/edge_runtime/egress/test_grants.py",
    "tests/integration/edge_runtime/sql/test_writers.py",
    "tests/integration/edge_runtime/sync/test_agent.py",
    "tests/integration/edge_runtime/sync/test_ca_change.py",
    "tests/integration/edge_runtime/sync/test_join.py",
    "tests/integration/edge_runtime/test_aot_cache.py",
    "tests/integration/edge_runtime/test_full_disk.py",
    "tests/integration/edge_runtime/test_shortage.py",
    "tests/integration/edge_runtime/web",
    "tests/unit/control/backups",
    "tests/unit/control/cli/project",
    "tests/unit/control/cli/support",
    "tests/unit/control/local",
    "tests/unit/edge_runtime",
    # What a forked program has of its parent.
    "tests/unit/support/test_forked_programs.py",
    "tests/unit/support/test_shell_programs.py",
)
"""As an ordinary user: what depends on the user."""

ONE_LENGTH: Final = (
    "tests/faults/test_database_kills.py",
    "tests/faults/test_failing_commits.py",
    "tests/faults/test_interrupted_syncs.py",
    "tests/faults/test_power_failure.py",
    "tests/faults/test_upload_kills.py",
    "tests/integration/edge_runtime/guests/beside_extism/test_begin_and_end.py",
    "tests/integration/edge_runtime/guests/beside_extism/test_differences.py",
    "tests/integration/edge_runtime/guests/beside_extism/test_http.py",
    "tests/integration/edge_runtime/guests/beside_wasmtime/test_differences.py",
    "tests/integration/edge_runtime/guests/beside_wasmtime/test_edges.py",
    "tests/integration/edge_runtime/guests/beside_wasmtime/test_ends.py",
)
"""Files of the folders of `FAULTS` that no variable makes longer: the run of all has them as they are."""

FAULTS: Final = (
    "tests/faults",
    "tests/security/test_differential.py",
    "tests/security/test_generated.py",
    "tests/security/test_memory_of_others.py",
    "tests/integration/control/api/test_held_polls.py",
    "tests/integration/control/sync/test_many_nodes.py",
    "tests/integration/control/web/test_openapi.py",
    "tests/integration/edge_runtime/guests/beside_extism",
    "tests/integration/edge_runtime/guests/beside_wasmtime",
    "tests/integration/edge_runtime/native/test_c_tests.py",
    "tests/simulation/test_rollout_fleets.py",
    *(f"--ignore={path}" for path in ONE_LENGTH),
)
"""What `just faults` has the long versions of."""

SELECTIONS: Final = {"metadata": METADATA, "uncompiled": UNCOMPILED, "user": USER, "faults": FAULTS}


def paths(*names: str) -> list[str]:
    """The paths of the selections `names`, each test once: what is in a folder that is named as well is left out."""
    found = list(dict.fromkeys(path for name in names for path in SELECTIONS[name]))
    return [path for path in found if not any(path.startswith(f"{folder}/") for folder in found)]


if __name__ == "__main__":
    print(*paths(*sys.argv[1:]), sep="\n")
