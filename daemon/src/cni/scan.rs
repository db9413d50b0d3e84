//! Where values stand in a JSON text.
//!
//! In: a text that is JSON (its reader made sure). Out: the bytes of the elements of its list `plugins`. What always holds: a text that
//! is no JSON gives nothing, never a panic.

use std::ops::Range;

/// The elements of the list under a key of the outermost object.
pub fn elements(text: &str, key: &str) -> Option<Vec<Range<usize>>> {
    let mut scan = Scan { bytes: text.as_bytes(), at: 0 };
    scan.open(b'{')?;
    let mut found = None;
    while scan.peek()? != b'}' {
        let name = scan.value()?;
        scan.expect(b':')?;
        scan.blank();
        let is_wanted =
            text.get(name).is_some_and(|name| serde_json::from_str::<String>(name).is_ok_and(|it| it == key));
        // Of a key that is there twice, readers take the last.
        if is_wanted && scan.peek()? == b'[' {
            found = Some(scan.list()?);
        } else {
            scan.value()?;
        }
        scan.separator()?;
    }
    found
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn blank(&mut self) {
        while self.bytes.get(self.at).is_some_and(u8::is_ascii_whitespace) {
            self.at += 1;
        }
    }

    /// The next byte that is no white space.
    fn peek(&mut self) -> Option<u8> {
        self.blank();
        self.bytes.get(self.at).copied()
    }

    fn expect(&mut self, byte: u8) -> Option<()> {
        (self.peek()? == byte).then(|| self.at += 1)
    }

    fn open(&mut self, byte: u8) -> Option<()> {
        self.expect(byte)
    }

    /// A comma, or the end of what it would go on with.
    fn separator(&mut self) -> Option<()> {
        match self.peek()? {
            b',' => self.expect(b','),
            b'}' | b']' => Some(()),
            _ => None,
        }
    }

    fn list(&mut self) -> Option<Vec<Range<usize>>> {
        self.open(b'[')?;
        let mut elements = Vec::new();
        while self.peek()? != b']' {
            elements.push(self.value()?);
            self.separator()?;
        }
        self.expect(b']')?;
        Some(elements)
    }

    /// Over a value: brackets within it are counted, those in strings are none.
    fn value(&mut self) -> Option<Range<usize>> {
        self.blank();
        let start = self.at;
        let mut depth = 0_usize;
        loop {
            match *self.bytes.get(self.at)? {
                b'"' => self.string()?,
                b'{' | b'[' => {
                    depth += 1;
                    self.at += 1;
                }
                b'}' | b']' if depth > 0 => {
                    depth -= 1;
                    self.at += 1;
                }
                _ if depth > 0 => self.at += 1,
                _ => self.scalar(),
            }
            if depth == 0 {
                return (self.at > start).then_some(start..self.at);
            }
        }
    }

    fn string(&mut self) -> Option<()> {
        self.at += 1;
        loop {
            match *self.bytes.get(self.at)? {
                b'\\' => self.at += 2,
                b'"' => {
                    self.at += 1;
                    return Some(());
                }
                _ => self.at += 1,
            }
        }
    }

    /// A number or a word.
    fn scalar(&mut self) {
        let ends = |byte: &u8| byte.is_ascii_whitespace() || matches!(byte, b',' | b':' | b'}' | b']' | b'"');
        while self.bytes.get(self.at).is_some_and(|byte| !ends(byte)) {
            self.at += 1;
        }
    }
}
