"""A function as workers have it: loaded from its AOT file, and called, whichever ABI it speaks."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from edge_runtime import mapped_pages
from edge_runtime.guests import function_code
from edge_runtime.guests.abi import extism
from edge_runtime.guests.host_functions import NOTHING, Runner, host
from edge_runtime.guests.invocation import CallLimits, GuestFault, Http, Request, Response, Services, Sql
from edge_runtime.guests.run_direct import Direct
from edge_runtime.guests.run_extism import Extism, extism_host
from edge_runtime.guests.run_wagi import Wagi
from edge_runtime.ipc import frames
from edge_runtime.wasmedge import Config, check_address_space, check_refusals, verify

__all__ = ["CallLimits", "Function", "GuestFault", "Http", "Request", "Response", "Services", "Sql", "prepare"]

RUNNERS: Final[dict[str, Callable[..., Runner]]] = {"wagi": Wagi, "direct": Direct, extism.ABI: Extism}
"""By the manifest's `abi`."""


def prepare() -> None:
    """Check the process (Unsafe where no guest may run in it), and make what all functions share: before a fork, so
    that the children have it."""
    check_address_space()
    check_refusals()
    host()
    extism_host()


class Function:
    """A version of a function, loaded; lives as long as the worker serves it."""

    def __init__(self, name: str, runner: Runner) -> None:
        self.name = name
        self.runner = runner
        self.close = runner.close
        """Unload it."""

    @classmethod
    def load(cls, local: frames.LocalFunction, secrets: Mapping[str, str] | None = None) -> Self:
        """Load what `function_code.compile_artifact` made, after a check of its digest. `secrets` are the values of the
        manifest's names.

        Errors: Damaged (compile again), LoadError, LinkError, OSError.
        """
        manifest = local.manifest
        path, digest = Path(local.code[0]), local.code[1]
        verify(path, digest)
        limits = CallLimits(manifest.memory_pages, manifest.response_limit, manifest.log_bytes)
        abi = manifest.abi or "wagi"
        config = Config(memory_pages=limits.memory_pages, second_memory=abi == extism.ABI)
        module = function_code.load(path, config, abi, compiled=bool(local.aot))
        settings = {**manifest.config, **(secrets or {})}
        runner = RUNNERS[abi](local, module, config, limits, settings)
        if local.aot:
            # The artifact, which the file carries too, isn't read any more; code that runs comes back.
            mapped_pages.drop(str(path))
        return cls(local.name, runner)

    def call(self, request: Request, services: Services = NOTHING) -> Response:
        """Run one call in a fresh instance.

        Errors: GuestFault; what a service raised, unchanged; Unsafe (the worker is not fit to run guests).
        """
        return self.runner.call(request, services)
