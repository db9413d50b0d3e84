//! Text for people: aligned columns, and colours where a person looks.
//!
//! In: cells. Out: lines. What always holds: no escape code reaches a pipe or a file, and `NO_COLOR` is respected.

use std::io::{self, IsTerminal, Write};

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// Wrong.
    Red,
    /// As it shall be.
    Green,
    /// To be looked at.
    Yellow,
    /// A heading.
    Bold,
    /// Of less weight.
    Dim,
}

/// Whether standard output takes colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    coloured: bool,
}

impl Style {
    /// For what standard output is now.
    pub fn detect() -> Self {
        Self {
            coloured: io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        }
    }

    /// Without colours.
    #[cfg(test)]
    pub const fn plain() -> Self {
        Self { coloured: false }
    }

    /// The text in a colour.
    pub fn paint(self, colour: Colour, text: &str) -> String {
        if !self.coloured {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Red => "31",
            Colour::Green => "32",
            Colour::Yellow => "33",
            Colour::Bold => "1",
            Colour::Dim => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// A cell of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell {
    text: String,
    colour: Option<Colour>,
    right: bool,
}

impl Cell {
    /// Text, to the left.
    pub fn text(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: None, right: false }
    }

    /// A number, to the right.
    pub fn number(number: u64) -> Self {
        Self { text: number.to_string(), colour: None, right: true }
    }

    /// The same in a colour.
    pub fn in_colour(mut self, colour: Colour) -> Self {
        self.colour = Some(colour);
        self
    }
}

/// Rows under a heading; a heading over numbers stands to the right too.
pub fn table(style: Style, heading: &[&str], rows: &[Vec<Cell>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count());
        cells.chain([heading[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..heading.len()).map(width).collect();
    let first = rows.first();
    let headings: Vec<Cell> = heading
        .iter()
        .enumerate()
        .map(|(column, text)| Cell {
            text: (*text).to_owned(),
            colour: Some(Colour::Bold),
            right: first.and_then(|row| row.get(column)).is_some_and(|cell| cell.right),
        })
        .collect();
    std::iter::once(&headings).chain(rows).map(|cells| row(style, cells, &widths)).collect()
}

/// One row of columns that are at least this wide.
pub fn row(style: Style, row: &[Cell], widths: &[usize]) -> String {
    let mut line = String::new();
    for (position, (cell, width)) in row.iter().zip(widths).enumerate() {
        let padding = " ".repeat(width.saturating_sub(cell.text.chars().count()));
        let text = cell.colour.map_or_else(|| cell.text.clone(), |colour| style.paint(colour, &cell.text));
        let is_last = position + 1 == row.len();
        match (cell.right, is_last) {
            (true, _) => line.extend([padding.as_str(), &text]),
            (false, true) => line.push_str(&text),
            (false, false) => line.extend([text.as_str(), &padding]),
        }
        if !is_last {
            line.push_str("  ");
        }
    }
    line.push('\n');
    line
}

/// Prints; a reader that went away (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [
            vec![Cell::text("a"), Cell::number(5), Cell::text("x")],
            vec![Cell::text("longer"), Cell::number(1234), Cell::text("y")],
        ];
        let expected = "NAME    COUNT  WHAT\na           5  x\nlonger   1234  y\n";
        assert_eq!(table(Style::plain(), &["NAME", "COUNT", "WHAT"], &rows), expected);
    }

    #[test]
    fn colours_do_not_move_columns() {
        let style = Style { coloured: true };
        let rows = [vec![Cell::text("a").in_colour(Colour::Red), Cell::text("b")]];
        assert!(table(style, &["X1", "Y"], &rows).contains("\x1b[31ma\x1b[0m   b"));
    }
}
