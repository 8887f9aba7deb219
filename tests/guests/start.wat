;; Has a start section, which counts; answers with the count as a digit: 1 in a fresh instance.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (data (i32.const 0) "\10\00\00\00\1b\00\00\00")
  (data (i32.const 16) "Content-Type: text/plain\0a\0a0")
  (func $begin (i32.store8 (i32.const 42) (i32.add (i32.load8_u (i32.const 42)) (i32.const 1))))
  (start $begin)
  (func (export "_start") (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)))))
