;; CRC-32 (polynomial 0xEDB88320) of its input, and how many bytes that had.
(data (i32.const 100000) "{\"crc32\": \"")
(data (i32.const 100020) "\", \"bytes\": ")
(func (export "_start")
  (local $size i32) (local $at i32) (local $crc i32) (local $bit i32) (local $bytes i64)
  (local.set $crc (i32.const -1))
  (block $end
    (loop $more
      (local.set $size (call $read (i32.const 1024) (i32.const 65536)))
      (br_if $end (i32.eqz (local.get $size)))
      (local.set $bytes (i64.add (local.get $bytes) (i64.extend_i32_u (local.get $size))))
      (local.set $at (i32.const 1024))
      (loop $byte
        (local.set $crc (i32.xor (local.get $crc) (i32.load8_u (local.get $at))))
        (local.set $bit (i32.const 8))
        (loop $bits
          (local.set $crc
            (i32.xor
              (i32.shr_u (local.get $crc) (i32.const 1))
              (i32.and (i32.const 0xEDB88320) (i32.sub (i32.const 0) (i32.and (local.get $crc) (i32.const 1))))))
          (local.set $bit (i32.sub (local.get $bit) (i32.const 1)))
          (br_if $bits (local.get $bit)))
        (local.set $at (i32.add (local.get $at) (i32.const 1)))
        (br_if $byte (i32.lt_u (local.get $at) (i32.add (i32.const 1024) (local.get $size)))))
      (br $more)))
  (local.set $crc (i32.xor (local.get $crc) (i32.const -1)))
  (call $say (i32.const 100000) (i32.const 11))
  (local.set $bit (i32.const 28))
  (loop $digit
    (local.set $at (i32.and (i32.shr_u (local.get $crc) (local.get $bit)) (i32.const 15)))
    (call $put
      (select
        (i32.add (i32.const 48) (local.get $at))
        (i32.add (i32.const 87) (local.get $at))
        (i32.lt_u (local.get $at) (i32.const 10))))
    (local.set $bit (i32.sub (local.get $bit) (i32.const 4)))
    (br_if $digit (i32.ge_s (local.get $bit) (i32.const 0))))
  (call $say (i32.const 100020) (i32.const 12))
  (call $number (local.get $bytes))
  (call $put (i32.const 125))
  (call $finish))
