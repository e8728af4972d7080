//! See `orlop_fuzz::targets::graphs`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::graphs::TARGET.run)(input));
