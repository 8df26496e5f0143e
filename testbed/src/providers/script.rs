//! Scripted answers: they define how a simulator misbehaves.
//!
//! A [`Script`] is a list of [`Rule`]s; the first rule that matches a request and is not used up decides. Only
//! requests that the provider would have accepted are matched, so that a script never hides a fault of the client. The same
//! vocabulary serves every provider; reasons are the provider's own (`Unregistered` at Apple, `UNREGISTERED` at
//! Google). As JSON:
//!
//! ```json
//! {"seed": 7, "rules": [
//!   {"token": "aa11", "times": 2, "answer": {"reason": "ServiceUnavailable", "retry_after": {"seconds": 3}}},
//!   {"prefix": "dead", "answer": {"reason": "Unregistered", "timestamp_ms": 1700000000000}},
//!   {"rate": 0.01, "delay_ms": 250, "answer": {"act": {"do": "reset", "code": "refused_stream"}}}
//! ]}
//! ```

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use http::StatusCode;
use serde::{Deserialize, Serialize};

/// An ordered list of rules, and the seed of those that fire by rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Script {
    /// Seeds the rules that have a `rate`: with the same seed, the same requests in a sequence are matched.
    #[serde(default)]
    pub seed: u64,
    /// The rules; the first that matches decides.
    #[serde(default)]
    pub rules: Vec<Rule>,
}

/// The conditions of a scripted answer, and the answer. All conditions that are set must hold.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Matches exactly this target: a device token; at FCM also a topic, condition or installation id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Matches targets that begin with this text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The share of matching requests to which the rule applies, 0.0 to 1.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// The number of requests to which the rule applies before it is used up; absent means forever.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u64>,
    /// The delay of the answer, milliseconds.
    #[serde(default)]
    pub delay_ms: u64,
    /// The answer; by default the provider accepts as usual.
    #[serde(default)]
    pub answer: Answer,
}

/// A provider's answer, and what it does to the connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answer {
    /// The provider's error; absent means success.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The HTTP status; absent means the status of the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// A `Retry-After` header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after: Option<RetryAfter>,
    /// The `timestamp` of a 410 from APNs, milliseconds since the epoch; absent means now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timestamp_ms: Option<i64>,
    /// Whether the push counts as delivered; absent means that it does if the answer is success. `true` with an error is a
    /// push that arrives although the answer is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delivered: Option<bool>,
    /// The body to send instead of the provider's, verbatim.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// What happens to the stream or the connection.
    #[serde(default)]
    pub act: Act,
}

/// `Retry-After` in its two forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryAfter {
    /// A number of seconds.
    Seconds(u64),
    /// An HTTP date this many seconds ahead.
    DateIn(u64),
}

/// What happens to the stream or the connection.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Act {
    /// The answer is sent.
    #[default]
    Respond,
    /// The stream is reset. Over HTTP/1.1 the connection closes.
    Reset {
        /// The error code.
        code: ResetCode,
    },
    /// GOAWAY is sent while other streams are open. Over HTTP/1.1 the answer carries `connection: close`.
    Goaway {
        /// `true`: the request is answered and the last stream id includes it. `false`: the last stream id is as low
        /// as it can be without denying an answer already given, and the request is not answered.
        #[serde(default)]
        processed: bool,
        /// The `reason` in the frame's debug data, as Apple sends it.
        #[serde(default = "shutdown")]
        reason: String,
    },
    /// The connection closes without notice: no TLS close, no GOAWAY.
    Close,
    /// The stream is never answered; the connection lives on.
    BlackHole,
    /// The connection stays open but is never read or written again, as when a NAT device loses its entry.
    Freeze,
}

/// The error codes a stream can be reset with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ResetCode {
    /// The request was certainly not processed.
    RefusedStream,
    /// The server failed.
    InternalError,
    /// The server gave up on the stream.
    Cancel,
    /// The client sends too much.
    EnhanceYourCalm,
}

fn shutdown() -> String {
    "Shutdown".to_owned()
}

impl Rule {
    /// A rule for exactly this target.
    pub fn token(token: &str) -> Self {
        Self {
            token: Some(token.to_owned()),
            ..Self::default()
        }
    }

    /// A rule for every target that begins with `prefix`.
    pub fn prefix(prefix: &str) -> Self {
        Self {
            prefix: Some(prefix.to_owned()),
            ..Self::default()
        }
    }

    /// A rule for this share of all requests, 0.0 to 1.0.
    pub fn rate(rate: f64) -> Self {
        Self {
            rate: Some(rate),
            ..Self::default()
        }
    }

    /// A rule for every request.
    pub fn always() -> Self {
        Self::default()
    }

    /// Restricts the rule to this share of what it matches, 0.0 to 1.0.
    #[must_use]
    pub fn at_rate(mut self, rate: f64) -> Self {
        self.rate = Some(rate);
        self
    }

