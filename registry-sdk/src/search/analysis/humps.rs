//! Humps: the parts of a word that begin with capitals.

/// Splits a word at its camelCase humps.
///
/// A run of capitals is one hump, but its last letter begins the next hump if a small letter follows.
pub(super) fn humps(word: &str) -> impl Iterator<Item = &str> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let mut letters = rest.char_indices().peekable();
        let (_, mut before) = letters.next()?;
        let mut end = rest.len();
        while let Some((at, letter)) = letters.next() {
            let next_is_lower = letters.peek().is_some_and(|(_, next)| next.is_lowercase());
            if letter.is_uppercase() && (!before.is_uppercase() || next_is_lower) {
                end = at;
                break;
            }
            before = letter;
        }
        let (hump, after) = rest.split_at(end);
        rest = after;
        Some(hump)
    })
}

/// Returns the abbreviation whose plural the word is: `PDF` for `PDFs`.
pub(super) fn abbreviation(word: &str) -> Option<&str> {
    let one = word.strip_suffix('s').filter(|one| one.len() > 1)?;
    one.bytes().all(|letter| letter.is_ascii_uppercase()).then_some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_before_capitals() {
        for (word, expected) in [
            ("codeGeneration", &["code", "Generation"][..]),
            ("HTTPServer", &["HTTP", "Server"]),
            ("parseJSON", &["parse", "JSON"]),
            ("sha256Sum", &["sha256", "Sum"]),
            ("PDFs", &["PD", "Fs"]),
            ("über", &["über"]),
            ("日本語Text", &["日本語", "Text"]),
        ] {
            assert_eq!(humps(word).collect::<Vec<_>>(), expected);
        }
    }

    #[test]
    fn plurals_of_abbreviations_are_recognized_by_capitals() {
        assert_eq!(["PDFs", "VMs", "GPUs"].map(abbreviation), [Some("PDF"), Some("VM"), Some("GPU")]);
        assert_eq!(["As", "PDF", "pdfs", "Pdfs", "PDFS", "s", ""].map(abbreviation), [None; 7]);
    }
}
