//! Whatever comes back in the name of a provider is judged, and is never an acceptance.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(data, edge_worker::providers::mailchimp::judged, |_| false));
