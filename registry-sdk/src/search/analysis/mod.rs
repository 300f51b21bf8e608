//! The analyzer: splits texts and queries into terms. It is a chain of filters, one per file.
//!
//! A text is split into [words]; each word is split at its [humps], each hump is [folded](fold), and runs of [scripts] without
//! spaces are split into pairs. `parseHTTPRequest` gives `parsehttprequest` and its parts `parse`, `http` and `request`;
//! `Node.js` gives `node`, `js` and, joined, `nodejs`. [Stems](stem) are left to the dictionary: a text's words are kept
//! unchanged, so that they are found by their prefixes.

mod fold;
mod humps;
mod scripts;
mod stem;
mod stop_words;
mod words;

use std::borrow::Cow;

use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfc_quick};

use self::scripts::Run;
pub(super) use self::stem::stem;

/// Words that are written as one, such as `code_review`. Most have only one word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Compound {
    pub(super) words: Vec<Word>,
    /// All words joined, if there are several. In a query, also the abbreviation whose plural the only word is.
    pub(super) joined: Option<String>,
}

/// A word: whole, in parts, or both.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Word {
    /// The word with its symbols, unless part of it is in a script without spaces.
    pub(super) whole: Option<String>,
    /// The humps, pairs of characters, the word without symbols, and, in a text, the abbreviation whose plural it is. Empty if
    /// the whole word is the only part.
    pub(super) parts: Vec<String>,
    /// Whether it is a stop word.
    pub(super) is_stop: bool,
}

impl Word {
    /// Returns all forms by which the word is found.
    pub(super) fn forms(&self) -> impl Iterator<Item = &str> {
        self.whole.iter().chain(&self.parts).map(String::as_str)
    }
}

/// What is analyzed. Texts and queries differ in the last character of a run without spaces: a text has it as a separate part,
/// so that it can be found; a query looks for it only within its pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Text,
    Query,
}

/// Analyzes a text or a query.
pub(super) fn analyze(text: &str, source: Source) -> Vec<Compound> {
    let text = composed(text);
    let mut compounds = Vec::new();
    let mut current = Compound::default();
    let mut joined = String::new();
    for word in words::words(&text) {
        if word.is_joined || !current.words.is_empty() {
            joined.push_str(&fold::fold(word.letters));
        }
        current.words.extend(self::word(&word, source));
        if !word.is_joined {
            if current.words.len() > 1 {
                current.joined = Some(std::mem::take(&mut joined));
            } else if source == Source::Query {
                current.joined = humps::abbreviation(word.letters).map(fold::fold);
            }
            joined.clear();
            if !current.words.is_empty() {
                compounds.push(std::mem::take(&mut current));
            }
        }
    }
    compounds
}

/// Returns a name without the separators between its words, for comparing whole names.
pub(super) fn key(name: &str) -> String {
    words::words(&composed(name)).map(|word| whole(&word, &fold::fold(word.letters))).collect()
}

/// Composes characters, so that no word is split between a letter and its accent.
fn composed(text: &str) -> Cow<'_, str> {
    if text.is_ascii() || is_nfc_quick(text.chars()) == IsNormalized::Yes {
        Cow::Borrowed(text)
    } else {
        Cow::Owned(text.nfc().collect())
    }
}

fn word(word: &words::Word<'_>, source: Source) -> Option<Word> {
    let is_stop = |letters: &str| source == Source::Query && stop_words::is_stop_word(letters);
    // Most words have no form but themselves.
    if word.whole == word.letters && word.letters.bytes().all(|byte| byte.is_ascii_lowercase()) {
        let is_stop = is_stop(word.letters);
        return Some(Word { whole: Some(word.letters.to_owned()), parts: Vec::new(), is_stop });
    }
    let (mut letters, mut parts, mut is_spaced) = (String::new(), Vec::new(), true);
    for hump in humps::humps(word.letters).map(fold::fold) {
        for run in scripts::runs(&hump) {
            match run {
                Run::Spaced(part) => parts.push(part.to_owned()),
                Run::Unspaced(run) => {
                    is_spaced = false;
                    let mut pairs = scripts::pairs(run);
                    if source == Source::Query && pairs.len() > 1 {
                        pairs.pop();
                    }
                    parts.extend(pairs.into_iter().map(str::to_owned));
                }
            }
        }
        letters.push_str(&hump);
    }
    if letters.is_empty() {
        return None;
    }
    let whole = is_spaced.then(|| whole(word, &letters));
    if parts.len() == 1 && whole.as_ref() == parts.first() {
        parts.clear();
    }
    if source == Source::Text && parts.len() > 1 {
        parts.extend((word.whole != word.letters).then(|| letters.clone()));
        parts.extend(humps::abbreviation(word.letters).map(fold::fold));
    }
    Some(Word { whole, parts, is_stop: is_stop(&letters) })
}

/// Puts a word's symbols around its folded letters.
fn whole(word: &words::Word<'_>, letters: &str) -> String {
    let Some((before, after)) = word.whole.split_once(word.letters) else { return letters.to_owned() };
    format!("{before}{letters}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns every form of every word, in order.
    fn forms(text: &str, source: Source) -> Vec<String> {
        let mut all = Vec::new();
        for compound in analyze(text, source) {
            for word in compound.words {
                all.extend(word.whole);
                all.extend(word.parts);
            }
            all.extend(compound.joined);
        }
        all
    }

    #[test]
    fn words_have_all_forms_by_which_they_are_found() {
        for (text, expected) in [
            ("", &[][..]),
            ("--__--", &[]),
            ("Finds bugs", &["finds", "bugs"]),
            ("JavaScript", &["javascript", "java", "script"]),
            ("JavaScript+", &["javascript+", "java", "script", "javascript"]),
            ("PDFs", &["pdfs", "pd", "fs", "pdf"]),
            ("security_scanning", &["security", "scanning", "securityscanning"]),
            ("Node.js", &["node", "js", "nodejs"]),
            ("C++ .NET", &["c++", "c", ".net", "net"]),
            ("代码审查", &["代码", "码审", "审查", "查"]),
            ("日本語Text", &["日本", "本語", "語", "text"]),
        ] {
            assert_eq!(forms(text, Source::Text), expected, "{text}");
        }
        assert_eq!(forms("代码审查 查", Source::Query), ["代码", "码审", "审查", "查"]);
    }

    #[test]
    fn a_key_is_a_name_without_separators() {
        for name in ["code_review", "Code Review", "codeReview", "CODE-REVIEW"] {
            assert_eq!(key(name), "codereview");
        }
        assert_eq!(key("C++ Builds"), "c++builds");
        assert_eq!(key("代码 审查"), "代码审查");
    }
}
