;; What every built-in tool begins with: reading standard input, writing standard output, writing numbers.
;; Memory: 0 to 31 belongs to these functions, 32 to 1023 to what is being put together, from 1024 on to input.
(import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
(import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
(memory (export "memory") 2)
;; How much of the output that is being put together there is.
(global $length (mut i32) (i32.const 0))

;; Reads up to $size bytes to $at; how many there were, and 0 at the end.
(func $read (param $at i32) (param $size i32) (result i32)
  (i32.store (i32.const 0) (local.get $at))
  (i32.store (i32.const 4) (local.get $size))
  (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
  (i32.load (i32.const 8)))

;; Writes $size bytes from $at, all of them.
(func $write (param $at i32) (param $size i32)
  (local $done i32)
  (block $written
    (loop $rest
      (br_if $written (i32.eqz (local.get $size)))
      (i32.store (i32.const 0) (local.get $at))
      (i32.store (i32.const 4) (local.get $size))
      (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8)) (then unreachable))
      (local.set $done (i32.load (i32.const 8)))
      (if (i32.eqz (local.get $done)) (then unreachable))
      (local.set $at (i32.add (local.get $at) (local.get $done)))
      (local.set $size (i32.sub (local.get $size) (local.get $done)))
      (br $rest))))

;; Adds one byte to the output.
(func $put (param $byte i32)
  (if (i32.ge_u (global.get $length) (i32.const 990)) (then unreachable))
  (i32.store8 (i32.add (i32.const 32) (global.get $length)) (local.get $byte))
  (global.set $length (i32.add (global.get $length) (i32.const 1))))

;; Adds a text that lies in memory.
(func $say (param $at i32) (param $size i32)
  (block $said
    (loop $next
      (br_if $said (i32.eqz (local.get $size)))
      (call $put (i32.load8_u (local.get $at)))
      (local.set $at (i32.add (local.get $at) (i32.const 1)))
      (local.set $size (i32.sub (local.get $size) (i32.const 1)))
      (br $next))))

;; Adds a number in decimal.
(func $number (param $value i64)
  (if (i64.lt_s (local.get $value) (i64.const 0))
    (then
      (call $put (i32.const 45))
      (call $digits (i64.sub (i64.const 0) (local.get $value))))
    (else (call $digits (local.get $value)))))
(func $digits (param $value i64)
  (if (i64.ge_u (local.get $value) (i64.const 10))
    (then (call $digits (i64.div_u (local.get $value) (i64.const 10)))))
  (call $put (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $value) (i64.const 10))))))

;; Writes the output that was put together.
(func $finish (call $write (i32.const 32) (global.get $length)))
