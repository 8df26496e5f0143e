//! What `peal bounce` reads from the mails that mail servers send back. The reference in the mail is the only proof: whoever has it
//! received the mail, or carried it.

use jiff::Timestamp;
use serde::Deserialize;
use shared::{
    feedback::{Kind, Report},
    invalid::Invalid,
};

use super::{Callback, Refused, json};

/// One report, as `peal bounce` posts it.
#[derive(Debug, Deserialize)]
struct Bounce {
    /// The reference that the mail carried.
    reference: String,
    /// `failed`, `delivered` or `relayed` (RFC 3464 §2.3.3), or `abuse` (RFC 5965).
    action: String,
    /// The enhanced status code (RFC 3463).
    #[serde(default)]
    status: Option<String>,
    /// When it happened.
    #[serde(default)]
    at: Option<Timestamp>,
}

/// Reads a callback: a list of reports.
pub(super) fn read(callback: &Callback<'_>) -> Result<Vec<Report>, Refused> {
    let bounces: Vec<Bounce> = json(callback.body)?;
    bounces.into_iter().map(|bounce| report(callback, bounce)).collect()
}

fn report(callback: &Callback<'_>, bounce: Bounce) -> Result<Report, Refused> {
    let status = bounce.status.as_deref().map(status).transpose()?;
    let (kind, hard) = match bounce.action.as_str() {
        "failed" => (Kind::Bounced, Some(status.is_some_and(is_hard))),
        "delivered" => (Kind::Confirmed, None),
        "abuse" => (Kind::Complained, None),
        _ => {
            let invalid = Invalid::new("action", "must be one of: failed, delivered, abuse");
            return Err(Refused::Malformed(invalid));
        }
    };
    Ok(Report {
        // A mail has one end, but servers on its way may report another each.
        event: bounce.status.clone().unwrap_or_default(),
        reference: bounce.reference,
        kind,
        at: bounce.at.map_or(callback.now, |at| callback.past(at)),
        reason: bounce.status,
        hard,
    })
}

fn status(text: &str) -> Result<[u16; 3], Refused> {
    let mut parts = text.split('.').map(str::parse);
    let mut next = || parts.next().and_then(Result::ok);
    match [next(), next(), next()] {
        [Some(class @ (2 | 4 | 5)), Some(subject), Some(detail)] if text.len() <= 9 => Ok([class, subject, detail]),
        _ => {
            let invalid = Invalid::new("status", "must be an enhanced status code, such as 5.1.1");
            Err(Refused::Malformed(invalid))
        }
    }
}

/// Whether the mailbox will never take mail (RFC 3463): there is none (5.1.1, 5.1.10 of RFC 7505), or no such domain (5.1.2), it
/// cannot be one (5.1.3), has moved without a trace (5.1.6) or is disabled (5.2.1). Everything else may be the fault of the sender
/// or of the mail, or may pass.
fn is_hard(status: [u16; 3]) -> bool {
    matches!(status, [5, 1, 1 | 2 | 3 | 6 | 10] | [5, 2, 1])
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::{super::testing::callback, *};

    fn read_one(action: &str, status: Option<&str>) -> Result<(Kind, Option<bool>), Refused> {
        let body = json!([{ "reference": "abc", "action": action, "status": status, "future": 1 }]).to_string();
        callback(&[], body.as_bytes(), read).map(|mut reports| {
            let report = reports.pop().unwrap();
            (report.kind, report.hard)
        })
    }

    #[test]
    fn only_a_mailbox_that_will_never_take_mail_bounces_hard() {
        for hard in ["5.1.1", "5.1.2", "5.1.3", "5.1.6", "5.1.10", "5.2.1"] {
            assert_eq!(
                read_one("failed", Some(hard)).unwrap(),
                (Kind::Bounced, Some(true)),
                "{hard}"
            );
        }
        for soft in [
            "5.0.0", "5.1.0", "5.1.8", "5.2.2", "5.3.4", "5.4.4", "5.7.1", "5.7.26", "4.1.1", "4.4.7",
        ] {
            assert_eq!(
                read_one("failed", Some(soft)).unwrap(),
                (Kind::Bounced, Some(false)),
                "{soft}"
            );
        }
        assert_eq!(read_one("failed", None).unwrap(), (Kind::Bounced, Some(false)));
        assert_eq!(read_one("delivered", Some("2.0.0")).unwrap(), (Kind::Confirmed, None));
        assert_eq!(read_one("abuse", None).unwrap(), (Kind::Complained, None));
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        for (field, action, status) in [
            ("action", "vanished", None),
            ("status", "failed", Some("5.1")),
            ("status", "failed", Some("3.1.1")),
            ("status", "failed", Some("5.1.1 ann@example.com")),
        ] {
            let Err(Refused::Malformed(invalid)) = read_one(action, status) else {
                panic!("{action} {status:?}");
            };
            assert_eq!(invalid.field, field);
        }
    }
}
