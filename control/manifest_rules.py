"""Rules of manifests beyond their types, differences between manifests' grants, and routes that conflict. Pure."""

import ipaddress
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from control.protocol import cron
from control.protocol.manifest import READ_ONLY_METHODS, Cors, HttpGrant, Manifest, Route, completed, sql_grant

OWN_PATHS: Final = ("functions", "_skerry")
"""First segments of paths that belong to the node itself."""
CGI_NAMES: Final = frozenset(
    (
        "AUTH_TYPE", "CONTENT_LENGTH", "CONTENT_TYPE", "GATEWAY_INTERFACE", "HTTPS", "PATH_INFO", "PATH_TRANSLATED",
        "QUERY_STRING", "REMOTE_ADDR", "REMOTE_HOST", "REMOTE_IDENT", "REMOTE_PORT", "REMOTE_USER", "REQUEST_METHOD",
        "REQUEST_URI", "SCRIPT_NAME", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL", "SERVER_SOFTWARE",
        "SKERRY_FUNCTION", "X_FULL_URL", "X_MATCHED_ROUTE", "X_RAW_PATH_INFO",
    )
)  # fmt: skip
"""Names of CGI variables, which describe the request: no setting of a function may have one of these names."""
CGI_PREFIXES: Final = ("HTTP_", "PATH_PARAM_")
TUNNELS: Final = ("CONNECT", "TRACE")
"""Methods that a node doesn't use for a function's requests."""
GRANTS: Final = (
    *("route", "sql", "read_only_methods", "cors", "navigation", "http", "secrets", "config"),
    *("schedule", "timezone", "missed", "on_release"),
)
"""Fields of a manifest that let a function use something beyond its memory, or run by itself: a release shows changes
to them."""


class ManifestUnfit(ValueError):
    """A manifest that can't be stored; `field` is the path of the field that is wrong."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


def check(manifest: Manifest) -> None:
    """Check a manifest as its author wrote it (`completed` turns it into the stored one).

    Raises: ManifestUnfit, when a rule is broken. An empty `abi`, which isn't known yet, is fine.
    """
    if manifest.entry and manifest.abi not in ("", "extism"):
        raise ManifestUnfit("entry", f"entry names an export of an Extism plug-in, and this module is {manifest.abi}")
    if manifest.abi == "extism" and manifest.route is not None and not manifest.entry:
        raise ManifestUnfit("entry", "a plug-in with a route needs entry: a route's path names no function to call")
    _check_names(manifest)
    if manifest.http is not None:
        _check_http(manifest.http)
    if manifest.route is not None:
        _check_route(manifest.route)
    if manifest.cors is not None:
        _check_cors(manifest.cors)
    _check_schedule(manifest)
    for method in READ_ONLY_METHODS:
        if manifest.navigation and sql_grant(completed(manifest), method) == "write":
            raise ManifestUnfit(
                "navigation",
                f"a link of any site could have the function write, as {method} isn't one of read_only_methods",
            )


def _check_names(manifest: Manifest) -> None:
    for field, names in (("config", list(manifest.config)), ("secrets", manifest.secrets)):
        for name in names:
            if name in CGI_NAMES or name.startswith(CGI_PREFIXES):
                raise ManifestUnfit(
                    field, f"{name} is the name of a CGI variable, which describes the request: choose another name"
                )
    for name in manifest.secrets:
        if name in manifest.config:
            raise ManifestUnfit("secrets", f"{name} is in config too: a name can be in one of them only")
    if len(set(manifest.secrets)) < len(manifest.secrets):
        raise ManifestUnfit("secrets", "secrets has a name twice")
    for name, value in manifest.config.items():
        if "\0" in value:
            raise ManifestUnfit("config", f"the value of {name} has a NUL, which no environment variable can hold")


def _check_http(grant: HttpGrant) -> None:
    for method in grant.methods:
        if method in TUNNELS:
            raise ManifestUnfit("http.methods", f"a node makes no {method} requests for functions")
    for pattern in grant.hosts:
        host = pattern.removeprefix("http://")
        name, colon, port = host.rpartition(":")
        if not colon or port.endswith("]"):
            name = host
        elif int(port) > 65_535:
            raise ManifestUnfit("http.hosts", f"{pattern} names the port {port}; the highest is 65535")
        if name.startswith("["):
            try:
                address = ipaddress.IPv6Address(name[1:-1])
            except ValueError:
                raise ManifestUnfit("http.hosts", f"{pattern} names no IPv6 address") from None
            if str(address) != name[1:-1]:
                raise ManifestUnfit("http.hosts", f"{pattern} must be written as [{address}]")
        elif name.rpartition(".")[2].isdecimal():
            try:
                ipaddress.IPv4Address(name)
            except ValueError:
                raise ManifestUnfit("http.hosts", f"{pattern} names neither an IPv4 address nor a host") from None


def _check_cors(cors: Cors) -> None:
    if "*" in cors.origins and len(cors.origins) > 1:
        raise ManifestUnfit("cors.origins", "* is every origin: it stands alone")
    for origin in cors.origins:
        if cors.credentials and origin in ("*", "null"):
            raise ManifestUnfit(
                "cors.credentials", f"with credentials the origins must be named, and {origin} can be any page"
            )
        scheme, _, host = origin.partition("://")
        port = host.rpartition(":")[2] if not host.endswith("]") else ""
        if port.isdecimal() and int(port) > 65_535:
            raise ManifestUnfit("cors.origins", f"{origin} names the port {port}; the highest is 65535")
        if (scheme, port) in (("http", "80"), ("https", "443")):
            raise ManifestUnfit("cors.origins", f"browsers leave {port} out of {origin}, as it is the port of {scheme}")


def _check_schedule(manifest: Manifest) -> None:
    if manifest.abi == "extism" and (manifest.schedule or manifest.on_release) and not manifest.entry:
        raise ManifestUnfit("entry", "a plug-in that the node calls by itself needs entry, the export that it calls")
    if not manifest.schedule:
        for field, default in (("timezone", "UTC"), ("jitter_seconds", 0), ("missed", "skip")):
            if getattr(manifest, field) != default:
                raise ManifestUnfit(
                    field, f"{field} is about schedule, which is empty: add a cron line, or leave it out"
                )
    for line in manifest.schedule:
        try:
            cron.check(line)
        except cron.CronUnfit as error:
            raise ManifestUnfit("schedule", str(error)) from None
        if manifest.jitter_seconds >= (gap := cron.shortest_gap(line)):
            raise ManifestUnfit(
                "jitter_seconds", f"{line} is due each {gap:.0f} s, so jitter_seconds must be less than that"
            )
    if len(set(manifest.schedule)) < len(manifest.schedule):
        raise ManifestUnfit("schedule", "schedule has a line twice")
    try:
        cron.zone(manifest.timezone)
    except cron.CronUnfit as error:
        raise ManifestUnfit("timezone", str(error)) from None
    if manifest.missed_most != 100 and manifest.missed != "all":
        raise ManifestUnfit("missed_most", f'missed_most is about missed = "all", and missed is "{manifest.missed}"')


def _check_route(route: Route) -> None:
    for host in route.hosts:
        if host.rpartition(".")[2].isdecimal():
            try:
                ipaddress.IPv4Address(host)
            except ValueError:
                raise ManifestUnfit("route.hosts", f"{host} is neither a host's name nor an IPv4 address") from None
    segments = route.path.split("/")[1:]
    if segments[0] in OWN_PATHS:
        raise ManifestUnfit("route.path", f"paths under /{segments[0]} are the node's own")
    for segment in segments:
        if segment in (".", ".."):
            raise ManifestUnfit("route.path", f"{route.path} has the segment {segment}, which clients resolve away")
    names = [segment.strip("{}.") for segment in segments if segment.startswith("{")]
    if len(set(names)) < len(names):
        raise ManifestUnfit("route.path", f"{route.path} has a parameter twice")


def shape(path: str) -> tuple[str, ...]:
    """Return a route's path without the names of its parameters. Paths with the same shape match the same requests."""
    return tuple(
        ("{...}" if segment.endswith("...}") else "{}") if segment.startswith("{") else segment
        for segment in path.split("/")[1:]
    )


