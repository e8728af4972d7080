//! See `orlop_fuzz::targets::credentials`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::credentials::TARGET.run)(input));
