//! Stems: the forms of an English word become equal.

use std::borrow::Cow;

use frostem::{Algorithm, Stemmer};

/// Minimum length of a stem on -er that counts as an agent noun.
const SHORTEST_DOER: usize = 5;

/// Minimum length of an abbreviation whose plural is recognized without capitals. Shorter words often end in s themselves
/// (`dns`).
const SHORTEST_ABBREVIATION: usize = 3;

/// Returns the stem of a folded word, by [Porter's second algorithm](https://snowballstem.org/algorithms/english/stemmer.html)
/// and two additional rules. Words with digits or other letters are their own stems.
///
/// Agents are named after what they do, but the algorithm keeps the -er of short words: "scanner" would not find "scan", nor
/// "tester" "test". So a remaining -er is stemmed like -ing. The algorithm also keeps the -s of words without vowels, such as
/// plurals of abbreviations: "pdfs" would not find "pdf".
pub(crate) fn stem(word: &str) -> Cow<'_, str> {
    if !word.bytes().all(|letter| letter.is_ascii_lowercase()) {
        return Cow::Borrowed(word);
    }
    if let Some(one) = abbreviation(word) {
        return Cow::Borrowed(one);
    }
    let english = Stemmer::new(Algorithm::English);
    let stem = english.stem(word);
    match stem.strip_suffix("er") {
        Some(verb) if stem.len() >= SHORTEST_DOER => {
            Cow::Owned(english.stem(&format!("{verb}ing")).into_owned())
        }
        _ => stem,
    }
}

/// Returns the abbreviation whose plural the word is.
fn abbreviation(word: &str) -> Option<&str> {
    let one = word.strip_suffix('s').filter(|one| one.len() >= SHORTEST_ABBREVIATION)?;
    let is_consonant = |letter: u8| !matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u' | b'y');
    (one.bytes().all(is_consonant) && !one.ends_with('s')).then_some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_word_have_the_same_stem() {
        for forms in [
            &["scan", "scans", "scanned", "scanning", "scanner"][..],
            &["translate", "translates", "translation", "translating"],
            &["deploy", "deploys", "deployed", "deployment"],
            &["review", "reviews", "reviewer", "reviewers"],
            &["code", "coder", "coders", "coding"],
            &["filter", "filters", "filtering"],
            &["pdf", "pdfs"],
        ] {
            assert!(forms.iter().all(|form| stem(form) == stem(forms[0])), "{forms:?}");
        }
    }

    #[test]
    fn words_that_are_not_english_are_unchanged() {
        for word in ["s3s", "größen", "c++", "审查", "", "css", "dns", "grpcss"] {
            assert_eq!(stem(word), word);
        }
    }
}
