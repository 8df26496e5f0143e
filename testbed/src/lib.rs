//! What Peal is tested with: real nats-servers, provider simulators, a whole mesh of processes, the demo, the fault
//! scenarios, the benchmark and the end-to-end tests. None of it is shipped.

mod app;
pub mod audit;
pub mod bench;
pub mod child;
pub mod deliver;
pub mod demo;
pub mod faults;
pub mod links;
pub mod mail;
pub mod nats;
pub mod network;
pub mod peal;
pub mod port;
pub mod post;
pub mod process;
pub mod providers;
pub mod push;
pub mod simulate;
pub mod sink;
pub mod web_push;
