//! The segments of a text message, as networks send and bill them.
//!
//! A message is sent in the GSM 7-bit default alphabet if it has only characters of that alphabet and its extension
//! (3GPP TS 23.038, section 6.2.1), else in UCS-2. One segment has 140 bytes: 160 septets or 70 units of UTF-16. A longer
//! message is sent in several, each with 6 bytes of header (3GPP TS 23.040, section 9.2.3.24.1), so that 153 septets or 67
//! units remain. Neither the escape of an extended character, nor a surrogate pair, nor what is shown as one character
//! (Unicode UAX #29) is divided between segments.

use unicode_segmentation::UnicodeSegmentation;

/// The alphabet in which a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Alphabet {
    /// The GSM 7-bit default alphabet with its extension.
    Gsm7,
    /// UCS-2, in fact UTF-16.
    Ucs2,
}

/// What a message needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// The alphabet in which it is sent.
    pub alphabet: Alphabet,
    /// In how many segments it is sent, at least 1.
    pub count: u32,
}

impl Alphabet {
    /// The alphabet that `text` needs.
    pub fn of(text: &str) -> Self {
        if text.chars().all(|letter| septets(letter).is_some()) {
            Self::Gsm7
        } else {
            Self::Ucs2
        }
    }

    /// Septets or units of UTF-16 in a message of one segment, and in each of several.
    const fn capacity(self) -> (usize, usize) {
        match self {
            Self::Gsm7 => (160, 153),
            Self::Ucs2 => (70, 67),
        }
    }

    /// The segments of `text` in this alphabet. Characters that it lacks count as one septet, for networks replace them.
    pub fn segments(self, text: &str) -> Segments {
        let count = match self {
            Self::Gsm7 => self.count(text.chars().map(|letter| septets(letter).unwrap_or(1))),
            Self::Ucs2 => self.count(text.graphemes(true).flat_map(indivisible)),
        };
        Segments { alphabet: self, count }
    }

    /// How many segments hold pieces of these lengths, none of which may be divided.
    fn count(self, pieces: impl Iterator<Item = usize>) -> u32 {
        let (single, each) = self.capacity();
        let (mut total, mut count, mut used) = (0, 1, 0);
        for piece in pieces {
            total += piece;
            if used + piece > each {
                (count, used) = (count + 1, 0);
            }
            used += piece;
        }
        if total <= single { 1 } else { count }
    }
}

impl Segments {
    /// The segments of `text`, in the alphabet that it needs.
    pub fn of(text: &str) -> Self {
        Alphabet::of(text).segments(text)
    }
}

/// The lengths in UTF-16 of the parts of a grapheme cluster that stay together: the cluster, unless it is a line break of two
/// characters or needs more than a segment.
fn indivisible(cluster: &str) -> Vec<usize> {
    let units = cluster.encode_utf16().count();
    if cluster == "\r\n" || units > Alphabet::Ucs2.capacity().1 {
        cluster.chars().map(char::len_utf16).collect()
    } else {
        vec![units]
    }
}

/// Septets that `letter` takes in the GSM 7-bit default alphabet: two for the extension table, whose characters follow an
/// escape. `None` if it is in neither table.
const fn septets(letter: char) -> Option<usize> {
    match letter {
        '\u{c}' | '[' | '\\' | ']' | '^' | '{' | '|' | '}' | '~' | '€' => Some(2),
        '\n'
        | '\r'
        | ' '..='Z'
        | '_'
        | 'a'..='z'
        | '¡'
        | '£'
        | '¤'
        | '¥'
        | '§'
        | '¿'
        | 'Ä'
        | 'Å'
        | 'Æ'
        | 'Ç'
        | 'É'
        | 'Ñ'
        | 'Ö'
        | 'Ø'
        | 'Ü'
        | 'ß'
        | 'à'
        | 'ä'
        | 'å'
        | 'æ'
        | 'è'
        | 'é'
        | 'ì'
        | 'ñ'
        | 'ò'
        | 'ö'
        | 'ø'
        | 'ù'
        | 'ü'
        | 'Γ'
        | 'Δ'
        | 'Θ'
        | 'Λ'
        | 'Ξ'
        | 'Π'
        | 'Σ'
        | 'Φ'
        | 'Ψ'
        | 'Ω' => Some(1),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message of the table, as runs of equal text.
    #[derive(serde::Deserialize)]
    struct Case {
        runs: Vec<(String, usize)>,
        alphabet: String,
        segments: u32,
    }

    impl Case {
        fn text(&self) -> String {
            self.runs.iter().map(|(text, times)| text.repeat(*times)).collect()
        }
    }

    /// `testbed/conformance/segments.mjs` made the table with npm `sms-segments-calculator`.
    #[test]
    fn segments_are_those_of_another_implementation() {
        let cases: Vec<Case> = serde_json::from_str(include_str!("testdata/segments.json")).unwrap();
        assert!(cases.len() > 400);
        let differs = |case: &Case| {
            let Segments { alphabet, count } = Segments::of(&case.text());
            let alphabet = match alphabet {
                Alphabet::Gsm7 => "GSM-7",
                Alphabet::Ucs2 => "UCS-2",
            };
            let expected = (case.alphabet.as_str(), case.segments);
            ((alphabet, count) != expected).then(|| format!("{:?}: {alphabet} {count}, not {expected:?}", case.runs))
        };
        assert_eq!(cases.iter().filter_map(differs).collect::<Vec<_>>(), [""; 0]);
    }

    #[test]
    fn the_standard_alphabet_has_its_127_characters_and_its_extension_10() {
        let all = || (0..=0x10_ffff).filter_map(char::from_u32);
        let with = |septets| all().filter(|letter| super::septets(*letter) == Some(septets)).count();
        // Escape is no character of its own.
        assert_eq!((with(1), with(2)), (127, 10));
    }

    #[test]
    fn a_cluster_beyond_a_segment_is_divided() {
        let zalgo = format!("a{}", "\u{301}".repeat(200));
        assert_eq!(Segments::of(&zalgo).count, 3);
        assert_eq!(Segments::of("").count, 1);
    }
}
