//! Whatever is in the stream of receipts is read or refused; what is read can be written and is read as the same.
#![no_main]

use libfuzzer_sys::fuzz_target;
use shared::receipt::Batch;

fuzz_target!(|data: &[u8]| {
    let Ok(batch) = serde_json::from_slice::<Batch>(data) else {
        return;
    };
    let written = serde_json::to_vec(&batch).expect("receipts always serialize");
    assert_eq!(serde_json::from_slice::<Batch>(&written).expect("is a batch"), batch);
});
