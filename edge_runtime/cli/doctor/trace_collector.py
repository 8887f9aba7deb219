"""The collector that gets the node's traces: whether it takes them, by a request without any."""

from pathlib import Path

from control.protocol.findings import Finding
from edge_runtime.cli.doctor.local_http import PREFIX, Values
from edge_runtime.settings import EdgeSettingsError
from edge_runtime.telemetry import span_sender


def trace_findings(values: Values) -> list[Finding]:
    """Ask the collector that the settings name, with the headers and the CA of their files."""
    url = values[PREFIX + "OTLP_URL"]
    if not url:
        return [Finding("traces", "ok", "no traces are sent")]
    headers, ca = values[PREFIX + "OTLP_HEADERS_FILE"], values[PREFIX + "OTLP_CA"]
    try:
        sender = span_sender.of_files(url, Path(headers) if headers else None, Path(ca) if ca else None, "")
    except EdgeSettingsError as error:
        # A node doesn't start with it.
        return [Finding("traces", "wrong", str(error), "docs/how-to/send-traces.md")]
    if why := sender.refusal():
        text = f"traces can't be sent to {url}, and are dropped: {why}"
        return [Finding("traces", "note", text, f"curl -v {url}/v1/traces (docs/how-to/send-traces.md)")]
    return [Finding("traces", "ok", f"{url} takes traces")]
