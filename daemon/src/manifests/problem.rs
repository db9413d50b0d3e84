//! What is wrong in a directory, and where.
//!
//! In: what reading found. Out: values that print as `file:line: namespace/name: field: problem`. What always holds: they
//! sort by place.

use std::fmt;
use std::path::PathBuf;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// Something that is asked for is not enforced as it is written.
    Error,
    /// It is enforced, but perhaps not what was meant.
    Warning,
    /// Worth knowing: an object that is passed over.
    Note,
}

impl Severity {
    /// The word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        }
    }
}

/// A line of a file; line 0 is the file as a whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file.
    pub file: PathBuf,
    /// The line, from 1.
    pub line: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = self.file.strip_prefix(".").unwrap_or(&self.file);
        write!(f, "{}", file.display())?;
        if self.line > 0 { write!(f, ":{}", self.line) } else { Ok(()) }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// How bad.
    pub severity: Severity,
    /// The object, as `namespace/name`; empty where it is not known.
    pub object: String,
    /// The field; empty for the object as a whole.
    pub field: String,
    /// What is wrong.
    pub text: String,
}

impl Problem {
    /// A problem of a file or of one of its lines.
    pub fn new(severity: Severity, file: PathBuf, line: usize, text: impl Into<String>) -> Self {
        Self { place: Place { file, line }, severity, object: String::new(), field: String::new(), text: text.into() }
    }

    /// The same, of this object.
    pub fn of(mut self, object: impl fmt::Display) -> Self {
        self.object = object.to_string();
        self
    }

    /// The same, of this field.
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = field.into();
        self
    }
}

/// `file:line: namespace/name: field: problem`; `warning: ` or `note: ` comes behind the line.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if self.severity != Severity::Error {
            write!(f, "{}: ", self.severity.word())?;
        }
        for part in [&self.object, &self.field].into_iter().filter(|part| !part.is_empty()) {
            write!(f, "{part}: ")?;
        }
        f.write_str(&self.text)
    }
}
