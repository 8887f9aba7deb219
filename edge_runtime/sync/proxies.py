"""The proxy, if one is named, through which the node reaches control and the artifact store."""

import ipaddress
import urllib.request

import aiohttp
from yarl import URL


def is_loopback(host: str | None) -> bool:
    """Tell whether a name or address never leaves this machine."""
    if host is None:
        return False
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def proxy_for(url: URL) -> tuple[URL | None, dict[str, str]]:
    """Return the proxy that the environment names for `url` (HTTPS_PROXY, NO_PROXY, …), and the headers for it.

    Loopback never has a proxy.
    """
    host = url.host or ""
    if is_loopback(host):
        return None, {}
    proxies = urllib.request.getproxies_environment()
    wanted = proxies.get(url.scheme) or proxies.get("all")
    if not wanted or urllib.request.proxy_bypass(host, proxies):
        return None, {}
    proxy = URL(wanted if "://" in wanted else f"http://{wanted}")
    headers = {}
    if proxy.user:
        headers["Proxy-Authorization"] = aiohttp.encode_basic_auth(proxy.user, proxy.password or "")
    return proxy.with_user(None), headers
