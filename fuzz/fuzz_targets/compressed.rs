//! See `orlop_fuzz::targets::compressed`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::compressed::TARGET.run)(input));
