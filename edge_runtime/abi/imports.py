"""What a guest may import: WASI preview 1, and our own `skerry` module."""

from .. import wasi

SQL_MODULE = "skerry"
SQL_SIGNATURES = {"sql": ("ii", "i"), "result": ("i", "")}
"""`sql(ptr, len) -> n`, `result(ptr)`: see docs/functions.md."""

OFFERED = {wasi.MODULE: wasi.SIGNATURES, SQL_MODULE: SQL_SIGNATURES}
