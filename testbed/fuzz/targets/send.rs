//! Whatever a caller sends is refused or becomes jobs, and a worker can read every one of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::nats::envelope;

fuzz_target!(|data: &[u8]| {
    for (recipient, body) in gateway::jobs(data).into_iter().flatten() {
        let (headers, now) = (async_nats::HeaderMap::new(), jiff::Timestamp::UNIX_EPOCH);
        let here = "eu".parse().expect("is a valid name");
        let job =
            envelope::open("notify.push.eu.normal.shop", &headers, &body, now, &here).expect("the worker reads it");
        assert_eq!(job.body.recipient, recipient);
    }
});
