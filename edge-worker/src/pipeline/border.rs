//! The border between regions: what comes from another region needs a proof that a gateway of this mesh accepted it.

use jiff::Timestamp;
use shared::proof::{Claims, Proof};

use super::context::Pipeline;
use crate::pulled::Pulled;

/// The reason in the receipt of work that came from another region without a proof.
pub(super) const UNPROVEN: &str = "unproven";

impl Pipeline {
    /// Whether this work came from another region and must bring a proof. The key of another region's gateway alone can
    /// publish work without one.
    pub(super) fn needs_proof(&self, pulled: &Pulled) -> bool {
        self.border.guards(pulled.headers(), pulled.stored_at)
    }

    /// Whether `proof` proves that a gateway of this mesh accepted this work.
    pub(super) fn is_proven(&self, proof: Option<&Proof>, claims: &Claims<'_>, accepted_at: Timestamp) -> bool {
        proof.is_some_and(|proof| self.border.prover().proves(proof, claims, accepted_at))
    }

    /// The proof of the job of a slice's member, which has a body of its own; `None` for all other work, which brought its
    /// proof, and if the slice has none.
    pub(super) fn proof_of_member(&self, pulled: &Pulled, payload: &[u8]) -> Option<Proof> {
        let job = pulled.proven_member()?;
        Some(self.border.prover().work(&job.claims(payload), job.accepted_at))
    }
}