    /// Limits the rule to this number of requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Delays the answer (whole milliseconds).
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Self {
        self.delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Sets the answer.
    #[must_use]
    pub fn answer(mut self, answer: Answer) -> Self {
        self.answer = answer;
        self
    }
}

impl Answer {
    /// Success, as if no rule had matched; useful with a delay.
    pub fn accept() -> Self {
        Self::default()
    }

    /// The provider's error with this reason, and the reason's status.
    pub fn reason(reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            ..Self::default()
        }
    }

    /// The stream is reset.
    pub fn reset(code: ResetCode) -> Self {
        Self::act(Act::Reset { code })
    }

    /// GOAWAY; see [`Act::Goaway`] for `processed`.
    pub fn goaway(processed: bool) -> Self {
        Self::act(Act::Goaway {
            processed,
            reason: shutdown(),
        })
    }

    /// The connection closes without notice.
    pub fn close() -> Self {
        Self::act(Act::Close)
    }

    /// The stream is never answered.
    pub fn black_hole() -> Self {
        Self::act(Act::BlackHole)
    }

    /// The connection is never read or written again.
    pub fn freeze() -> Self {
        Self::act(Act::Freeze)
    }

    fn act(act: Act) -> Self {
        Self { act, ..Self::default() }
    }

    /// Sets the HTTP status, instead of the reason's own.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = Some(status);
        self
    }

    /// Adds `Retry-After`.
    #[must_use]
    pub fn retry_after(mut self, retry_after: RetryAfter) -> Self {
        self.retry_after = Some(retry_after);
        self
    }

    /// Sets since when the token has been invalid, milliseconds since the epoch.
    #[must_use]
    pub fn timestamp_ms(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }

    /// Sets whether the push reaches the device, independently of the answer.
    #[must_use]
    pub fn delivered(mut self, delivered: bool) -> Self {
        self.delivered = Some(delivered);
        self
    }

    /// Sends this body, verbatim.
    #[must_use]
    pub fn body(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    /// The HTTP status: the scripted one, or else that of the reason, or else 200.
    pub(crate) fn status_or(&self, of_reason: Option<StatusCode>) -> StatusCode {
        let scripted = self.status.and_then(|status| StatusCode::from_u16(status).ok());
        scripted.or(of_reason).unwrap_or(StatusCode::OK)
    }

    /// Whether the push reaches the device.
    pub(crate) fn delivers(&self) -> bool {
        self.delivered.unwrap_or(
            self.reason.is_none()
                && self.status.is_none_or(|status| status < 300)
                && matches!(self.act, Act::Respond | Act::Goaway { processed: true, .. }),
        )
    }
}

/// The answer that a rule gives to one request, and its delay.
#[derive(Clone, Debug)]
pub(crate) struct Ruling {
    pub(crate) answer: Arc<Answer>,
    pub(crate) delay_ms: u64,
}

/// The script of a running simulator; it can be changed at any time.
#[derive(Debug)]
pub struct ScriptHandle {
    compiled: RwLock<Arc<Compiled>>,
    empty: AtomicBool,
    is_reason: fn(&str) -> bool,
}

#[derive(Debug, Default)]
struct Compiled {
    script: Script,
    states: Vec<RuleState>,
    /// The rules for exactly one target, by target, so that a script for many tokens costs one look-up.
    exact: HashMap<String, Vec<usize>>,
    others: Vec<usize>,
}

#[derive(Debug)]
struct RuleState {
    answer: Arc<Answer>,
    matched: AtomicU64,
    used: AtomicU64,
}

impl ScriptHandle {
    /// `is_reason` returns whether a reason is one of the provider's.
    pub(crate) fn new(script: Script, is_reason: fn(&str) -> bool) -> anyhow::Result<Self> {
        let handle = Self {
            compiled: RwLock::default(),
            empty: AtomicBool::new(true),
            is_reason,
        };
        handle.set(script)?;
        Ok(handle)
    }

    /// Replaces the script, and resets all counts.
    ///
    /// # Errors
    /// When a reason is not one of the provider's and has no status, or a status is not valid.
    pub fn set(&self, script: Script) -> anyhow::Result<()> {
        for rule in &script.rules {
            let answer = &rule.answer;
            if let Some(reason) = &answer.reason {
                anyhow::ensure!(
                    answer.status.is_some() || (self.is_reason)(reason),
                    "{reason} is not a reason of this provider: give a status with it"
                );
            }
            if let Some(status) = answer.status {
                StatusCode::from_u16(status)?;
            }
        }
        self.empty.store(script.rules.is_empty(), Ordering::Release);
        *self.compiled.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(compile(script));
        Ok(())
    }

    /// Appends a rule, and resets the counts of all rules.
    ///
    /// # Errors
    /// As [`Self::set`].
    pub fn add(&self, rule: Rule) -> anyhow::Result<()> {
        let mut script = self.get();
        script.rules.push(rule);
        self.set(script)
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.empty.store(true, Ordering::Release);
        *self.compiled.write().unwrap_or_else(PoisonError::into_inner) = Arc::default();
    }

