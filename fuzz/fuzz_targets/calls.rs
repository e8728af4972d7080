//! See `orlop_fuzz::targets::calls`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::calls::TARGET.run)(input));
