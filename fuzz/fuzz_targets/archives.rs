//! See `orlop_fuzz::targets::archives`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::archives::TARGET.run)(input));
