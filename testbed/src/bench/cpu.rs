//! CPU time of each process.

use std::time::Duration;

use serde::Serialize;

use super::figures::float;
use crate::process::cpu_of;

/// CPU time of all processes: since their start, or between two readings.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Cpu {
    pub(super) gateway: Duration,
    pub(super) worker: Duration,
    pub(super) nats: Duration,
    pub(super) hub: Duration,
    pub(super) simulator: Duration,
    pub(super) load: Duration,
}

/// CPU time of all processes, microseconds a notification.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct CpuPerNotification {
    pub(super) gateway: f64,
    pub(super) worker: f64,
    pub(super) nats: f64,
    pub(super) hub: f64,
    pub(super) simulator: f64,
    pub(super) load: f64,
}

/// The processes whose CPU time is measured. The simulator runs in this process.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processes {
    pub(super) gateway: Option<u32>,
    pub(super) worker: Option<u32>,
    pub(super) nats: Option<u32>,
    pub(super) hub: Option<u32>,
}

impl Processes {
    /// The CPU time since they started. The load process reports its own, which is zero here.
    pub(super) fn cpu(&self) -> Cpu {
        let of = |id: Option<u32>| id.map(cpu_of).unwrap_or_default();
        Cpu {
            gateway: of(self.gateway),
            worker: of(self.worker),
            nats: of(self.nats),
            hub: of(self.hub),
            simulator: cpu_of(std::process::id()),
            load: Duration::ZERO,
        }
    }
}

impl Cpu {
    /// The CPU time used since `before`.
    pub(super) fn since(self, before: Self) -> Self {
        Self {
            gateway: self.gateway.saturating_sub(before.gateway),
            worker: self.worker.saturating_sub(before.worker),
            nats: self.nats.saturating_sub(before.nats),
            hub: self.hub.saturating_sub(before.hub),
            simulator: self.simulator.saturating_sub(before.simulator),
            load: self.load.saturating_sub(before.load),
        }
    }

    /// The CPU time divided by `count` notifications.
    pub(super) fn per_notification(self, count: u64) -> CpuPerNotification {
        let of = |used: Duration| used.as_secs_f64() * 1e6 / float(count.max(1));
        CpuPerNotification {
            gateway: of(self.gateway),
            worker: of(self.worker),
            nats: of(self.nats),
            hub: of(self.hub),
            simulator: of(self.simulator),
            load: of(self.load),
        }
    }
}
