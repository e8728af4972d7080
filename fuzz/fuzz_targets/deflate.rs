//! See `orlop_fuzz::targets::deflate`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::deflate::TARGET.run)(input));
