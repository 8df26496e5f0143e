//! Whatever comes back in the name of Huawei is judged; only its own code of success is an acceptance, whatever the status is.
#![no_main]

mod answer;

libfuzzer_sys::fuzz_target!(|data: &[u8]| answer::check(
    data,
    edge_worker::providers::hms::judged,
    |_| data.windows(8).any(|word| word == b"80000000")
));
