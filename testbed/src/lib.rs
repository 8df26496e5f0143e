//! What Peal is tried with: real nats-servers, provider simulators, a whole mesh in processes, the demo, the benchmark
//! and the end-to-end tests. Nothing of it is shipped.

pub mod audit;
pub mod bench;
pub mod child;
pub mod demo;
pub mod faults;
pub mod nats;
pub mod network;
pub mod peal;
pub mod process;
pub mod providers;
pub mod push;
pub mod simulate;
pub mod sink;
