"""The operations on operators."""

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
        ("unknown_operator", "unknown_group", "last_admin"),
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
)
