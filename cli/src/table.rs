//! Tables with aligned columns.

use std::io::{self, Write};

/// Rows of text; the first row is the head. A column is aligned to the right if its head begins with a space.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new<S: Into<String>>(head: impl IntoIterator<Item = S>) -> Self {
        Self {
            rows: vec![head.into_iter().map(Into::into).collect()],
        }
    }

    pub(super) fn row<S: Into<String>>(&mut self, cells: impl IntoIterator<Item = S>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() == 1
    }

    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let head = &self.rows[0];
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.trim().chars().count()).max().unwrap_or_default()
        };
        let widths: Vec<usize> = (0..head.len()).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for ((cell, head), width) in row.iter().zip(head).zip(&widths) {
                let cell = cell.trim();
                let gap = " ".repeat(width.saturating_sub(cell.chars().count()));
                let (before, after) = if head.starts_with(' ') {
                    (&*gap, "")
                } else {
                    ("", &*gap)
                };
                line.extend([before, cell, after, "  "]);
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_left_or_right_by_their_heads() {
        let mut table = Table::new(["app", " accepted"]);
        table.row(["shop", "7"]);
        table.row(["a", "12345"]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert_eq!(text, "app   accepted\nshop         7\na        12345\n");
    }
}
