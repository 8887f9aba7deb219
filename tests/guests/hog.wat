;; Asks for memory, a MiB at a time, and writes to it, until it is refused; then traps as an allocator's failure does.
(module
  (memory (export "memory") 1)
  (func (export "_start") (local $page i32)
    (loop $more
      (local.set $page (memory.grow (i32.const 16)))
      (if (i32.eq (local.get $page) (i32.const -1)) (then unreachable))
      (memory.fill (i32.shl (local.get $page) (i32.const 16)) (i32.const 1) (i32.const 0x100000))
      (br $more))))
