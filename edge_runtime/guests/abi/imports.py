"""What a guest may import: WASI preview 1, and our own `skerry` module."""

from edge_runtime.guests import wasi

SKERRY = "skerry"
OWN_SIGNATURES = {"sql": ("ii", "i"), "http": ("ii", "i"), "result": ("i", "")}
"""`sql(ptr, len) -> n`, `http(ptr, len) -> n`, `result(ptr)`: see docs/functions.md."""

OFFERED = {wasi.MODULE: wasi.SIGNATURES, SKERRY: OWN_SIGNATURES}
