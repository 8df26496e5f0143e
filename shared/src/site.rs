//! Regions, as the mesh knows them.

use serde::{Deserialize, Serialize};

use crate::id::Region;

/// One region, as kept in the `config` bucket under its name. Whoever reads the bucket knows the whole mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Site {
    /// URLs of its NATS servers, comma-separated, for the workers of other regions that help it. Without them nobody helps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nats: Option<String>,
    /// The regions whose workers take its work when its own cannot, the first that is there before the next.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub helpers: Vec<Region>,
}
