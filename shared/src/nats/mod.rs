//! Everything that knows NATS: subjects, streams, and how Peal's nouns travel on them.

pub mod accounts;
pub mod audit;
pub mod batch;
pub mod broadcast;
pub mod cancelled;
pub mod config;
pub mod connect;
pub mod current;
pub mod defer;
pub mod direct;
pub mod directory;
pub mod envelope;
pub mod facts;
pub mod follow;
pub mod idempotency;
pub mod leader;
pub mod nkey;
pub mod publish;
pub mod quota;
pub mod refusal;
pub mod roles;
pub mod subject;
pub mod time;
pub mod topology;
pub mod version;
