//! The target `vswitch-config` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| netyard_fuzz_targets::config::vswitch(data));
