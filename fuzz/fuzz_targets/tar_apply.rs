//! See `orlop_fuzz::targets::tar_apply`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::tar_apply::TARGET.run)(input));
