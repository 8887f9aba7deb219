"""`skerry up`: everything on this machine, up to a function that answers at the edge."""

import asyncio
import os
import secrets
import shlex
import shutil
import ssl
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import aiohttp
import click

from control.cli import migrate, signing_in
from control.cli.support import options, output, releasing
from control.cli.support.client import HOME_FILE, Client, ConnectionSettings, Failure, Json, RequestRefused, home, path
from control.cli.up import installation
from control.cli.up.example import GREETINGS, GROUP, HELLO, Example, function_version, schema_change
from control.cli.up.example import release as make_release
from control.local import embedded, pki
from control.local.process import ServiceError, read_settings, write_settings
from control.protocol.bounded_http_client import BoundedConnector

CALL_LIMIT = 20.0
"""Seconds in which the edge may answer that it isn't ready yet, since it has just been started."""


class StepFailed(Failure):
    """A step of `skerry up` failed; the message says which and why, the cure says where the logs are."""


@click.command()
@click.option(
    "--demo",
    is_flag=True,
    help="Deploy a function in TypeScript, too, and then end by itself: with 0, or with 1 at the first failed step.",
)
@options.asynchronous
async def command(demo: bool) -> None:
    """Start everything on this machine and deploy an example.

    A metadata database, an artifact store, control and one edge, with their files in SKERRY_HOME (.skerry). With
    SKERRY_METADATA_URL and SKERRY_ARTIFACTS_URL set, those are used. Ctrl-C ends everything.
    """
    options.end_once()
    up = Up(installation.Home(home()))
    try:
        await up.run(demo)
    except asyncio.CancelledError:
        if not up.serving:
            raise
    except ExceptionGroup as group:
        # Both the watch and the step that needed the dead process failed; the watch's error, the first, says more.
        raise group.exceptions[0] from None
    output.say("everything has ended")


