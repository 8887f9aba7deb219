"""A function as a worker uses it: loaded from its AOT file, and called, whatever its ABI."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, Self

from edge_runtime import process_memory
from edge_runtime.guests import function_code
from edge_runtime.guests.abi import extism
from edge_runtime.guests.host_functions import NOTHING, Runner, host
from edge_runtime.guests.invocation import CallLimits, CallServices, GuestFault, Http, Request, Response, Sql
from edge_runtime.guests.run_direct import Direct
from edge_runtime.guests.run_extism import Extism, extism_host
from edge_runtime.guests.run_wagi import Wagi
from edge_runtime.ipc import frames
from edge_runtime.wasmedge import Config, check_address_space, check_refusals, verify

__all__ = [
    "CallLimits",
    "CallServices",
    "GuestFault",
    "Http",
    "LoadedFunction",
    "Request",
    "Response",
    "Sql",
    "prepare",
]

RUNNERS: Final[dict[str, Callable[..., Runner]]] = {"wagi": Wagi, "direct": Direct, extism.ABI: Extism}
"""The runner for each `abi` of a manifest."""


def prepare() -> None:
    """Check that a guest may run in this process, and make what all functions share. Call it before a fork, so that the
    children have it.

    Raises: Unsafe, when no guest may run here.
    """
    check_address_space()
    check_refusals()
    host()
    extism_host()


class LoadedFunction:
    """A loaded version of a function; it lives as long as the worker serves it."""

    def __init__(self, name: str, runner: Runner) -> None:
        self.name = name
        self.runner = runner
        self.close = runner.close
        """Unloads the function."""

    @classmethod
    def load(cls, local: frames.LocalFunction, secrets: Mapping[str, str] | None = None) -> Self:
        """Load what `function_code.compile_artifact` made, once its digest is checked, and map a snapshot's image.
        `secrets` are the values of the secrets that the manifest names.

        Raises: Damaged, when a file isn't what was made (make it again); LoadError, when WasmEdge refuses it;
        LinkError, when its imports or exports don't fit; OSError, when it can't be read; Unsafe, when no guest may run
        here.
        """
        manifest = local.manifest
        path, digest = Path(local.code[0]), local.code[1]
        limits = CallLimits(manifest.memory_pages, manifest.response_limit, manifest.log_bytes)
        abi = manifest.abi or "wagi"
        config = Config(memory_pages=limits.memory_pages, second_memory=abi == extism.ABI)
        if local.image:
            module = function_code.load_engine(path, digest, config)
        else:
            verify(path, digest)
            module = function_code.load(path, config, abi, compiled=bool(local.aot))
        settings = {**manifest.config, **(secrets or {})}
        runner = RUNNERS[abi](local, module, config, limits, settings)
        if local.aot:
            # The AOT file also contains the artifact, which is never read again; pages of code are loaded again when
            # they run.
            process_memory.drop_mapped(str(path))
        return cls(local.name, runner)

    def call(self, request: Request, services: CallServices = NOTHING) -> Response:
        """Run one call in a fresh instance.

        Raises: GuestFault, when the guest fails; what a service raised, unchanged; Unsafe, when this worker can't run
        guests.
        """
        return self.runner.call(request, services)
