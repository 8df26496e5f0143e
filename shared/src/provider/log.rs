//! The provider that sends nothing: for new apps, dry runs and tests of a whole mesh.

use serde::{Deserialize, Serialize};

/// It needs nothing to be known; an app has it or not.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {}
