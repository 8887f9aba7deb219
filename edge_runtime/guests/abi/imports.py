"""What a guest may import: WASI preview 1, and the project's own module `skerry`."""

from edge_runtime.guests.abi import wasi_signatures

SKERRY = "skerry"
OWN_SIGNATURES = {"sql": ("ii", "i"), "http": ("ii", "i"), "result": ("i", "")}
"""`sql(ptr, len) -> n`, `http(ptr, len) -> n`, `result(ptr)`: see docs/functions.md."""

OFFERED = {wasi_signatures.MODULE: wasi_signatures.SIGNATURES, SKERRY: OWN_SIGNATURES}
