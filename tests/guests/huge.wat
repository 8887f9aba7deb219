;; Writes 64 KiB after 64 KiB to stdout and never stops by itself.
(module
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 3)
  (data (i32.const 0) "\10\00\00\00\1a\00\00\00" "\00\00\01\00\00\00\01\00")
  (data (i32.const 16) "Content-Type: text/plain\0a\0a")
  (func (export "_start")
    (drop (call $write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 64)))
    (memory.fill (i32.const 0x10000) (i32.const 120) (i32.const 0x10000))
    (loop $more
      (drop (call $write (i32.const 1) (i32.const 8) (i32.const 1) (i32.const 64)))
      (br $more))))
