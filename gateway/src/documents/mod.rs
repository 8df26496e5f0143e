//! Documents of the contract, written from the code.

pub mod asyncapi;
