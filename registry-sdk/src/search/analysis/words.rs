//! Words: where they begin and end in a text, and which of them are written as one.

use super::fold::is_in_word;
use super::scripts;

/// A word in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Word<'a> {
    /// Letters and digits alone.
    pub(super) letters: &'a str,
    /// The word with its symbols: `C++`, `C#`, `.NET`.
    pub(super) whole: &'a str,
    /// Whether a single dot, underscore or hyphen joins the next word: `Node.js`, `code_review`.
    pub(super) is_joined: bool,
}

/// Splits a text into words: at every character that is neither a letter nor a digit (except for the symbols of a [`whole`](Word::whole)
/// word), and between scripts with and without spaces.
pub(super) fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let start = at + text[at..].find(char::is_alphanumeric)?;
        let end = start + scripts::first_run(&text[start..end_of(text, start, is_in_word)]).len();
        let whole_start = if has_leading_dot(text, start) { start - 1 } else { start };
        let whole_end = end_of_symbols(text, end);
        at = whole_end;
        let mut rest = text[whole_end..].chars();
        let is_joined = whole_end == end
            && matches!(rest.next(), Some('.' | '_' | '-'))
            && rest.next().is_some_and(char::is_alphanumeric);
        Some(Word { letters: &text[start..end], whole: &text[whole_start..whole_end], is_joined })
    })
}

fn end_of(text: &str, start: usize, belongs: impl Fn(char) -> bool) -> usize {
    text[start..].find(|character| !belongs(character)).map_or(text.len(), |length| start + length)
}

/// Returns whether a word begins with a dot: a single one that does not end a preceding word.
fn has_leading_dot(text: &str, start: usize) -> bool {
    let Some(before) = text[..start].strip_suffix('.') else { return false };
    let is_name = text[start..].starts_with(char::is_alphabetic);
    is_name
        && before.chars().next_back().is_none_or(|character| {
            character.is_whitespace() || character == '(' || scripts::is_unspaced(character)
        })
}

/// Returns the end of the plus or number signs after a word, if no other word follows them.
fn end_of_symbols(text: &str, end: usize) -> usize {
    let Some(symbol @ ('+' | '#')) = text[end..].chars().next() else { return end };
    let after = end_of(text, end, |character| character == symbol);
    let goes_on = |next: char| next.is_alphanumeric() && !scripts::is_unspaced(next);
    if text[after..].starts_with(goes_on) { end } else { after }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Vec<&str> {
        words(text).map(|word| word.whole).collect()
    }

    fn joined(text: &str) -> Vec<bool> {
        words(text).map(|word| word.is_joined).collect()
    }

    #[test]
    fn punctuation_separates_words() {
        assert_eq!(
            whole("security-scanning.v2, (日本語) über"),
            ["security", "scanning", "v2", "日本語", "über"]
        );
        assert_eq!(
            whole("使用Node.js编写 C++代码，用.NET"),
            ["使用", "Node", "js", "编写", "C++", "代码", "用", ".NET"]
        );
        assert_eq!(whole("re\u{301}sume\u{301} हिन्दी"), ["re\u{301}sume\u{301}", "हिन्दी"]);
        assert!(whole("--__-- ++ # . …").is_empty());
    }

    #[test]
    fn words_may_end_with_symbols_and_begin_with_a_dot() {
        assert_eq!(whole("C++, C#/F# (.NET) .env"), ["C++", "C#", "F#", ".NET", ".env"]);
        assert_eq!(
            whole("1+1 a#b end.Next ...more .5 C++11"),
            ["1", "1", "a", "b", "end", "Next", "more", "5", "C", "11"]
        );
        assert!(words("C++ .NET").all(|word| word.letters.chars().all(char::is_alphabetic)));
    }

    #[test]
    fn one_dot_underscore_or_hyphen_joins_words() {
        assert_eq!(joined("Node.js code_review real-time."), [true, false, true, false, true, false]);
        assert_eq!(joined("one. two __init__ a--b and/or C++.x"), [false; 9]);
    }
}
