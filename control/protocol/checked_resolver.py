"""Looks up names for HTTP clients whose URLs somebody else chooses: those of webhooks and of functions.

Every address that a name resolves to is checked, and the client connects to one of the checked addresses without
looking up the name again. A name that changes in between (DNS rebinding) therefore gains nothing.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from aiohttp.abc import AbstractResolver, ResolveResult

from control.protocol.public_addresses import Address


class AddressRefused(OSError):
    """A name resolves to an address that isn't allowed."""


class CheckedResolver(AbstractResolver):
    """Looks up names in its own threads, so that a slow name server delays nothing else in the process."""

    def __init__(self, allows: Callable[[str, Address], bool], threads: int, *, configured: bool = False) -> None:
        """Use `allows(host, address)` to check whether `host` may resolve to `address`; it is called in a thread.

        Addresses that it doesn't allow are left out; it raises AddressRefused to refuse the whole name.
        With `configured`, only the address families (IPv4, IPv6) that this machine has addresses of are looked up.
        """
        self._allows = allows
        self._configured = configured
        self._threads = ThreadPoolExecutor(threads, "skerry-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Look up a name. Raises: AddressRefused; OSError, when the name has no address."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._look_up, host, port, family)

    def _look_up(self, host: str, port: int, family: int) -> list[ResolveResult]:
        # A machine without a network still has loopback, which AI_ADDRCONFIG doesn't count.
        flags = socket.AI_ADDRCONFIG if self._configured and host != "localhost" else 0
        allowed = [
            ResolveResult(
                hostname=host,
                host=str(place[0]),
                port=port,
                family=kind,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for kind, _, protocol, _, place in socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, 0, flags)
            if self._allows(host, ipaddress.ip_address(str(place[0]).partition("%")[0]))
        ]
        if not allowed:
            raise AddressRefused(f"{host} leads to no public address")
        return allowed

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
