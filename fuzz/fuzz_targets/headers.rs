//! See `orlop_fuzz::targets::headers`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::headers::TARGET.run)(input));
