//! HTML of e-mails, the same for all providers.

use std::borrow::Cow;

/// `html` with a hidden first line, which lists of messages show beside the subject.
pub(super) fn with_preheader<'a>(html: &'a str, preheader: Option<&str>) -> Cow<'a, str> {
    let Some(preheader) = preheader.filter(|preheader| !preheader.is_empty()) else {
        return html.into();
    };
    let at = start_of_body(html);
    let mut out = String::with_capacity(html.len() + preheader.len() + 128);
    out.push_str(&html[..at]);
    out.push_str("<div style=\"display:none;max-height:0;overflow:hidden;mso-hide:all\">");
    for character in preheader.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            other => out.push(other),
        }
    }
    out.push_str("</div>");
    out.push_str(&html[at..]);
    out.into()
}

/// Where the content of `html`'s body begins: after the tag `<body …>`, or at the start if there is none.
fn start_of_body(html: &str) -> usize {
    let bytes = html.as_bytes();
    let is_tag = |at: usize| {
        let name = bytes
            .get(at..at + 5)
            .is_some_and(|tag| tag.eq_ignore_ascii_case(b"<body"));
        name && bytes
            .get(at + 5)
            .is_some_and(|next| next.is_ascii_whitespace() || *next == b'>')
    };
    let Some(tag) = (0..bytes.len()).find(|at| is_tag(*at)) else {
        return 0;
    };
    let mut quote = None;
    for (at, byte) in bytes.iter().enumerate().skip(tag) {
        match (quote, *byte) {
            (None, b'>') => return at + 1,
            (None, b'"' | b'\'') => quote = Some(*byte),
            (Some(open), byte) if open == byte => quote = None,
            _ => {}
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_preheader_stands_first_in_the_body_and_is_text() {
        let with = |html: &str| with_preheader(html, Some("5 < 6 & \"so\"")).into_owned();
        let hidden =
            "<div style=\"display:none;max-height:0;overflow:hidden;mso-hide:all\">5 &lt; 6 &amp; \"so\"</div>";
        for (html, wanted) in [
            ("<p>x", format!("{hidden}<p>x")),
            (
                "<html><BODY class='a>b'><p>x",
                format!("<html><BODY class='a>b'>{hidden}<p>x"),
            ),
            ("<body>x", format!("<body>{hidden}x")),
            ("<bodyguard>x", format!("{hidden}<bodyguard>x")),
            ("<body", format!("{hidden}<body")),
        ] {
            assert_eq!(with(html), wanted);
        }
        assert_eq!(with_preheader("<p>", Some("")), "<p>");
    }
}
