"""Tiny distinct modules for tests with many releases: each answers its own number and one that it SELECTs."""

from .build import wat

SQL = "SELECT number FROM generation"
"""What they ask by default; the answer's only cell is the schema's number."""


def version(number: int, sql: str = SQL) -> bytes:
    """A module that answers `{"version":NUMBER,"schema":ANSWER}`, where ANSWER is skerry.sql's to `sql` (its rows are
    [[n]]); with status 500 where that is an error."""
    request = '{"sql":"' + sql.replace('"', '\\"') + '","params":[]}'
    return wat(
        _TEXT.format(
            request=_quoted(request),
            size=len(request.encode()),
            good=_quoted(good := f'Content-Type: application/json\n\n{{"version":{number},"schema":'),
            good_size=len(good),
            bad=_quoted(bad := f'Status: 500\nContent-Type: application/json\n\n{{"version":{number},"schema":'),
            bad_size=len(bad),
        )
    )


def _quoted(text: str) -> str:
    return "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02x}" for b in text.encode())


_TEXT = """
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (import "skerry" "sql" (func $sql (param i32 i32) (result i32)))
  (import "skerry" "result" (func $result (param i32)))
  (memory (export "memory") 2)
  (data (i32.const 1024) "{request}")
  (data (i32.const 8192) "{good}")
  (data (i32.const 9216) "{bad}")
  (data (i32.const 10240) "}}\\0a")
  (func (export "_start") (local $size i32)
    (local.set $size (call $sql (i32.const 1024) (i32.const {size})))
    (call $result (i32.const 16384))
    (if (i32.eq (i32.load8_u (i32.const 16386)) (i32.const 101))
      (then (i32.store (i32.const 0) (i32.const 9216)) (i32.store (i32.const 4) (i32.const {bad_size})))
      (else (i32.store (i32.const 0) (i32.const 8192)) (i32.store (i32.const 4) (i32.const {good_size}))))
    (i32.store (i32.const 8) (i32.const 16384))
    (i32.store (i32.const 12) (local.get $size))
    (i32.store (i32.const 16) (i32.const 10240))
    (i32.store (i32.const 20) (i32.const 2))
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 3) (i32.const 64)))))
"""
