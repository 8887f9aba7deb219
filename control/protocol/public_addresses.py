"""Decides which IP addresses are public: only these may be reached by requests to URLs that somebody else chooses.

These are the URLs of webhooks, in control, and of functions' requests, on nodes.
"""

import ipaddress
import socket

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet. Pure.

    An IPv6 address that embeds an IPv4 address is public only if it is the mapped form of a public one: a router can
    turn the others (6to4, Teredo, NAT64) into any address.
    """
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address.sixtofour is not None or address.teredo is not None or address.is_site_local:
            return False
    return address.is_global and not address.is_multicast and not address.is_reserved


def is_own(address: Address) -> bool:
    """Return whether the address is one of this machine's. Nothing is sent."""
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((str(address), 9))
            return ipaddress.ip_address(str(probe.getsockname()[0])) == address
    except OSError:
        # There is no route to the address.
        return False
