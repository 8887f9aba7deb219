"""What a guest may import: WASI preview 1, and our own `skerry` module."""

from ..wasi import MODULE as WASI_MODULE
from ..wasi import SIGNATURES as WASI_SIGNATURES

SQL_MODULE = "skerry"
SQL_SIGNATURES = {"sql": ("ii", "i"), "result": ("i", "")}
"""`sql(ptr, len) -> n`, `result(ptr)`: see docs/functions.md."""

OFFERED = {WASI_MODULE: WASI_SIGNATURES, SQL_MODULE: SQL_SIGNATURES}
