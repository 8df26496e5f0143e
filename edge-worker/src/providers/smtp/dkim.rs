//! DKIM signatures (RFC 6376), by RSA or Ed25519 (RFC 8463), relaxed/relaxed.
//!
//! Most headers are signed once more than they occur, so that nobody can add another one to a signed message. That
//! matters most for `From` and `Subject`, which readers show, and for the headers of RFC 8058, which a signature must
//! cover.

use std::fmt;

use aws_lc_rs::{
    digest::{Digest, SHA256, digest},
    rand::SystemRandom,
    signature::{Ed25519KeyPair, KeyPair, RSA_PKCS1_SHA256, RsaKeyPair},
};
use base64::{Engine, engine::general_purpose::STANDARD};
use jiff::Timestamp;
use tokio_rustls::rustls::pki_types::{PrivateKeyDer, pem::PemObject};

/// Signed, and signed once more than they occur.
const OVERSIGNED: [&str; 11] = [
    "From",
    "To",
    "Subject",
    "Date",
    "Message-ID",
    "Reply-To",
    "MIME-Version",
    "Content-Type",
    "Content-Transfer-Encoding",
    "List-Unsubscribe",
    "List-Unsubscribe-Post",
];

/// Signed if they occur: a forwarder may add one of its own.
const SIGNED: [&str; 2] = ["References", "In-Reply-To"];

/// Columns of base64 in one line of the signature.
const FOLD_AT: usize = 72;

/// Names of signed headers in one line of the signature.
const NAMES_PER_LINE: usize = 5;

/// Smallest RSA key, in bits: receivers may ignore signatures by smaller ones (RFC 8301 §3.2).
const RSA_MIN_BITS: usize = 2048;

/// Signs messages as one domain.
pub(super) struct Signer {
    domain: String,
    selector: String,
    key: Key,
}

enum Key {
    Rsa(Box<RsaKeyPair>),
    Ed25519(Box<Ed25519KeyPair>),
}

impl Signer {
    /// `private_key` is PEM: PKCS #8 with RSA or Ed25519, or PKCS #1.
    ///
    /// # Errors
    /// The rule that the key breaks, a sentence without subject.
    pub(super) fn new(domain: &str, selector: &str, private_key: &str) -> Result<Self, &'static str> {
        Ok(Self {
            domain: domain.to_ascii_lowercase(),
            selector: selector.to_owned(),
            key: Key::parse(private_key)?,
        })
    }

    /// Whether a signature of this domain counts for a message from `from_domain`: DMARC's relaxed alignment, as far as
    /// it can be judged without a list of public suffixes (RFC 7489 §3.1.1).
    pub(super) fn is_aligned_with(&self, from_domain: &str) -> bool {
        is_within(from_domain, &self.domain)
    }

    /// The `DKIM-Signature` header of a message, with the line break that ends it. `headers` are the message's, each
    /// ended by a line break; `body_hash` is that of [`body_hash`].
    ///
    /// `None` if the key cannot sign, which no valid key does.
    pub(super) fn sign(&self, headers: &str, body_hash: &[u8], at: Timestamp) -> Option<String> {
        let fields = fields(headers);
        let mut names = Vec::new();
        let mut signed = String::with_capacity(headers.len() + 256);
        for name in OVERSIGNED.into_iter().chain(SIGNED) {
            // Of several with one name the verifier takes the last first.
            for (_, value) in fields
                .iter()
                .rev()
                .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            {
                relax_header(name, value, &mut signed);
                signed.push_str("\r\n");
                names.push(name);
            }
            if OVERSIGNED.contains(&name) {
                names.push(name);
            }
        }
        let unsigned = format!(
            " v=1; a={}; c=relaxed/relaxed;\r\n\td={}; s={};\r\n\tt={}; h={};\r\n\tbh={};\r\n\tb=",
            self.key.algorithm(),
            self.domain,
            self.selector,
            at.as_second(),
            folded(&names),
            STANDARD.encode(body_hash),
        );
        relax_header("DKIM-Signature", &unsigned, &mut signed);
        let signature = STANDARD.encode(self.key.sign(signed.as_bytes())?);
        let mut header = format!("DKIM-Signature:{unsigned}");
        for (line, start) in (0..signature.len()).step_by(FOLD_AT).enumerate() {
            if line > 0 {
                header.push_str("\r\n\t ");
            }
            header.push_str(&signature[start..signature.len().min(start + FOLD_AT)]);
        }
        header.push_str("\r\n");
        Some(header)
    }

    /// What the domain publishes under `<selector>._domainkey`, in the member `p=`.
    #[cfg(test)]
    fn published(&self) -> String {
        match &self.key {
            Key::Rsa(pair) => {
                use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
                let public: PublicKeyX509Der<'_> = pair.public_key().as_der().unwrap();
                STANDARD.encode(public.as_ref())
            }
            Key::Ed25519(pair) => STANDARD.encode(pair.public_key()),
        }
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({} of {})", self.selector, self.domain)
    }
}

