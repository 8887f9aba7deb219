"""The Starlette application that serves every operation except the poll: routes, path parameters, errors, lifespan."""

import re
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from itertools import groupby
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from control.access import auth
from control.access.auth import AuthError
from control.api import operations
from control.api.operations import Operation, Reply
from control.api.services import Services
from control.console import console_routes
from control.problems import ProblemError
from control.web.routes import OPERATIONS


class Endpoint:
    """The ASGI application at a path, which runs the operation for a request's method."""

    def __init__(self, pattern: str, by_method: dict[str, Operation]) -> None:
        self.pattern = pattern
        self._by_method = by_method

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the operation and send its reply. Raises: ProblemError, when it is refused or fails."""
        services: Services = scope["app"].state.services
        operation = self._by_method[scope["method"]]
        try:
            reply = await operations.answer(services, operation, scope["path_params"], scope, receive)
        except ProblemError:
            raise
        except Exception as error:
            raise operations.internal(scope) from error
        await reply(scope, receive, send)


class OperationRoute(Route):
    """A path with its operations. Starlette's route would add HEAD to GET, and match paths ending in a line break."""

    def __init__(self, path: str, by_method: dict[str, Operation]) -> None:
        super().__init__(path, Endpoint(path, by_method), methods=list(by_method))
        self.methods = set(by_method)
        self.path_regex = re.compile(self.path_regex.pattern.removesuffix("$") + r"\Z")


def starlette(lifespan: Callable[[Starlette], AbstractAsyncContextManager[None]]) -> Starlette:
    """Make the application; `lifespan` sets its `state.services`."""
    handlers: dict[Any, Any] = {AuthError: _refused, ProblemError: _problem, HTTPException: _not_routed}
    made = Starlette(routes=[*_routes(), *console_routes.routes()], exception_handlers=handlers, lifespan=lifespan)
    made.router.redirect_slashes = False
    return made


def count_refusal(services: Services, scope: Scope, error: AuthError) -> None:
    """Record refused credentials, except that a browser has none yet."""
    if not error.reason:
        return
    services.failures.record(auth.address(scope), error.reason)
    services.metrics.auth_failure(error.reason)


def _routes() -> list[OperationRoute]:
    # Fixed paths before patterns.
    by_path = sorted(OPERATIONS, key=lambda operation: (operation.path.count("{"), operation.path))
    return [
        OperationRoute(path, {operation.method: operation for operation in found})
        for path, found in groupby(by_path, key=lambda operation: operation.path)
    ]


async def _problem(request: Request, error: ProblemError) -> Reply:
    return (
        console_routes.problem_page(request, error)
        if console_routes.is_of_console(request.scope)
        else operations.refusal(error)
    )


async def _refused(request: Request, error: AuthError) -> Reply:
    count_refusal(request.app.state.services, request.scope, error)
    return await _problem(request, error)


async def _not_routed(request: Request, error: HTTPException) -> Reply:
    """Return Starlette's 404 and 405 in control's format."""
    if error.status_code == 405:
        pattern = request.scope["endpoint"].pattern
        allowed = ", ".join(sorted((error.headers or {})["Allow"].split(", ")))
        return operations.refusal(ProblemError("method_not_allowed", f"{pattern} takes {allowed}", allow=allowed))
    return await _problem(request, ProblemError("no_such_path", "there is nothing here; /openapi.json has all paths"))
