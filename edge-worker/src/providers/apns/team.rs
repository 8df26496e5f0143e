//! One key of one team: its provider token and its connections.

use std::sync::Arc;

use shared::provider::apns::Environment;

use super::token::ProviderToken;
use crate::providers::transport::http2::Pool;

/// Shared by all apps with the same team and key: Apple binds a connection to the team and key of its first push, and
/// limits how often a team changes its token.
#[derive(Debug)]
pub(super) struct Team {
    pub(super) token: ProviderToken,
    production: Arc<Pool>,
    sandbox: Arc<Pool>,
}

impl Team {
    pub(super) fn new(token: ProviderToken, production: Arc<Pool>, sandbox: Arc<Pool>) -> Self {
        Self {
            token,
            production,
            sandbox,
        }
    }

    /// The connections to `environment`.
    pub(super) fn pool(&self, environment: Environment) -> &Arc<Pool> {
        match environment {
            Environment::Production => &self.production,
            Environment::Sandbox => &self.sandbox,
        }
    }
}
