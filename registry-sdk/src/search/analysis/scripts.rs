//! Scripts without spaces between words: their runs are split into pairs of characters.
//!
//! Chinese, Japanese, Thai, Lao, Khmer and Burmese are written without spaces. Korean has spaces, but attaches particles and
//! joins compounds, and no stemmer separates them. Pairs need no dictionary: a word of two or more characters is found by its
//! pairs, and a single character as the prefix of one.

use unicode_normalization::char::is_combining_mark;

/// A run of characters of one kind within a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Run<'a> {
    /// Part of a word in a script with spaces.
    Spaced(&'a str),
    /// Characters of a script without spaces.
    Unspaced(&'a str),
}

/// Splits a word between scripts with and without spaces.
pub(super) fn runs(word: &str) -> impl Iterator<Item = Run<'_>> {
    let mut rest = word;
    std::iter::from_fn(move || {
        let is_unspaced = is_unspaced(rest.chars().next()?);
        let changes = |letter: char| self::is_unspaced(letter) != is_unspaced && !is_combining_mark(letter);
        let (run, after) = rest.split_at(rest.find(changes).unwrap_or(rest.len()));
        rest = after;
        Some(if is_unspaced { Run::Unspaced(run) } else { Run::Spaced(run) })
    })
}

/// Returns the first run of a word.
pub(super) fn first_run(word: &str) -> &str {
    match runs(word).next() {
        Some(Run::Spaced(run) | Run::Unspaced(run)) => run,
        None => word,
    }
}

/// Returns each character of a run together with the next one, and the last one alone. Marks belong to the preceding character.
pub(super) fn pairs(run: &str) -> Vec<&str> {
    let starts = run.char_indices().filter(|(at, letter)| *at == 0 || !is_combining_mark(*letter));
    let starts: Vec<usize> = starts.map(|(at, _)| at).collect();
    let end = |number: usize| starts.get(number + 2).copied().unwrap_or(run.len());
    starts.iter().enumerate().map(|(number, start)| &run[*start..end(number)]).collect()
}

/// Returns whether a character belongs to a script without spaces.
pub(super) fn is_unspaced(letter: char) -> bool {
    matches!(letter,
        // Thai, Lao; Myanmar; Hangul; Khmer.
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1100}'..='\u{11ff}' | '\u{1780}'..='\u{17ff}'
        // Iteration marks and zero of Han; Hiragana, Katakana; compatibility Jamo; Katakana extensions.
        | '々' | '〆' | '〇' | '\u{3041}'..='\u{30ff}' | '\u{3130}'..='\u{318f}' | '\u{31f0}'..='\u{31ff}'
        // Han with its extensions and compatibility forms; Hangul syllables.
        | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{ac00}'..='\u{d7ff}'
        | '\u{20000}'..='\u{3ffff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_between_scripts() {
        use Run::{Spaced, Unspaced};
        assert_eq!(
            runs("iphone手机app").collect::<Vec<_>>(),
            [Spaced("iphone"), Unspaced("手机"), Spaced("app")]
        );
        assert_eq!(runs("हिन्दी").collect::<Vec<_>>(), [Spaced("हिन्दी")]);
        assert_eq!(runs("").count(), 0);
    }

    #[test]
    fn runs_are_split_into_pairs() {
        assert_eq!(pairs("代码审查"), ["代码", "码审", "审查", "查"]);
        assert_eq!(pairs("レビュー"), ["レビ", "ビュ", "ュー", "ー"]);
        assert_eq!(pairs("코드"), ["코드", "드"]);
        assert_eq!(pairs("โค้ด"), ["โค้", "ค้ด", "ด"]);
        assert_eq!(pairs("查"), ["查"]);
    }
}
