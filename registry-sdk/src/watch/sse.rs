//! A parser of server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>) with a size limit, because
//! an incomplete event is held in memory.

/// Maximum length of an event: several times the largest record.
const MAX_EVENT: usize = 4 * 1_024 * 1_024;

/// An event's kind and data.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message {
    /// The event's kind; empty if it has none.
    pub(super) kind: String,
    pub(super) data: String,
}

/// The lines between two empty lines. A block of comments has neither an id nor a message, and only keeps the connection alive.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) id: Option<String>,
    pub(super) message: Option<Message>,
}

impl Block {
    /// Returns whether the block is an event of this kind.
    pub(super) fn is(&self, kind: &str) -> bool {
        self.message.as_ref().is_some_and(|message| message.kind == kind)
    }
}

/// An incremental parser: takes bytes as they arrive, and returns complete blocks.
#[derive(Debug, Default)]
pub(super) struct Parser {
    /// The bytes after the last complete line.
    rest: Vec<u8>,
    id: Option<String>,
    message: Message,
    /// Whether the block has any line.
    has_begun: bool,
}

/// An event that exceeds the maximum length.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong;

impl Parser {
    /// Parses some bytes. Returns the blocks that they complete, in order.
    pub(super) fn push(&mut self, bytes: &[u8]) -> Result<Vec<Block>, TooLong> {
        let mut blocks = Vec::new();
        let mut bytes = bytes;
        // Lines end with LF. The registry sends LF alone; a preceding CR is removed.
        while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
            let mut line = &bytes[..end];
            bytes = &bytes[end + 1..];
            // Most lines arrive complete, and are parsed without a copy.
            let mut joined = std::mem::take(&mut self.rest);
            if !joined.is_empty() {
                joined.extend_from_slice(line);
                line = &joined;
            }
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            blocks.extend(self.line(&String::from_utf8_lossy(line)));
            self.check()?;
        }
        self.rest.extend_from_slice(bytes);
        self.check()?;
        Ok(blocks)
    }

    fn check(&self) -> Result<(), TooLong> {
        let length = self.rest.len() + self.message.data.len();
        if length > MAX_EVENT { Err(TooLong) } else { Ok(()) }
    }

    fn line(&mut self, line: &str) -> Option<Block> {
        if line.is_empty() {
            return self.end_of_block();
        }
        self.has_begun = true;
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.message.kind),
            "data" => {
                // Most events have one such line, so its memory is not larger than needed.
                self.message.data.reserve(value.len() + 1);
                self.message.data.push_str(value);
                self.message.data.push('\n');
            }
            "id" if !value.is_empty() && !value.contains('\0') => self.id = Some(value.to_owned()),
            // A comment, or a field of a later version.
            _ => {}
        }
        None
    }

    fn end_of_block(&mut self) -> Option<Block> {
        if !std::mem::take(&mut self.has_begun) {
            return None;
        }
        let mut message = std::mem::take(&mut self.message);
        let has_data = message.data.pop().is_some();
        Some(Block { id: self.id.take(), message: has_data.then_some(message) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "id: 7\n\n: keep-alive\n\nid: 8\r\nevent: registered\r\ndata: {\"a\":1}\r\n\r\n\
                          data:two\ndata: lines\nretry: 3\n\nid: 9\ndata: cut off";

    fn block(id: Option<&str>, message: Option<(&str, &str)>) -> Block {
        let message = message.map(|(kind, data)| Message { kind: kind.to_owned(), data: data.to_owned() });
        Block { id: id.map(str::to_owned), message }
    }

    #[test]
    fn stream_is_parsed_the_same_however_it_is_split() {
        let expected = vec![
            block(Some("7"), None),
            block(None, None),
            block(Some("8"), Some(("registered", "{\"a\":1}"))),
            block(None, Some(("", "two\nlines"))),
            // Event 9 is incomplete.
        ];
        for size in 1..=STREAM.len() {
            let mut parser = Parser::default();
            let pieces = STREAM.as_bytes().chunks(size);
            let blocks: Vec<_> = pieces.flat_map(|piece| parser.push(piece).unwrap()).collect();
            assert_eq!(blocks, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn id_that_no_request_can_carry_is_ignored() {
        let blocks = Parser::default().push(b"id\n\nid:\n\nid: 1\0\n\nid: 1\nid:\n\n").unwrap();
        let ids: Vec<_> = blocks.iter().map(|block| block.id.as_deref()).collect();
        assert_eq!(ids, [None, None, None, Some("1")]);
    }

    #[test]
    fn parser_never_panics() {
        const PIECES: [&str; 12] =
            ["id: ", "data: ", "event: ", "retry: ", ":", "\n", "\r\n", "\n\n", "\0", "7", "{", "\u{fffd}"];
        bolero::check!().with_type::<(bool, Vec<u8>, u8)>().for_each(|(raw, input, cut)| {
            let pieces = input.iter().flat_map(|byte| PIECES[usize::from(*byte) % PIECES.len()].bytes());
            let stream: Vec<u8> = if *raw { input.clone() } else { pieces.collect() };
            let (mut whole, mut cut_up) = (Parser::default(), Parser::default());
            let expected = whole.push(&stream).unwrap();
            let size = usize::from(*cut).max(1);
            let blocks: Vec<_> = stream.chunks(size).flat_map(|piece| cut_up.push(piece).unwrap()).collect();
            assert_eq!(blocks, expected);
        });
    }

    #[test]
    fn endless_event_is_refused() {
        let mut parser = Parser::default();
        let endless = vec![b'x'; MAX_EVENT / 2];
        assert_eq!(parser.push(&endless), Ok(Vec::new()));
        assert_eq!(parser.push(&endless), Ok(Vec::new()));
        assert_eq!(parser.push(&endless), Err(TooLong));
        // Everything that a registry sends is shorter.
        let long = [b"data: ".as_slice(), &vec![b'x'; 3 * 1_024 * 1_024], b"\n\n"].concat();
        assert_eq!(Parser::default().push(&long).map(|blocks| blocks.len()), Ok(1));
        let mut parser = Parser::default();
        let line = [b"data: ".as_slice(), &endless, b"\n"].concat();
        assert_eq!(parser.push(&line), Ok(Vec::new()));
        assert_eq!(parser.push(&line), Err(TooLong));
    }
}
