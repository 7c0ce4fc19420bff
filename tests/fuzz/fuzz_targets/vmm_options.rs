//! The target `vmm-options` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| netyard_fuzz_targets::config::vmm(data));