impl Key {
    fn parse(pem: &str) -> Result<Self, &'static str> {
        const RULE: &str = "must be a private key in PEM: RSA of at least 2048 bits, or Ed25519";
        let key = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|_| RULE)?;
        let rsa = match &key {
            PrivateKeyDer::Pkcs8(key) => {
                if let Ok(pair) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(key.secret_pkcs8_der()) {
                    return Ok(Self::Ed25519(pair.into()));
                }
                RsaKeyPair::from_pkcs8(key.secret_pkcs8_der())
            }
            PrivateKeyDer::Pkcs1(key) => RsaKeyPair::from_der(key.secret_pkcs1_der()),
            _ => return Err(RULE),
        };
        let pair = rsa.map_err(|_| RULE)?;
        if pair.public_key().modulus_len() * 8 < RSA_MIN_BITS {
            return Err(RULE);
        }
        Ok(Self::Rsa(pair.into()))
    }

    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Rsa(_) => "rsa-sha256",
            Self::Ed25519(_) => "ed25519-sha256",
        }
    }

    fn sign(&self, signed: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Rsa(pair) => {
                let mut signature = vec![0; pair.public_modulus_len()];
                pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed, &mut signature)
                    .ok()?;
                Some(signature)
            }
            // RFC 8463 §3: the digest is what is signed.
            Self::Ed25519(pair) => Some(pair.sign(digest(&SHA256, signed).as_ref()).as_ref().to_vec()),
        }
    }
}

/// Whether `domain` is `parent` or below it.
pub(super) fn is_within(domain: &str, parent: &str) -> bool {
    let Some(start) = domain.len().checked_sub(parent.len()) else {
        return false;
    };
    let (Some(above), true) = (domain.get(..start), domain.is_char_boundary(start)) else {
        return false;
    };
    domain[start..].eq_ignore_ascii_case(parent) && (above.is_empty() || above.ends_with('.'))
}

/// The hash of `body` in relaxed form (RFC 6376 §3.4.4). Lines end with CRLF.
pub(super) fn body_hash(body: &[u8]) -> Digest {
    let mut relaxed = Vec::with_capacity(body.len());
    // Empty lines are written only once another line follows them.
    let mut empty_lines = 0;
    for line in body.split_inclusive(|byte| *byte == b'\n') {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let mut words = line.split(|byte| is_blank(*byte));
        let leading = words.next().unwrap_or_default();
        if leading.is_empty() && line.iter().all(|byte| is_blank(*byte)) {
            empty_lines += 1;
            continue;
        }
        for _ in 0..std::mem::take(&mut empty_lines) {
            relaxed.extend_from_slice(b"\r\n");
        }
        relaxed.extend_from_slice(leading);
        for word in words.filter(|word| !word.is_empty()) {
            relaxed.push(b' ');
            relaxed.extend_from_slice(word);
        }
        relaxed.extend_from_slice(b"\r\n");
    }
    digest(&SHA256, &relaxed)
}

const fn is_blank(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t')
}

/// The name and the value of each header; a value may be folded.
fn fields(headers: &str) -> Vec<(&str, &str)> {
    let mut fields = Vec::new();
    let mut start = 0;
    while start < headers.len() {
        let mut end = start;
        loop {
            end = headers[end..].find('\n').map_or(headers.len(), |at| end + at + 1);
            if !headers[end..].starts_with([' ', '\t']) {
                break;
            }
        }
        if let Some((name, value)) = headers[start..end].split_once(':') {
            fields.push((name.trim_end(), value));
        }
        start = end;
    }
    fields
}

/// The names of signed headers, some in each line.
fn folded(names: &[&str]) -> String {
    let lines: Vec<_> = names.chunks(NAMES_PER_LINE).map(|names| names.join(":")).collect();
    lines.join(":\r\n\t ")
}

