//! Whatever a caller sends is refused or becomes jobs, and a worker can read every one of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::{channel::Channel, id_key::IdKey, nats::envelope};

fuzz_target!(|data: &[u8]| {
    for (recipient, body) in gateway::jobs(data).into_iter().flatten() {
        let (headers, now) = (async_nats::HeaderMap::new(), jiff::Timestamp::UNIX_EPOCH);
        let (here, ids) = ("eu".parse().expect("is a valid name"), IdKey::unkeyed());
        // It goes to the lane of its channel, and workers of no other would read it.
        let lanes = Channel::ALL
            .iter()
            .map(|channel| format!("notify.{channel}.eu.normal.shop"));
        let mut read = lanes.filter_map(|lane| envelope::open(&lane, &headers, &body, now, &here, &ids).ok());
        let job = read.next().expect("a worker reads it");
        assert_eq!((job.recipient(), read.next()), (Some(&recipient), None));
    }
});
