//! See `orlop_fuzz::targets::bolt`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::bolt::TARGET.run)(input));