class Up:
    """One run of `skerry up`."""

    def __init__(self, files: installation.Home) -> None:
        self._home = files
        self._children: list[installation.SupervisedServer] = []
        self._began = time.monotonic()
        self._step_now = ""
        self.serving = False

    async def run(self, demo: bool) -> None:
        """Do all steps; then, unless `demo` is set, serve until cancelled.

        Raises: StepFailed, when a step fails, or a server exits and can't be restarted.
        """
        try:
            self._home.make()
        except ServiceError as error:
            raise StepFailed(str(error)) from error
        output.say(f"everything is kept in {self._home.folder}")
        async with AsyncExitStack() as stack:
            metadata_url, artifacts_url = await self._services(stack)
            async with asyncio.TaskGroup() as group:
                watch = group.create_task(self._watch())
                client = await self._everything(stack, metadata_url, artifacts_url, demo=demo)
                if not demo:
                    self._tell_what_next(client.url, await client.post(path("sign-in-codes")))
                    self._step_now, self.serving = "serving", True
                    await asyncio.Event().wait()
                watch.cancel()
            took = time.monotonic() - self._began
            output.say(f"all steps succeeded in {output.span(took)}; ending everything", style="green")

    async def _watch(self) -> None:
        try:
            await installation.watch(self._children, lambda: self.serving, lambda text: output.say(text, "yellow"))
        except ServiceError as error:
            raise StepFailed(f"{self._step_now}: {error}", cure=f"logs: {self._home.logs}") from error

    @asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[list[str]]:
        """Run a step and print its line: its time, its name, and the texts that it appends to the list.

        Raises: StepFailed, when the step fails.
        """
        self._step_now = name
        began = time.monotonic()
        told: list[str] = []
        try:
            yield told
        except (ServiceError, Failure, OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
            cure = getattr(error, "cure", "") or f"logs: {self._home.logs}"
            code = getattr(error, "code", "")
            raise StepFailed(f"{name}: {error or type(error).__name__}", code=code, cure=cure) from error
        output.say(f"{time.monotonic() - began:7.2f} s  {name:<18} {' '.join(told)}")

    async def _services(self, stack: AsyncExitStack) -> tuple[str, str]:
        async with self._step("services") as told:
            outside = installation.outside_services()
            if outside is not None:
                message = f"another `skerry up` runs in {self._home.folder}; end it first"
                await stack.enter_async_context(embedded.locked(self._home.folder / "lock", 0, message))
                told.append("the metadata database and the artifact store that the environment names")
                await _make_bucket(outside[1])
                return outside
            services = await stack.enter_async_context(embedded.services(self._home.folder))
            for server in (services.metadata, services.artifacts):
                self._children.append(installation.SupervisedServer(server, server.start))
            told.append(f"PostgreSQL at {_place(services.metadata_url)}, SeaweedFS at {_place(services.artifacts_url)}")
            return services.metadata_url, services.artifacts_url

    async def _everything(self, stack: AsyncExitStack, metadata_url: str, artifacts_url: str, *, demo: bool) -> Client:
        async with self._step("certificates") as told:
            keys = pki.ensure(self._home.pki)
            told.append(f"a CA of our own, {keys.fingerprint[:16]}…")
        async with self._step("migrate") as told:
            applied, first = await migrate.run(metadata_url, None)
            told.append(f"{len(applied)} applied" if applied else "the schema has all of this version")
        held = await stack.enter_async_context(installation.children_lock(self._home))
        control_port, edge_port = installation.ports(self._home)
        url, edge_url = f"https://127.0.0.1:{control_port}", f"http://127.0.0.1:{edge_port}"

        async with self._step("control") as told:
            settings = installation.control_settings(self._home, keys, control_port, metadata_url, artifacts_url)
            await self._start_control(stack, held, settings, url, keys.ca)
            told.append(f"serves {url}")
        async with self._step("operator") as told:
            connection = await self._operator(first, metadata_url, url, edge_url, keys.ca)
            told.append(f"its token is in {self._home.folder / HOME_FILE}")
        client = await stack.enter_async_context(Client(connection))

        await self._join(client, held, url)
        async with self._step("edge") as told:
            await self._start_edge(stack, held, edge_url)
            told.append(f"node {installation.NODE} serves {edge_url}")
        await self._show(client, edge_url, HELLO, demo=demo)
        if demo:
            await self._show(client, edge_url, GREETINGS, demo=demo)
        return client

    async def _show(self, client: Client, edge_url: str, example: Example, *, demo: bool) -> None:
        """Deploy an example, if that wasn't done before, and call it."""
        new = await self._deploy(client, example)
        async with self._step("call") as told:
            told.append(await called(edge_url, example, known=new, must=new or demo))

    async def _start_control(
        self, stack: AsyncExitStack, held: int, settings: dict[str, str], url: str, ca: Path
    ) -> None:
        self._home.spool.mkdir(mode=0o700, exist_ok=True)
        child = installation.PythonService(self._home, held, "control", ["control.cli", "serve"], settings)
        await self._start(stack, child, _ready(f"{url}/readyz", ssl.create_default_context(cafile=str(ca))))

    async def _operator(
        self, first: str | None, metadata_url: str, url: str, edge_url: str, ca: Path
    ) -> ConnectionSettings:
        """Return a connection as the `first` operator, or as the one whose token is in the home.

        A new admin is made if control accepts neither.
        """
        file = self._home.folder / HOME_FILE
        token = first or str(read_settings(file).get("token", ""))
        if token:
            try:
                async with Client(ConnectionSettings(url, token, ca)) as client:
                    await client.get(path("groups"), limit=1)
            except RequestRefused:
                token = ""
        if not token:
            _, made = await migrate.run(metadata_url, f"up-{secrets.token_hex(4)}")
            token = made or ""
        write_settings(file, {"url": url, "token": token, "ca": str(ca), "edge": edge_url})
        return ConnectionSettings(url, token, ca, edge_url)

    async def _join(self, client: Client, held: int, url: str) -> None:
        if installation.point_edge(self._home, url):
            return
        async with self._step("join") as told:
            made = await client.post(path("join-tokens"), {"group": GROUP})
            arguments = ["edge_runtime.cli.main", "join", "--control", url, "--state", str(self._home.edge)]
            arguments += ["--name", installation.NODE]
            await installation.PythonService(
                self._home, held, "join", arguments, {"SKERRY_JOIN_TOKEN": made["token"]}
            ).run()
            told.append(f"node {installation.NODE}, with a one-time token")

    async def _start_edge(self, stack: AsyncExitStack, held: int, edge_url: str) -> None:
        listen = edge_url.removeprefix("http://")
        arguments = ["edge_runtime.cli.main", "run", "--state", str(self._home.edge), "--listen", listen]
        child = installation.PythonService(self._home, held, "edge", arguments, {})
        await self._start(stack, child, _ready(f"{edge_url}/_skerry/healthz", None))

    async def _start(self, stack: AsyncExitStack, child: installation.PythonService, ready: installation.Ready) -> None:
        stack.push_async_callback(child.stop)
        await child.start(ready)
        self._children.append(installation.SupervisedServer(child, lambda: child.start(ready)))

    async def _deploy(self, client: Client, example: Example) -> bool:
        """Deploy an example, only the first time, so that later changes of an operator stay; return whether it was."""
        known = self._home.read()
        # A home of before there was more than one says that it has the example.
        deployed = known.get("examples", [HELLO.function] if known.get("example") else [])
        if example.function in deployed:
            return False
        change = None
        if example.change:
            async with self._step("schema change") as told:
                change = await schema_change(client, example)
                told.append(f"{change['number']} ({change['name']})")
        async with self._step("function") as told:
            version = await function_version(client, example)
            told.append(f"{version['name']}@{version['version']}, {output.size(version['size'])}")
        async with self._step("release") as told:
            release = await make_release(client, version, change)
            told.append(f"{release['number']} of group {release['group']}")
        if example.note:
            output.say(f"{'':12}{example.note}")
        async with self._step("sync") as told:
            followed = await releasing.follow(client, release, example.arrival_limit, offline_too=True, quiet=True)
            followed.check(release, example.arrival_limit, quiet=True)
            told.append(f"node {installation.NODE} runs release {release['number']}")
        self._home.keep(examples=[*deployed, example.function])
        return True

    def _tell_what_next(self, url: str, made: Json) -> None:
        output.say(
            f"the console is at {signing_in.console_url(url)}: type the code {made['code']} there (once, within five "
            "minutes; `skerry console` makes another)"
        )
        output.say(
            f"its certificate is of a CA of our own: your browser asks about it, or trusts {self._home.pki}/ca.pem"
        )
        output.say(
            f"ready in {output.span(time.monotonic() - self._began)}. Try next, in another terminal, in this folder:",
            "green",
        )
        for line in next_commands():
            output.say(f"  {line}")
        output.say("Ctrl-C ends everything; the data stays for the next `skerry up`.")


async def _make_bucket(artifacts_url: str) -> None:
    """Make the bucket of an artifact store named in the environment, since control itself never makes one.

    Raises: Failure, when the store doesn't make it.
    """
    # Imported here: botocore takes half a second.
    from botocore.exceptions import BotoCoreError, ClientError

    from control.local.seaweedfs import create_bucket, s3_client
    from control.storage.store_errors import PUT, problem

    bucket = artifacts_url.rpartition("/")[2]
    try:
        async with s3_client(artifacts_url) as client:
            await create_bucket(client, bucket)
    except (BotoCoreError, ClientError, OSError) as error:
        found = problem(error, PUT, bucket)
        raise Failure(found.detail, code=found.code, cure="is SKERRY_ARTIFACTS_URL right?") from error


def next_commands() -> list[str]:
    """Return commands to try next, which work unchanged in a shell in the current folder."""
    script = Path(sys.executable).with_name("skerry")
    found = shutil.which("skerry")
    here = found is not None and Path(found).resolve() == script.resolve()
    skerry = "skerry" if here else shlex.quote(os.path.relpath(script))
    if os.environ.get("SKERRY_HOME"):
        skerry = f"SKERRY_HOME={shlex.quote(os.path.relpath(home()))} {skerry}"
    visits = shlex.quote(os.path.relpath(HELLO.folder.with_name("visits")))
    return [
        f"{skerry} status",
        f"{skerry} invoke hello '?name=Grace&language=fr'",
        f"{skerry} schema add {visits}/schema.sql --name visits --wait",
        f"{skerry} function push visits {visits}/visits.wasm --manifest {visits}/manifest.json --wait",
        f"{skerry} invoke visits ada -X POST",
        f"{skerry} rollback --wait",
    ]


def _place(url: str) -> str:
    """Return the host and port of a URL, without the password in it."""
    return url.rpartition("@")[2].partition("/")[0]


def _ready(url: str, tls: ssl.SSLContext | None) -> installation.Ready:
    async def ready() -> bool:
        limit = aiohttp.ClientTimeout(total=2)
        try:
            async with (
                aiohttp.ClientSession(connector=BoundedConnector()) as session,
                session.get(url, ssl=tls or True, timeout=limit) as response,
            ):
                return response.status < 300
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    return ready


async def called(edge_url: str, example: Example, *, known: bool, must: bool) -> str:
    """Call an example and return a line about its answer.

    If the answer isn't `known`, an operator may have released another version since. With `must`, any status but 200 is
    also a failure.

    Raises: Failure, when the answer is wrong.
    """
    call = f"{edge_url}/functions/{example.function}{example.request}"
    expected = example.answer if known else None
    began = time.monotonic()
    while True:
        status, text = await _call(call)
        if status != 503 or not must or time.monotonic() - began > CALL_LIMIT:
            break
        await asyncio.sleep(0.2)
    if status == 200 and expected in (None, text):
        return f"{call} answers {text}"
    if not must:
        return f"{call} answers {status} {text}"
    wanted = "" if expected is None else f", and not {expected}"
    raise Failure(
        f"{call} answered {status} {text}{wanted}",
        cure="`skerry status` says what the node runs; where the example was changed or taken out, `skerry release "
        "list` has the releases with it, or set SKERRY_HOME to a new folder",
    )


async def _call(url: str) -> tuple[int, str]:
    async with aiohttp.ClientSession(connector=BoundedConnector()) as session, session.get(url) as response:
        return response.status, (await response.text(errors="replace")).strip()
