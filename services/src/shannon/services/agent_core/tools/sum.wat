;; Adds up the whole numbers in its input, wherever they stand; a number of more than 18 digits is a trap, as is a sum that
;; does not fit into 64 bits.
(data (i32.const 100000) "{\"sum\": ")
(data (i32.const 100020) ", \"count\": ")
(global $sum (mut i64) (i64.const 0))
(global $count (mut i64) (i64.const 0))
(global $current (mut i64) (i64.const 0))
(global $seen (mut i32) (i32.const 0))
(global $negative (mut i32) (i32.const 0))

(func $take
  (local $before i64)
  (if (global.get $seen)
    (then
      (if (global.get $negative)
        (then (global.set $current (i64.sub (i64.const 0) (global.get $current)))))
      (local.set $before (global.get $sum))
      (global.set $sum (i64.add (global.get $sum) (global.get $current)))
      ;; Two numbers of one sign whose sum has the other: it did not fit.
      (if (i64.lt_s
            (i64.and
              (i64.xor (local.get $before) (global.get $sum))
              (i64.xor (global.get $current) (global.get $sum)))
            (i64.const 0))
        (then unreachable))
      (global.set $count (i64.add (global.get $count) (i64.const 1)))))
  (global.set $seen (i32.const 0))
  (global.set $negative (i32.const 0))
  (global.set $current (i64.const 0)))

(func (export "_start")
  (local $size i32) (local $at i32) (local $byte i32)
  (block $end
    (loop $more
      (local.set $size (call $read (i32.const 1024) (i32.const 65536)))
      (br_if $end (i32.eqz (local.get $size)))
      (local.set $at (i32.const 1024))
      (loop $next
        (local.set $byte (i32.load8_u (local.get $at)))
        (if (i32.lt_u (i32.sub (local.get $byte) (i32.const 48)) (i32.const 10))
          (then
            (global.set $seen (i32.add (global.get $seen) (i32.const 1)))
            (if (i32.gt_u (global.get $seen) (i32.const 18)) (then unreachable))
            (global.set $current
              (i64.add
                (i64.mul (global.get $current) (i64.const 10))
                (i64.extend_i32_u (i32.sub (local.get $byte) (i32.const 48))))))
          (else
            (call $take)
            (global.set $negative (i32.eq (local.get $byte) (i32.const 45)))))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $next (i32.lt_u (local.get $at) (i32.add (i32.const 1024) (local.get $size)))))
      (br $more)))
  (call $take)
  (call $say (i32.const 100000) (i32.const 8))
  (call $number (global.get $sum))
  (call $say (i32.const 100020) (i32.const 11))
  (call $number (global.get $count))
  (call $put (i32.const 125))
  (call $finish))
