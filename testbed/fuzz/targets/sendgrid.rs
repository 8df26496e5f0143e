//! Whatever comes back in the name of a provider is judged, and only 200 and 202 are acceptances.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(data, edge_worker::providers::sendgrid::judged, |status| status == 202));
