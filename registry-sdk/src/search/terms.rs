//! How texts are cut into terms, and how well terms match.

use super::rank::Field;

/// Cuts a text into its terms: lower case, cut at every character that is neither letter nor digit, and at
/// camelCase humps.
///
/// A run of capitals is one term, and the last of them begins the next term where a small letter follows.
///
/// ```
/// use registry_sdk::search::terms;
/// let cut = |text| terms(text).collect::<Vec<_>>();
/// assert_eq!(cut("security_scanning"), ["security", "scanning"]);
/// assert_eq!(cut("parseHTTPRequest v2"), ["parse", "http", "request", "v2"]);
/// ```
pub fn terms(text: &str) -> impl Iterator<Item = String> {
    text.split(|character: char| !character.is_alphanumeric()).flat_map(humps).map(|hump| {
        let mut term = hump.to_lowercase();
        // İ becomes an i and a dot of its own, which is no letter.
        term.retain(char::is_alphanumeric);
        term
    })
}

/// Cuts one word at its camelCase humps.
fn humps(word: &str) -> impl Iterator<Item = &str> {
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

/// How well a capability matches: 1 where its whole name was asked for; else between 0.1 and 0.95, growing
/// first with the number of terms found in the name, then with the number found in the tags.
///
/// `found` has the best place of every term of the query.
///
/// ```
/// use registry_sdk::search::{Field, score};
/// let whole_name = score(true, &[Field::Name]);
/// let name = score(false, &[Field::Name]);
/// let tag = score(false, &[Field::Tag]);
/// let description = score(false, &[Field::Description]);
/// assert!(whole_name > name && name > tag && tag > description);
/// ```
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "a query has few terms")]
pub fn score(whole_name: bool, found: &[Field]) -> f64 {
    if whole_name {
        return 1.0;
    }
    let count = |field| found.iter().filter(|one| **one == field).count();
    // Read as two digits of a number, so that no count of tags outweighs one more term in the name.
    let base = found.len() + 1;
    let rank = count(Field::Name) * base + count(Field::Tag);
    let best = (found.len() * base).max(1);
    let score = 0.1 + 0.85 * rank as f64 / best as f64;
    (score * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_at_punctuation_and_humps() {
        let cases: &[(&str, &[&str])] = &[
            ("", &[]),
            ("--__--", &[]),
            ("codeGeneration", &["code", "generation"]),
            ("CodeGeneration", &["code", "generation"]),
            ("HTTPServer", &["http", "server"]),
            ("parseJSON", &["parse", "json"]),
            ("sha256Sum", &["sha256", "sum"]),
            ("security-scanning.v2", &["security", "scanning", "v2"]),
            ("Größe über", &["größe", "über"]),
            ("日本語 text", &["日本語", "text"]),
        ];
        for (text, expected) in cases {
            assert_eq!(terms(text).collect::<Vec<_>>(), *expected, "{text}");
        }
    }

    #[test]
    fn one_more_term_in_the_name_outweighs_any_number_in_tags() {
        use Field::{Description, Name, Tag};
        for length in 2..=20 {
            let mut in_name = vec![Description; length];
            in_name[0] = Name;
            assert!(score(false, &in_name) > score(false, &vec![Tag; length]), "{length} terms");
        }
    }
}
