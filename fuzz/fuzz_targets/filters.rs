//! See `orlop_fuzz::targets::filters`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::filters::TARGET.run)(input));
