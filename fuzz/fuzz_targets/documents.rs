//! See `orlop_fuzz::targets::documents`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::documents::TARGET.run)(input));
