//! Lines of bounded length.

use std::io::{self, BufRead, Read};

use registry_sdk::contract::limits;

/// Maximum length of a line: twice the size of a registration with a card, since a card is longer as an escaped string, and there may
/// be a maintenance and white space.
const MAX_LINE: usize = 2 * (limits::BODY_BYTES + limits::CARD_BYTES);

/// Some editors write it at the beginning of a file.
const BYTE_ORDER_MARK: &[u8] = "\u{feff}".as_bytes();

/// A line, without its line break.
pub(super) struct Line {
    /// Number of the line, starting at 1.
    pub(super) number: usize,
    /// `None` if the line is longer than [`MAX_LINE`].
    pub(super) text: Option<Vec<u8>>,
}

/// Reads lines, skipping empty ones.
pub(super) struct Lines<R> {
    reader: R,
    number: usize,
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(reader: R) -> Self {
        Self { reader, number: 0 }
    }

    /// Returns the number of the last line read.
    pub(super) fn number(&self) -> usize {
        self.number
    }

    pub(super) fn next(&mut self) -> io::Result<Option<Line>> {
        loop {
            let mut text = Vec::new();
            let limit = u64::try_from(MAX_LINE).unwrap_or(u64::MAX);
            if self.reader.by_ref().take(limit).read_until(b'\n', &mut text)? == 0 {
                return Ok(None);
            }
            self.number += 1;
            if text.len() == MAX_LINE && text.last() != Some(&b'\n') {
                self.reader.skip_until(b'\n')?;
                return Ok(Some(Line { number: self.number, text: None }));
            }
            let text = text.strip_prefix(BYTE_ORDER_MARK).filter(|_| self.number == 1).unwrap_or(&text);
            let trimmed = text.trim_ascii();
            if !trimmed.is_empty() {
                return Ok(Some(Line { number: self.number, text: Some(trimmed.to_vec()) }));
            }
        }
    }
}
