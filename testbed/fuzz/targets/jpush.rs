//! Whatever comes back in the name of JPush is judged, and only 200 is an acceptance.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(data, edge_worker::providers::jpush::judged, |_| false));
