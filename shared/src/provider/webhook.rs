//! Webhooks: there is no provider between a worker and the receiver.

use serde::{Deserialize, Serialize};

/// It needs nothing to be known: receivers have secrets of their own. An app has it or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {}
