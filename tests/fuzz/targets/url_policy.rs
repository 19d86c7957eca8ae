#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| comfyd::fuzz::run("url_policy", data));
