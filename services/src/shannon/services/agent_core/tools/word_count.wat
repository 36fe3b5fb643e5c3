;; Counts words, characters and lines of a text: its input is a JSON string, or an object with the text at "text".
(data (i32.const 100000) "{\"words\": ")
(data (i32.const 100020) ", \"characters\": ")
(data (i32.const 100040) ", \"lines\": ")
(data (i32.const 100060) "\"text\"")
(global $words (mut i64) (i64.const 0))
(global $characters (mut i64) (i64.const 0))
(global $lines (mut i64) (i64.const 0))
(global $inside (mut i32) (i32.const 0)) ;; in a word
(global $start (mut i32) (i32.const 1024)) ;; of what was read
(global $end (mut i32) (i32.const 1024))

;; The next byte of the input; -1 at the end.
(func $next (result i32)
  (if (i32.eq (global.get $start) (global.get $end))
    (then
      (global.set $start (i32.const 1024))
      (global.set $end (i32.add (i32.const 1024) (call $read (i32.const 1024) (i32.const 65536))))
      (if (i32.eq (global.get $start) (global.get $end)) (then (return (i32.const -1))))))
  (global.set $start (i32.add (global.get $start) (i32.const 1)))
  (i32.load8_u (i32.sub (global.get $start) (i32.const 1))))

;; Goes past the quote that the text begins with: of an object, that of the value of "text".
(func $seek
  (local $byte i32) (local $matched i32)
  (local.set $byte (call $blank))
  (if (i32.eq (local.get $byte) (i32.const 34)) (then (return)))
  (if (i32.ne (local.get $byte) (i32.const 123)) (then unreachable))
  (loop $search
    (local.set $byte (call $next))
    (if (i32.lt_s (local.get $byte) (i32.const 0)) (then unreachable))
    (if (i32.eq (local.get $byte) (i32.load8_u (i32.add (i32.const 100060) (local.get $matched))))
      (then (local.set $matched (i32.add (local.get $matched) (i32.const 1))))
      (else (local.set $matched (i32.eq (local.get $byte) (i32.const 34)))))
    (br_if $search (i32.lt_u (local.get $matched) (i32.const 6))))
  (if (i32.ne (call $blank) (i32.const 58)) (then unreachable))
  (if (i32.ne (call $blank) (i32.const 34)) (then unreachable)))

;; The next byte that is not white space.
(func $blank (result i32)
  (local $byte i32)
  (loop $skip
    (local.set $byte (call $next))
    (br_if $skip (i32.eq (local.get $byte) (i32.const 32)))
    (br_if $skip (i32.lt_u (i32.sub (local.get $byte) (i32.const 9)) (i32.const 5))))
  (local.get $byte))

(func $count (param $space i32)
  (global.set $characters (i64.add (global.get $characters) (i64.const 1)))
  (if (local.get $space)
    (then (global.set $inside (i32.const 0)))
    (else
      (if (i32.eqz (global.get $inside))
        (then (global.set $words (i64.add (global.get $words) (i64.const 1)))))
      (global.set $inside (i32.const 1)))))

(func (export "_start")
  (local $byte i32)
  (call $seek)
  (block $done
    (loop $more
      (local.set $byte (call $next))
      (if (i32.lt_s (local.get $byte) (i32.const 0)) (then unreachable))
      (br_if $done (i32.eq (local.get $byte) (i32.const 34)))
      (if (i32.eq (local.get $byte) (i32.const 92)) ;; an escape
        (then
          (local.set $byte (call $next))
          (if (i32.eq (local.get $byte) (i32.const 110)) ;; \n
            (then
              (global.set $lines (i64.add (global.get $lines) (i64.const 1)))
              (call $count (i32.const 1)))
            (else
              (if (i32.eq (local.get $byte) (i32.const 117)) ;; \u and four digits
                (then
                  (drop (call $next)) (drop (call $next)) (drop (call $next)) (drop (call $next))
                  (call $count (i32.const 0)))
                (else ;; \t and \r are white space
                  (call $count
                    (i32.or
                      (i32.eq (local.get $byte) (i32.const 116))
                      (i32.eq (local.get $byte) (i32.const 114)))))))))
        (else
          ;; Bytes in the middle of a character of UTF-8 do not count.
          (if (i32.ne (i32.and (local.get $byte) (i32.const 0xC0)) (i32.const 0x80))
            (then (call $count (i32.eq (local.get $byte) (i32.const 32)))))))
      (br $more)))
  (if (i64.ne (global.get $characters) (i64.const 0))
    (then (global.set $lines (i64.add (global.get $lines) (i64.const 1)))))
  (call $say (i32.const 100000) (i32.const 10))
  (call $number (global.get $words))
  (call $say (i32.const 100020) (i32.const 16))
  (call $number (global.get $characters))
  (call $say (i32.const 100040) (i32.const 11))
  (call $number (global.get $lines))
  (call $put (i32.const 125))
  (call $finish))
