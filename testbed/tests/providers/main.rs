//! The edge worker's providers against the simulators: real TLS, real HTTP/2, real tokens.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up has failed")]

mod rig;
mod smtp;

mod apns;
mod connections;
mod credentials;
mod endpoints;
mod fcm;
mod hms;
mod jpush;
mod mail_services;
mod sms;
mod sns;
mod web_push;
mod webhook;
