//! See `orlop_fuzz::targets::registry`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::registry::TARGET.run)(input));
