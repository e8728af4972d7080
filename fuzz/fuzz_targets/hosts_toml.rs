//! See `orlop_fuzz::targets::hosts_toml`.
#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| (orlop_fuzz::targets::hosts_toml::TARGET.run)(input));
