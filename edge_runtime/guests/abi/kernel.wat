;; The Extism kernel: the blocks of memory through which a plug-in and its host pass data. `merge.py` puts its functions
;; into each plug-in, where the compiler inlines them. So they call no function, use no type, global or table by its
;; number, and $kernel is memory 1 in both modules. The memory is all zeros at the start of each call. The host's side
;; is `guests/extism_host.py`.
;; Built by `python -m tests.guests.build`.
;;
;;      16  used: bytes of the blocks, a multiple of 16     64 + 8·n  the first free block with 2ⁿ to 2ⁿ⁺¹-1 bytes
;;      24  input: handle    32  input: length                   512  the blocks, one after the other
;;      40  output: handle   48  output: length
;;      56  error: handle
;;
;; A block has a mark (8 bytes), the length of its data (4), its capacity (4), and the bytes. The handle is the address
;; of the bytes. The mark is the handle xor a constant of 64 bits; a free block has in its place the address of the next
;; free block, 0 for none. The bytes of a free block are kept, because plug-ins set as output what they have freed.
;;
;; The arguments of a plug-in are hostile. Outside the blocks, loads return 0 and stores do nothing; what a plug-in
;; spoils inside them harms its own call alone. At least 8 bytes follow the blocks, so that an access that begins inside
;; them ends inside the memory.
(module
  (memory $plugin 0)
  (memory $kernel 1)

  ;; Returns 0 where the memory is full. Freed blocks are used again only where it would have to grow, as by Extism's
  ;; kernel: published plug-ins read what they have freed.
  (func (export "alloc") (param $length i64) (result i64)
    (local $room i64) (local $end i64) (local $size i64)
    (local $before i32) (local $list i32) (local $block i32) (local $left i32)
    (if (i64.gt_u (i64.sub (local.get $length) (i64.const 1)) (i64.const 0xefffffff)) (then (return (i64.const 0))))
    (local.set $room (i64.and (i64.add (local.get $length) (i64.const 15)) (i64.const -16)))
    (local.set $end (i64.add (i64.add (i64.load $kernel (i32.const 16)) (local.get $room)) (i64.const 528)))
    (local.set $size (i64.shl (i64.extend_i32_u (memory.size $kernel)) (i64.const 16)))
    (block $made
      (block $fresh
        (br_if $fresh (i64.le_u (i64.add (local.get $end) (i64.const 8)) (local.get $size)))
        (block $found
          ;; Of the first 64 blocks in the list for this capacity the first that is large enough; else one of the next
          ;; list, where all are.
          (local.set $before (i32.wrap_i64
            (i64.add (i64.const 64) (i64.shl (i64.sub (i64.const 63) (i64.clz (local.get $room))) (i64.const 3)))))
          (local.set $list (i32.add (local.get $before) (i32.const 8)))
          (local.set $left (i32.const 64))
          (loop $next
            (local.set $block (i32.wrap_i64 (i64.load $kernel (local.get $before))))
            (br_if $found (i64.ge_u (i64.load32_u $kernel offset=12 (local.get $block)) (local.get $room)))
            (local.set $before (local.get $block))
            (local.set $left (i32.sub (local.get $left) (i32.const 1)))
            (br_if $next (i32.and (i32.ne (local.get $block) (i32.const 0)) (i32.ne (local.get $left) (i32.const 0)))))
          (local.set $before (local.get $list))
          (br_if $found (local.tee $block (i32.wrap_i64 (i64.load $kernel (local.get $list)))))
          (br_if $fresh (i32.ne (i32.const -1) (memory.grow $kernel (i32.wrap_i64 (i64.shr_u
            (i64.add (i64.sub (local.get $end) (local.get $size)) (i64.const 65543)) (i64.const 16))))))
          (return (i64.const 0)))
        (i64.store $kernel (local.get $before) (i64.load $kernel (local.get $block)))
        (br $made))
      (local.set $block (i32.wrap_i64 (i64.sub (i64.sub (local.get $end) (local.get $room)) (i64.const 16))))
      (i64.store $kernel (i32.const 16) (i64.sub (local.get $end) (i64.const 512)))
      (i64.store32 $kernel offset=12 (local.get $block) (local.get $room)))
    (i64.store $kernel (local.get $block)
      (i64.xor (i64.add (i64.extend_i32_u (local.get $block)) (i64.const 16)) (i64.const 0x5ee1_c0de_0b10_c500)))
    (i64.store32 $kernel offset=8 (local.get $block) (local.get $length))
    (i64.add (i64.extend_i32_u (local.get $block)) (i64.const 16)))

  ;; Who frees the input finds none any more.
  (func (export "free") (param $handle i64)
    (local $block i32) (local $list i32)
    (if (i64.ge_u (i64.sub (local.get $handle) (i64.const 528)) (i64.load $kernel (i32.const 16))) (then (return)))
    (local.set $block (i32.sub (i32.wrap_i64 (local.get $handle)) (i32.const 16)))
    (if (i64.ne (i64.xor (local.get $handle) (i64.const 0x5ee1_c0de_0b10_c500)) (i64.load $kernel (local.get $block)))
      (then (return)))
    (if (i64.eq (local.get $handle) (i64.load $kernel (i32.const 24)))
      (then (i64.store $kernel (i32.const 32) (i64.const 0))))
    (local.set $list (i32.add (i32.const 64) (i32.shl
      (i32.sub (i32.const 31) (i32.clz (i32.or (i32.load $kernel offset=12 (local.get $block)) (i32.const 1))))
      (i32.const 3))))
    (i64.store $kernel (local.get $block) (i64.load $kernel (local.get $list)))
    (i64.store $kernel (local.get $list) (i64.extend_i32_u (local.get $block))))

  ;; Return 0 for a handle that no block has.
  (func (export "length") (export "length_unsafe") (param $handle i64) (result i64)
    (local $block i32)
    (if (i64.ge_u (i64.sub (local.get $handle) (i64.const 528)) (i64.load $kernel (i32.const 16)))
      (then (return (i64.const 0))))
    (local.set $block (i32.sub (i32.wrap_i64 (local.get $handle)) (i32.const 16)))
    (if (i64.ne (i64.xor (local.get $handle) (i64.const 0x5ee1_c0de_0b10_c500)) (i64.load $kernel (local.get $block)))
      (then (return (i64.const 0))))
    (i64.load32_u $kernel offset=8 (local.get $block)))

  (func (export "load_u8") (param $at i64) (result i32)
    (if (result i32) (i64.lt_u (i64.sub (local.get $at) (i64.const 512)) (i64.load $kernel (i32.const 16)))
      (then (i32.load8_u $kernel (i32.wrap_i64 (local.get $at)))) (else (i32.const 0))))

  (func (export "load_u64") (param $at i64) (result i64)
    (if (result i64) (i64.lt_u (i64.sub (local.get $at) (i64.const 512)) (i64.load $kernel (i32.const 16)))
      (then (i64.load $kernel (i32.wrap_i64 (local.get $at)))) (else (i64.const 0))))

  (func (export "store_u8") (param $at i64) (param $value i32)
    (if (i64.lt_u (i64.sub (local.get $at) (i64.const 512)) (i64.load $kernel (i32.const 16)))
      (then (i32.store8 $kernel (i32.wrap_i64 (local.get $at)) (local.get $value)))))

  (func (export "store_u64") (param $at i64) (param $value i64)
    (if (i64.lt_u (i64.sub (local.get $at) (i64.const 512)) (i64.load $kernel (i32.const 16)))
      (then (i64.store $kernel (i32.wrap_i64 (local.get $at)) (local.get $value)))))

  (func (export "input_offset") (result i64) (i64.load $kernel (i32.const 24)))

  (func (export "input_length") (result i64) (i64.load $kernel (i32.const 32)))

  (func (export "input_load_u8") (param $at i64) (result i32)
    (if (result i32) (i64.lt_u (local.get $at) (i64.load $kernel (i32.const 32)))
      (then (i32.load8_u $kernel (i32.wrap_i64 (i64.add (i64.load $kernel (i32.const 24)) (local.get $at)))))
      (else (i32.const 0))))

  ;; Returns 0 where fewer than 8 bytes of the input follow.
  (func (export "input_load_u64") (param $at i64) (result i64)
    (if (result i64)
      (i32.and (i64.lt_u (local.get $at) (i64.load $kernel (i32.const 32)))
        (i64.ge_u (i64.sub (i64.load $kernel (i32.const 32)) (local.get $at)) (i64.const 8)))
      (then (i64.load $kernel (i32.wrap_i64 (i64.add (i64.load $kernel (i32.const 24)) (local.get $at)))))
      (else (i64.const 0))))

  ;; Does nothing where the range isn't in the memory: what was set before stays.
  (func (export "output_set") (param $at i64) (param $length i64)
    (local $most i64)
    (local.set $most (i64.sub (i64.shl (i64.extend_i32_u (memory.size $kernel)) (i64.const 16)) (i64.const 512)))
    (if (i64.ge_u (i64.sub (local.get $at) (i64.const 512)) (local.get $most)) (then (return)))
    (if (i64.gt_u (local.get $length) (local.get $most)) (then (return)))
    (if (i64.ge_u (i64.sub (i64.add (local.get $at) (local.get $length)) (i64.const 513)) (local.get $most))
      (then (return)))
    (i64.store $kernel (i32.const 40) (local.get $at))
    (i64.store $kernel (i32.const 48) (local.get $length)))

  ;; With 0 there is no error any more. Does nothing where the address isn't in the memory.
  (func (export "error_set") (param $handle i64)
    (if (i64.ne (local.get $handle) (i64.const 0)) (then
      (if (i64.ge_u (i64.sub (local.get $handle) (i64.const 512))
          (i64.sub (i64.shl (i64.extend_i32_u (memory.size $kernel)) (i64.const 16)) (i64.const 512)))
        (then (return)))))
    (i64.store $kernel (i32.const 56) (local.get $handle)))
)
