//! Names, settings and a mesh for the tests of permissions.

use std::time::Duration;

use shared::id::{AppId, Region};
use testbed::{
    nats,
    peal::{Peal, Plan},
};

/// Longer than any step of these tests takes on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) fn region(name: &str) -> Region {
    name.parse().unwrap()
}

pub(crate) fn app(name: &str) -> AppId {
    name.parse().unwrap()
}

pub(crate) fn settings() -> nats::Settings {
    nats::Settings::new(nats::from_env().unwrap())
}

/// A mesh of two regions with one worker each.
pub(crate) fn plan() -> Plan {
    Plan {
        workers: 1,
        sample_ratio: 0.0,
        ..Plan::new(env!("CARGO_BIN_EXE_testbed").into(), nats::from_env().unwrap())
    }
}

/// A mesh that has its streams, so that an act that is not refused would take effect.
pub(crate) async fn mesh() -> Peal {
    Peal::start(plan()).await.unwrap()
}
