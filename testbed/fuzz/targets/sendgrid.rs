//! Whatever comes back in the name of a provider is judged, and only 200 and 202 are acceptances.
#![no_main]

mod answer;

use edge_worker::providers::sendgrid::judged;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(data, |status, headers, now, body| {
    judged(if status == 202 { 203 } else { status }, headers, now, body)
}));
