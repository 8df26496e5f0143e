//! Regions, as the `config` bucket describes them.

use serde::{Deserialize, Serialize};

use crate::id::Region;

/// One region, as kept in the `config` bucket under its name. The entries together describe the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// URLs of its NATS servers, comma-separated, for helper workers of other
    /// regions. If absent, no other region can help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<String>,
    /// The regions whose workers take over its work when its own cannot, in order of preference.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub helpers: Vec<Region>,
}
