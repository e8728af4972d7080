//! See `orlop_fuzz::targets::references`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::references::TARGET.run)(input));
