"""The operations on operators, and on signing in."""

from control.api import operators, pagination
from control.api.bodies import requests, responses
from control.api.bodies.responses import Page
from control.api.operations import Operation

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/v1/operators",
        "Operators",
        operators.list_operators,
        "admin",
        {200: Page[responses.Operator]},
        query=pagination.Paging,
        everywhere=False,
    ),
    Operation(
        "POST",
        "/v1/operators",
        "Make an operator",
        operators.create,
        "admin",
        {201: responses.MadeOperator},
        ("name_taken", "unknown_group"),
        body=requests.NewOperator,
        everywhere=False,
    ),
    Operation(
        "POST",
        "/v1/operators/{name}/change",
        "Change what an operator may, and until when",
        operators.change,
        "admin",
        {200: responses.Operator},
        ("unknown_operator", "unknown_group", "last_admin", "operator_of_provider"),
        body=requests.ChangeOperator,
        everywhere=False,
    ),
    Operation(
        "DELETE",
        "/v1/operators/{name}",
        "Revoke an operator",
        operators.revoke,
        "admin",
        {204: None},
        ("unknown_operator", "last_admin"),
        everywhere=False,
    ),
    # Signing in
    Operation(
        "POST",
        "/v1/sign-in-codes",
        "Make a code for signing in at the console",
        operators.make_code,
        "read",
        {201: responses.SignInCode},
        everywhere=False,
    ),
    Operation(
        "POST",
        "/v1/logins",
        "Begin a login of a command line",
        operators.begin_login,
        None,
        {201: responses.BegunLogin},
        ("too_many_tries",),
        body=requests.NewLogin,
    ),
    Operation(
        "POST",
        "/v1/logins/token",
        "Was the login allowed?",
        operators.take_login,
        None,
        {200: responses.TakenLogin},
        (
            *("login_pending", "login_refused", "login_ended"),
            *("credentials_invalid", "token_expired", "session_ended"),
        ),
        body=requests.WaitingToken,
    ),
    Operation(
        "DELETE",
        "/v1/sessions/self",
        "End the session in which one asks",
        operators.end_session,
        "read",
        {204: None},
        ("unknown_session",),
        everywhere=False,
    ),
)
