//! What a person sees: chapters, plain lines, colours where somebody looks.
//!
//! In: text. Out: standard output. What always holds: no escape code reaches a pipe or a file, `NO_COLOR` is respected, and
//! nothing is said by colour alone.

use std::io::{self, IsTerminal, Write};

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Allowed, or as it must be.
    Green,
    /// Denied.
    Red,
    /// A heading.
    Bold,
    /// Of less weight.
    Dim,
}

/// Standard output.
#[derive(Clone, Copy, Debug)]
pub struct Screen {
    coloured: bool,
    chapters: u8,
}

impl Screen {
    /// For what standard output is now.
    pub fn detect() -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: io::stdout().is_terminal() && !refused, chapters: 0 }
    }

    /// The text in a colour.
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => "32",
            Colour::Red => "31",
            Colour::Bold => "1",
            Colour::Dim => "2",
        };
        if self.coloured { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Begins a chapter.
    pub fn chapter(&mut self, title: &str) {
        self.chapters += 1;
        let title = format!("{}. {title}", self.chapters);
        println!("\n{}\n", self.paint(Colour::Bold, &title));
    }

    /// A line.
    pub fn say(&self, text: &str) {
        println!("  {text}");
    }

    /// Lines of a file or of another program, each in a colour.
    pub fn quote(&self, colour: Colour, text: &str) {
        for line in text.lines() {
            println!("    {}", self.paint(colour, line));
        }
    }

    /// Before somebody else writes to standard output.
    pub fn flush(&self) {
        // Whoever closed it will see nothing of the rest either.
        io::stdout().flush().ok();
    }
}