    /// The script in force.
    pub fn get(&self) -> Script {
        self.current().script.clone()
    }

    fn current(&self) -> Arc<Compiled> {
        Arc::clone(&self.compiled.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// The ruling on a request to this target, if a rule matches. Counts as a use of the rule.
    pub(crate) fn rule(&self, target: &str) -> Option<Ruling> {
        if self.empty.load(Ordering::Acquire) {
            return None;
        }
        let compiled = self.current();
        let exact = compiled.exact.get(target).into_iter().flatten();
        let mut candidates: Vec<usize> = exact.chain(&compiled.others).copied().collect();
        candidates.sort_unstable();
        candidates.into_iter().find_map(|index| compiled.apply(index, target))
    }
}

impl Compiled {
    fn apply(&self, index: usize, target: &str) -> Option<Ruling> {
        let (rule, state) = (&self.script.rules[index], &self.states[index]);
        if rule
            .prefix
            .as_ref()
            .is_some_and(|prefix| !target.starts_with(prefix.as_str()))
        {
            return None;
        }
        if let Some(rate) = rule.rate {
            let index = u64::try_from(index).unwrap_or(u64::MAX);
            let nth = state.matched.fetch_add(1, Ordering::Relaxed);
            if unit_interval(self.script.seed ^ (index << 48) ^ nth) >= rate {
                return None;
            }
        }
        if let Some(times) = rule.times {
            let used = state.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                (used < times).then_some(used + 1)
            });
            used.ok()?;
        }
        Some(Ruling {
            answer: Arc::clone(&state.answer),
            delay_ms: rule.delay_ms,
        })
    }
}

fn compile(script: Script) -> Compiled {
    let mut compiled = Compiled::default();
    for (index, rule) in script.rules.iter().enumerate() {
        match &rule.token {
            Some(token) => compiled.exact.entry(token.clone()).or_default().push(index),
            None => compiled.others.push(index),
        }
        compiled.states.push(RuleState {
            answer: Arc::new(rule.answer.clone()),
            matched: AtomicU64::new(0),
            used: AtomicU64::new(0),
        });
    }
    compiled.script = script;
    compiled
}

/// A number from 0 up to 1, decided by `x` alone (the finalizer of `SplitMix64`).
#[expect(clippy::cast_precision_loss, reason = "53 bits are exactly what an f64 holds")]
fn unit_interval(x: u64) -> f64 {
    let mut z = x.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    (z >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle(rules: Vec<Rule>) -> ScriptHandle {
        ScriptHandle::new(Script { seed: 1, rules }, |_| true).unwrap()
    }

    #[test]
    fn a_rule_is_used_up_and_the_next_one_follows() {
        let script = handle(vec![
            Rule::token("a").times(2).answer(Answer::reason("first")),
            Rule::prefix("a").times(1).answer(Answer::reason("second")),
        ]);
        let reasons: Vec<_> = (0..4)
            .map(|_| script.rule("a").and_then(|ruling| ruling.answer.reason.clone()))
            .collect();
        assert_eq!(
            reasons,
            [Some("first".into()), Some("first".into()), Some("second".into()), None]
        );
        assert!(script.rule("b").is_none());
    }

    #[test]
    fn a_rate_is_met_and_the_same_seed_matches_the_same_requests() {
        let fired = |script: &ScriptHandle| -> Vec<bool> { (0..10_000).map(|_| script.rule("t").is_some()).collect() };
        let first = fired(&handle(vec![Rule::rate(0.1)]));
        let hits = first.iter().filter(|hit| **hit).count();
        assert!((900..1100).contains(&hits), "{hits} of 10000");
        assert_eq!(first, fired(&handle(vec![Rule::rate(0.1)])));
    }

    #[test]
    fn an_unknown_reason_needs_a_status() {
        let script = ScriptHandle::new(Script::default(), |reason| reason == "Known").unwrap();
        assert!(script.add(Rule::always().answer(Answer::reason("Known"))).is_ok());
        assert!(script.add(Rule::always().answer(Answer::reason("New"))).is_err());
        assert!(
            script
                .add(Rule::always().answer(Answer::reason("New").status(418)))
                .is_ok()
        );
    }

    #[test]
    fn the_documented_json_is_valid() {
        let text = r#"{"seed": 7, "rules": [
          {"token": "aa11", "times": 2, "answer": {"reason": "ServiceUnavailable", "retry_after": {"seconds": 3}}},
          {"rate": 0.01, "delay_ms": 250, "answer": {"act": {"do": "reset", "code": "refused_stream"}}}]}"#;
        let script: Script = serde_json::from_str(text).unwrap();
        assert_eq!(script.rules[1].answer, Answer::reset(ResetCode::RefusedStream));
        assert!(serde_json::from_str::<Script>(r#"{"ruels": []}"#).is_err());
    }
}
