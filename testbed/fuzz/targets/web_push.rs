//! Whatever comes back in the name of a push service is judged, and only 2xx is an acceptance.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(
    data,
    edge_worker::providers::web_push::judged,
    |status| status < 300
));
