//! The schema of a send request, from Google's API description (`fcm.v1.json`, 2026).

use serde_json::{Map, Value};

use super::error::Violation;

/// The type of a field.
enum Kind {
    Text,
    Bool,
    Int,
    Number,
    Texts,
    /// A map from string to string.
    TextMap,
    /// Any object.
    Struct,
    /// One of these names, in any case, or a number.
    Choice(&'static [&'static str]),
    Object(&'static [Field]),
}

type Field = (&'static str, Kind);

use Kind::{Bool, Choice, Int, Number, Object, Struct, Text, TextMap, Texts};

static REQUEST: &[Field] = &[("message", Object(MESSAGE)), ("validateOnly", Bool)];

static MESSAGE: &[Field] = &[
    ("name", Text),
    ("data", TextMap),
    ("notification", Object(NOTIFICATION)),
    ("android", Object(ANDROID)),
    ("androidV2", Object(ANDROID_V2)),
    ("webpush", Object(WEBPUSH)),
    ("apns", Object(APNS)),
    ("fcmOptions", Object(OPTIONS)),
    ("fid", Text),
    ("token", Text),
    ("topic", Text),
    ("condition", Text),
];

static NOTIFICATION: &[Field] = &[("title", Text), ("body", Text), ("image", Text)];

static OPTIONS: &[Field] = &[("analyticsLabel", Text)];

static ANDROID: &[Field] = &[
    ("collapseKey", Text),
    ("priority", Choice(&["NORMAL", "HIGH"])),
    ("ttl", Text),
    ("restrictedPackageName", Text),
    ("data", TextMap),
    ("notification", Object(ANDROID_NOTIFICATION)),
    ("fcmOptions", Object(OPTIONS)),
    ("directBootOk", Bool),
    ("bandwidthConstrainedOk", Bool),
    ("restrictedSatelliteOk", Bool),
];

static ANDROID_V2: &[Field] = &[
    ("backgroundSync", Object(&[])),
    ("bandwidthConstrainedOk", Bool),
    ("collapseKey", Text),
    ("data", TextMap),
    ("directBootOk", Bool),
    ("fcmOptions", Object(OPTIONS)),
    ("remoteNotification", Object(REMOTE_NOTIFICATION)),
    ("restrictedPackageName", Text),
    ("restrictedSatelliteOk", Bool),
    ("ttl", Text),
];

static REMOTE_NOTIFICATION: &[Field] = &[
    ("mutableContent", Bool),
    ("useAsV1DataMessage", Bool),
    ("notification", Object(ANDROID_NOTIFICATION)),
];

/// In version 2, `id` is added and three fields are missing; the difference is not checked.
static ANDROID_NOTIFICATION: &[Field] = &[
    ("id", Int),
    ("title", Text),
    ("body", Text),
    ("icon", Text),
    ("color", Text),
    ("sound", Text),
    ("tag", Text),
    ("clickAction", Text),
    ("bodyLocKey", Text),
    ("bodyLocArgs", Texts),
    ("titleLocKey", Text),
    ("titleLocArgs", Texts),
    ("channelId", Text),
    ("ticker", Text),
    ("sticky", Bool),
    ("eventTime", Text),
    ("localOnly", Bool),
    ("notificationPriority", Choice(NOTIFICATION_PRIORITY)),
    ("defaultSound", Bool),
    ("defaultVibrateTimings", Bool),
    ("defaultLightSettings", Bool),
    ("vibrateTimings", Texts),
    (
        "visibility",
        Choice(&["VISIBILITY_UNSPECIFIED", "PRIVATE", "PUBLIC", "SECRET"]),
    ),
    ("notificationCount", Int),
    ("lightSettings", Object(LIGHT)),
    ("image", Text),
    ("bypassProxyNotification", Bool),
    (
        "proxy",
        Choice(&["PROXY_UNSPECIFIED", "ALLOW", "DENY", "IF_PRIORITY_LOWERED"]),
    ),
];

static NOTIFICATION_PRIORITY: &[&str] = &[
    "PRIORITY_UNSPECIFIED",
    "PRIORITY_MIN",
    "PRIORITY_LOW",
    "PRIORITY_DEFAULT",
    "PRIORITY_HIGH",
    "PRIORITY_MAX",
];

static LIGHT: &[Field] = &[
    (
        "color",
        Object(&[("red", Number), ("green", Number), ("blue", Number), ("alpha", Number)]),
    ),
    ("lightOnDuration", Text),
    ("lightOffDuration", Text),
];

static WEBPUSH: &[Field] = &[
    ("headers", TextMap),
    ("data", TextMap),
    ("notification", Struct),
    ("fcmOptions", Object(&[("link", Text), ("analyticsLabel", Text)])),
];

static APNS: &[Field] = &[
    ("headers", TextMap),
    ("payload", Struct),
    ("fcmOptions", Object(&[("analyticsLabel", Text), ("image", Text)])),
    ("liveActivityToken", Text),
];

/// The fields that can name the target of a message. Exactly one must be set.
pub(crate) const TARGETS: [&str; 4] = ["fid", "token", "topic", "condition"];

/// Checks a request against the schema. Returns its fields in `camelCase` (`snake_case` is accepted too) and without
/// nulls, or all violations.
pub(crate) fn read(request: Value) -> Result<Map<String, Value>, Vec<Violation>> {
    let mut violations = Vec::new();
    let Value::Object(fields) = request else {
        return Err(vec![Violation::new(
            "",
            "Invalid JSON payload received. Root element must be a message.",
        )]);
    };
    let fields = object(fields, REQUEST, "", &mut violations);
    if let Some(Value::Object(message)) = fields.get("message") {
        let mut set = TARGETS.iter().filter(|target| message.contains_key(**target));
        set.next();
        for again in set {
            violations.push(Violation::new(
                "message",
                format!(
                    "Invalid value at 'message' (oneof), oneof field 'target' is already set. Cannot set '{again}'"
                ),
            ));
        }
        if message.contains_key("android") && message.contains_key("androidV2") {
            violations.push(Violation::new(
                "message",
                "Only one of android and android_v2 may be set.",
            ));
        }
    }
    if violations.is_empty() {
        Ok(fields)
    } else {
        Err(violations)
    }
}

fn object(
    fields: Map<String, Value>,
    known: &'static [Field],
    path: &str,
    violations: &mut Vec<Violation>,
) -> Map<String, Value> {
    let mut read = Map::new();
    for (name, value) in fields {
        let camel = camel(&name);
        let Some((_, kind)) = known.iter().find(|(field, _)| *field == camel) else {
            let place = if path.is_empty() {
                String::new()
            } else {
                format!(" at '{path}'")
            };
            violations.push(Violation::new(
                path,
                format!("Invalid JSON payload received. Unknown name \"{name}\"{place}: Cannot find field."),
            ));
            continue;
        };
        if value.is_null() {
            continue;
        }
        let at = if path.is_empty() {
            name
        } else {
            format!("{path}.{name}")
        };
        if let Some(value) = field(value, kind, &at, violations) {
            read.insert(camel, value);
        }
    }
    read
}

fn field(value: Value, kind: &'static Kind, at: &str, violations: &mut Vec<Violation>) -> Option<Value> {
    let good = match (kind, &value) {
        (Object(known), Value::Object(_)) => {
            let Value::Object(fields) = value else { return None };
            return Some(Value::Object(object(fields, known, at, violations)));
        }
        (Text, Value::String(_)) | (Bool, Value::Bool(_)) | (Struct, Value::Object(_)) => true,
        (Int, value) => value.is_i64() || value.as_str().is_some_and(|text| text.parse::<i64>().is_ok()),
        (Number, value) => value.is_number(),
        (Texts, Value::Array(items)) => items.iter().all(Value::is_string),
        (TextMap, Value::Object(entries)) => {
            for (nth, (_, value)) in entries.iter().enumerate() {
                if !value.is_string() {
                    violations.push(mismatch(&format!("{at}[{nth}].value"), &Text, value));
                }
            }
            true
        }
        (Choice(names), Value::String(name)) => names.iter().any(|known| known.eq_ignore_ascii_case(name)),
        (Choice(names), Value::Number(number)) => number.as_u64().is_some_and(|number| number <= names.len() as u64),
        _ => false,
    };
    if !good {
        violations.push(mismatch(at, kind, &value));
    }
    good.then_some(value)
}

fn mismatch(at: &str, kind: &Kind, value: &Value) -> Violation {
    let wanted = match kind {
        Text | Texts => "TYPE_STRING",
        Bool => "TYPE_BOOL",
        Int => "TYPE_INT32",
        Number => "TYPE_FLOAT",
        TextMap | Struct | Object(_) => "TYPE_MESSAGE",
        Choice(_) => "TYPE_ENUM",
    };
    Violation::new(at, format!("Invalid value at '{at}' ({wanted}), {value}"))
}

fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for letter in name.chars() {
        if letter == '_' {
            upper = true;
        } else if upper {
            out.extend(letter.to_uppercase());
            upper = false;
        } else {
            out.push(letter);
        }
    }
    out
}
