//! The target `packed-device` under libFuzzer.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| netyard_fuzz_targets::rings::packed_device(data));