def conflict(routes: Mapping[str, Route]) -> str:
    """Return how routes of two of these functions conflict, as a sentence; '' if none do.

    Where two routes match a request, the more specific host decides, and then the first segment that differs: literal
    before parameter before rest. So two routes conflict only if they share a host (or have none), a shape and a method.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for name in sorted(routes):
        for host in dict.fromkeys(routes[name].hosts or [""]):
            alike.setdefault((host, shape(routes[name].path)), []).append(name)
    for (host, _), names in alike.items():
        taken: dict[str, str] = {}
        for other in names:
            # "" stands for every method, which a route without methods takes.
            methods = routes[other].methods or [""]
            one = next((taken[method] for method in methods if method in taken), taken.get("", ""))
            if not one and "" in methods and taken:
                one = next(iter(taken.values()))
            if one:
                return _same_requests(host, one, routes[one], other, routes[other])
            taken.update(dict.fromkeys(methods, other))
    return ""


def _same_requests(host: str, one: str, first: Route, other: str, second: Route) -> str:
    both = set(first.methods) & set(second.methods)
    if not first.methods or not second.methods:
        both = set(first.methods) | set(second.methods) or {"every method"}
    listed = ", ".join(sorted(both)) + (f" for {host}" if host else "")
    return f"the route {first.path} of {one} and {second.path} of {other} take the same requests ({listed})"


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the grants that differ between two stored manifests, each before and after; None if it is absent."""
    return {grant: (before.get(grant), after.get(grant)) for grant in GRANTS if before.get(grant) != after.get(grant)}


def grants(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the grants of a stored manifest, each as a line of text."""
    return {grant: shown(grant, manifest[grant]) for grant in GRANTS if grant in manifest}


def shown(grant: str, value: Any) -> str:
    """Return a grant as text."""
    if value is None:
        return "none"
    if grant == "route":
        return f"{'|'.join(value.get('methods') or ['ANY'])} {','.join(value.get('hosts', ()))}{value['path']}"
    if grant == "http":
        given = msgspec.convert(value, HttpGrant)
        return (
            f"{'|'.join(given.methods)} to {', '.join(given.hosts)} ({given.time_limit_ms} ms, {given.request_bytes} "
            f"bytes out, {given.response_bytes} in)"
        )
    if grant == "cors":
        shared = msgspec.convert(value, Cors)
        credentials = ", with credentials" if shared.credentials else ""
        return f"{'|'.join(shared.methods)} from {', '.join(shared.origins)}{credentials}"
    if grant == "navigation":
        return "links of other sites"
    if grant == "on_release":
        return "after each release with another version"
    if grant == "schedule":
        return "; ".join(value)
    if grant == "config":
        return ", ".join(f"{name}={text}" for name, text in sorted(value.items()))
    return ", ".join(value) if isinstance(value, list) else str(value)
