//! One team's key: its provider token and its connections.

use std::sync::Arc;

use aws_lc_rs::digest;
use shared::recipient::Environment;

use super::{pool::Pool, token::ProviderToken};
