;; Recurses without end: in AOT code that ends the whole process by a signal.
(module
  (memory (export "memory") 1)
  (global $depth (mut i32) (i32.const 0))
  (func $deeper (param $n i32) (result i32)
    (global.set $depth (i32.add (global.get $depth) (i32.const 1)))
    (i32.add (call $deeper (i32.add (local.get $n) (i32.const 1))) (i32.load (local.get $n))))
  (func (export "_start") (drop (call $deeper (i32.const 0)))))
