#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| flatfell_fuzz::cni::run(bytes));
