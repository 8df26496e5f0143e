//! Whatever comes back in the name of Amazon SNS is judged, and only 2xx is an acceptance.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(
    data,
    edge_worker::providers::sns::judged,
    |status| status < 300
));
