//! Stems: the forms of an English word become one.

use std::borrow::Cow;

use frostem::{Algorithm, Stemmer};

/// Length of the shortest stem on -er that is taken for the doer of something.
const SHORTEST_DOER: usize = 5;

/// Minimum length of an abbreviation whose plural is recognized without capitals: shorter words often end in s themselves (`dns`).
const SHORTEST_ABBREVIATION: usize = 3;

/// Returns the stem of a folded word, by [Porter's second algorithm](https://snowballstem.org/algorithms/english/stemmer.html)
/// and two rules more. Words with other letters or with digits are their own.
///
/// Agents are named for what they do, and the algorithm leaves the -er of short words: "scanner" would not find "scan", or
/// "tester" "test". So what is left with -er is stemmed as if it ended in -ing. And it takes no -s from a word without vowels, as the
/// plurals of abbreviations are: "pdfs" would not find "pdf".
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

/// Returns the abbreviation that a word is the plural of.
fn abbreviation(word: &str) -> Option<&str> {
    let one = word.strip_suffix('s').filter(|one| one.len() >= SHORTEST_ABBREVIATION)?;
    let is_consonant = |letter: u8| !matches!(letter, b'a' | b'e' | b'i' | b'o' | b'u' | b'y');
    (one.bytes().all(is_consonant) && !one.ends_with('s')).then_some(one)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_word_have_one_stem() {
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
    fn what_is_not_english_stays() {
        for word in ["s3s", "größen", "c++", "审查", "", "css", "dns", "grpcss"] {
            assert_eq!(stem(word), word);
        }
    }
}