/// Writes a header in relaxed form (RFC 6376 §3.4.2), without a line break at its end.
fn relax_header(name: &str, value: &str, out: &mut String) {
    out.extend(name.chars().map(|c| c.to_ascii_lowercase()));
    out.push(':');
    let words = value.split([' ', '\t', '\r', '\n']).filter(|word| !word.is_empty());
    for (number, word) in words.enumerate() {
        if number > 0 {
            out.push(' ');
        }
        out.push_str(word);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The key of RFC 8032 §7.1, test 1, with which RFC 8463 appendix A signs.
    const ED25519_PEM: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g
-----END PRIVATE KEY-----
";

    const BODY: &str = "Hi.\r\n\r\nWe lost the game.  Are you hungry yet?\r\n\r\nJoe.\r\n";

    #[test]
    fn the_hash_of_a_body_is_that_of_rfc_8463() {
        let known = "2jUSOH9NhtVGCQWNr9BrIAPreKQjO6Sn7XIkfJVOzv8=";
        assert_eq!(STANDARD.encode(body_hash(BODY.as_bytes())), known);
        for same in [
            format!("{BODY}\r\n\r\n"),
            BODY.replace("game.  Are", "game. \t Are"),
            BODY.replace("Joe.", "Joe. \t"),
        ] {
            assert_eq!(STANDARD.encode(body_hash(same.as_bytes())), known);
        }
        let changed = format!(" {BODY}");
        assert_ne!(STANDARD.encode(body_hash(changed.as_bytes())), known);
    }

    #[test]
    fn an_empty_body_has_the_hash_of_nothing() {
        // RFC 6376 §3.4.4.
        let nothing = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
        for empty in ["", "\r\n", "\r\n \t\r\n\r\n"] {
            assert_eq!(STANDARD.encode(body_hash(empty.as_bytes())), nothing, "{empty:?}");
        }
    }

    #[test]
    fn headers_are_relaxed_as_in_rfc_6376() {
        let headers = "A: X\r\nB : Y\t\r\n\tZ  \r\n";
        let mut relaxed = String::new();
        for (name, value) in fields(headers) {
            relax_header(name, value, &mut relaxed);
            relaxed.push_str("\r\n");
        }
        assert_eq!(relaxed, "a:X\r\nb:Y Z\r\n");
    }

    #[test]
    fn a_signature_covers_the_headers_that_must_not_be_added_or_changed() {
        let signer = Signer::new("Football.Example.com", "brisbane", ED25519_PEM).unwrap();
        let headers = "From: Joe SixPack <joe@football.example.com>\r\n\
            Subject: Is dinner\r\n ready?\r\n\
            References: <1@example.com>\r\n\
            X-Other: 1\r\n";
        let at = Timestamp::from_second(1_528_637_909).unwrap();
        let header = signer.sign(headers, body_hash(BODY.as_bytes()).as_ref(), at).unwrap();
        let flat = header.replace(['\r', '\n', '\t', ' '], "");
        assert!(flat.starts_with("DKIM-Signature:v=1;a=ed25519-sha256;c=relaxed/relaxed;d=football.example.com;s=brisbane;t=1528637909;h="), "{flat}");
        let (_, names) = flat.split_once("h=").unwrap();
        let (names, _) = names.split_once(';').unwrap();
        let count = |name: &str| names.split(':').filter(|signed| *signed == name).count();
        assert_eq!((count("From"), count("Subject"), count("List-Unsubscribe")), (2, 2, 1));
        assert_eq!((count("References"), count("In-Reply-To"), count("X-Other")), (1, 0, 0));
        assert!(header.lines().all(|line| line.len() <= 78), "{header}");
        assert_eq!(signer.published(), "11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=");
    }

    #[test]
    fn keys_that_cannot_serve_are_refused() {
        let p256 = "-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgevZzL1gdAFr88hb2
OF/2NxApJCzGCEDdfSp6VQO30hyhRANCAAQRWz+jn65BtOMvdyHKcvjBeBSDZH2r
1RTwjmYSi9R/zpBnuQ4EiMnCqfMPWiZqB4QdbAd0E7oH50VpuZ1P087G
-----END PRIVATE KEY-----
";
        for bad in ["", "secret", p256] {
            assert!(Signer::new("example.com", "s", bad).is_err());
        }
    }

    #[test]
    fn a_domain_signs_for_itself_and_what_is_below_it() {
        for (domain, within) in [
            ("example.com", true),
            ("News.Example.com", true),
            ("badexample.com", false),
            ("example.com.evil.net", false),
            ("com", false),
            ("", false),
        ] {
            assert_eq!(is_within(domain, "example.com"), within, "{domain}");
        }
    }
}
