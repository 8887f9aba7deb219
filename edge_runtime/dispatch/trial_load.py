"""Trial loads: before a release is committed, the process that will apply it loads each of its new functions once.

This refuses a function that can't be loaded, or needs more memory than a worker has for it, before anything changes.
"""

import hashlib
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from edge_runtime.errors import CodedError
from edge_runtime.ipc import frames
from edge_runtime.ipc.frames import LocalFunction
from edge_runtime.ipc.zygote_client import Child, NotBorn, ZygoteClient

LIMIT: Final = 120.0
"""Seconds for all functions together."""
TRIES: Final = 3
"""After this many children died, the function that the last one was loading is to blame."""

_decode_tried: Final = msgspec.json.Decoder(frames.Tried).decode


class LoadFailed(CodedError):
    """Functions can't be loaded; `code` is stable."""


class ReleaseApplier:
    """The applier of one release: started when first taken, and taken again after the trial."""

    def __init__(self, processes: ZygoteClient) -> None:
        self._processes = processes
        self._child: Child | None = None

    async def take(self) -> Child:
        """Return the child that was given back, or a new one if there is none or it has exited. The caller owns it from
        then on. Raises: NotBorn, if none can be started.
        """
        child, self._child = self._child, None
        if child is not None:
            if not child.exited.done():
                return child
            child.close()
        return await self._processes.birth("applier")

    def give_back(self, child: Child) -> None:
        """Keep a child for the next `take`."""
        self._child = child

    def close(self) -> None:
        """Stop the child that was given back, unless it has been taken since."""
        if self._child is not None:
            self._child.close()
            self._child = None


class TrialLoads:
    def __init__(self, processes: ZygoteClient, code_memory: int) -> None:
        """`code_memory`: bytes that a worker has for the functions that it has loaded."""
        self._processes = processes
        self._code_memory = code_memory
        self._passed: set[tuple[str, ...]] = set()
        """Keys of the functions that passed the last trial."""

    async def hold(
        self,
        functions: list[LocalFunction],
        served: Iterable[LocalFunction],
        secrets: Mapping[str, dict[str, str]],
        applier: ReleaseApplier | None,
    ) -> None:
        """Try the functions that aren't served already and didn't pass the last trial, in `applier`, which can be taken
        afterwards; if nothing will be applied, in a temporary one.

        Raises: LoadFailed, if one of them can't be loaded.
        """
        known = self._passed | {_key(f, secrets) for f in served}
        new = [f for f in functions if f.code[0] and _key(f, secrets) not in known]
        child = applier or ReleaseApplier(self._processes)
        try:
            await self._until_tried(new, secrets, child)
        finally:
            if applier is None:
                child.close()
        self._passed = {_key(f, secrets) for f in functions}

    async def _until_tried(
        self, new: list[LocalFunction], secrets: Mapping[str, dict[str, str]], applier: ReleaseApplier
    ) -> None:
        """Try functions, in a new child each time that one dies. Raises: LoadFailed."""
        died = 0
        while new:
            try:
                await self._try(new, secrets, applier)
            except NotBorn as error:
                text = f"The function {new[0].name} wasn't tried: there was no process for it: {error}."
                raise LoadFailed("no_process", text) from None
            except frames.ChildGone as error:
                died += 1
                if died == TRIES:
                    text = f"The process that loaded the function {new[0].name} ended, {TRIES} times: {error}."
                    raise LoadFailed("module_load_crashed", text) from None
            except TimeoutError:
                text = f"The function {new[0].name} wasn't loaded after {LIMIT:g} s."
                raise LoadFailed("load_timeout", text) from None

    async def _try(
        self, new: list[LocalFunction], secrets: Mapping[str, dict[str, str]], applier: ReleaseApplier
    ) -> None:
        """Try functions in one child, and remove those that passed from the list.

        Raises: NotBorn; ChildGone; TimeoutError; LoadFailed, if a function can't be loaded.
        """
        child = await applier.take()
        try:
            order = frames.Try(list(new), {f.name: secrets[f.name] for f in new if f.name in secrets})
            reply = await child.ask(frames.TRY, order, LIMIT)
            while True:
                if reply.kind == frames.FAILED:
                    failure = frames.decode_failure(reply.body)
                    raise LoadFailed(failure.code, failure.message)
                self._fits(new[0], frames.told(reply, frames.TRIED, _decode_tried).bytes)
                del new[0]
                if not new:
                    break
                reply = await child.answer(LIMIT)
        except BaseException:
            child.close()
            raise
        applier.give_back(child)

    def _fits(self, function: LocalFunction, need: int) -> None:
        if need > self._code_memory:
            text = (
                f"The code of the function {function.name} needs {need >> 20} MiB of a worker's memory "
                f"({'compiled' if function.aot else 'on the interpreter'}), and {self._code_memory >> 20} MiB are "
                "there for it: half of the node's worker_memory. Make the module smaller, or the setting larger."
            )
            raise LoadFailed("function_too_large", text)


def _key(function: LocalFunction, secrets: Mapping[str, dict[str, str]]) -> tuple[str, ...]:
    """Return everything that decides whether a function can be loaded: functions with equal keys load alike."""
    values = hashlib.sha256(frames.encode_json(secrets.get(function.name, {}))).hexdigest()
    return (function.name, function.code[1], function.image_digest, function.manifest_digest, values)
