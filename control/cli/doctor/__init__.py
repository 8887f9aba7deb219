"""`skerry doctor`: present and approaching problems with control and its fleet, as far as control's API shows them.

Start with `fleet_doctor`, the command. The modules of rules, one for each subject, are functions from answers of
control to findings. How findings are printed is in `control.protocol.findings`.
"""

from typing import Final

CHECKS: Final = {
    "control": "control answers and is ready, and has nothing to note",
    "access": "this operator may read what is looked at",
    "clock": "this machine's clock goes with control's, to within a minute",
    "certificates": "control's certificate and its CAs are good for 30 days or more, and their files can be used",
    "trust": "all nodes trust the CAs that control gives out",
    "nodes": "no node is revoked, offline, failing, or has a warning",
    "node_credentials": "no node that is offline has a credential that is good for nothing within 30 days",
    "node_certificates": "no node that is looked at has a certificate or a CA that ends within 30 days",
    "replicas": "the replicas of control have one version, and this command is at most one version apart from it",
    "versions": "no node is newer than control, more than one version apart from it, or too old to tell its version",
    "groups": "each group with a release has nodes",
    "releases": "no release has calls that all fail",
    "operators": "two admins or more; no token that ends within 30 days, or that wasn't used for 90 days",
    "join_tokens": "no join token is open for more than a day",
    "metadata": "the metadata weren't restored, or `skerry recover` came since",
    "store": "the bucket can be used, deletions go on, and revocations and joins are in it",
    "artifacts": "what the groups' releases need is in the bucket, by its sizes",
    "webhooks": "no webhook has ended or has given messages up",
    "audit": "the audit log's rows get their seals, so the monitor of some replica runs",
    "refusals": "fewer than 100 authentications were refused in the last hour",
    "settings": "no setting opens control to others, and each variable SKERRY_… here is one that there is",
}
"""What each check looks for, by the name of the check."""
