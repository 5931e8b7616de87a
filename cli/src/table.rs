//! Tables for people: columns as wide as their content, lines no longer than the terminal.

use crate::style::{Style, Tone};

/// A cell: what it says and how.
#[derive(Clone, Debug, Default)]
pub struct Cell {
    text: String,
    tone: Tone,
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        Self { text, tone: Tone::Plain }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

/// A cell that means something.
pub fn cell(text: impl Into<String>, tone: Tone) -> Cell {
    Cell { text: text.into(), tone }
}

/// Rows under a heading, each with lines of its own under it; what does not fit is cut.
pub fn sheet<const N: usize>(style: Style, heading: [&str; N], rows: &[([Cell; N], Vec<String>)]) -> String {
    let mut widths = heading.map(|text| text.chars().count());
    for (row, _) in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.chars().count());
        }
    }
    let mut text = String::new();
    line(style, &heading.map(|text| cell(text, Tone::Dim)), widths, &mut text);
    for (row, under) in rows {
        line(style, row, widths, &mut text);
        under.iter().for_each(|line| text.push_str(line));
    }
    text
}

fn line<const N: usize>(style: Style, row: &[Cell; N], widths: [usize; N], text: &mut String) {
    let mut left = style.width;
    let last = row.iter().rposition(|cell| !cell.text.is_empty()).unwrap_or(0);
    for (index, (cell, width)) in row.iter().zip(widths).enumerate().take(last + 1) {
        let gap = if index == 0 { 0 } else { 2 };
        if left <= gap {
            break;
        }
        left -= gap;
        let shown = fit(&cell.text, left.min(width));
        let padding = if index == last { 0 } else { width.min(left) - shown.chars().count() };
        left -= shown.chars().count() + padding;
        text.push_str(&" ".repeat(gap));
        text.push_str(&style.paint(&shown, cell.tone));
        text.push_str(&" ".repeat(padding));
    }
    text.push('\n');
}

/// A table without colour, for reports.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<_> = rows.iter().map(|row| (row.clone().map(Cell::from), Vec::new())).collect();
    sheet(Style::REPORT, heading, &rows)
}

/// Words on lines of a report, each after `indent`.
pub fn wrap(text: &str, indent: &str) -> String {
    paragraph(Style::REPORT, indent, text, Tone::Plain)
}

/// A column of text narrower than this is hard to read.
const NARROW: usize = 24;

/// Before text that found no room beside its name.
const INDENT: &str = "    ";

/// Cut with an ellipsis to this many columns.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Words on lines that fit, the first after `first`, the others after as many blanks.
pub fn paragraph(style: Style, first: &str, text: &str, tone: Tone) -> String {
    let indent = first.chars().count();
    if indent > INDENT.len() && indent + NARROW > style.width {
        // A long name, a small terminal: the text begins on its own line.
        let name = style.paint(&fit(first.trim_end(), style.width), tone);
        return format!("{name}\n{}", paragraph(style, INDENT, text, tone));
    }
    let room = style.width.saturating_sub(indent).max(1);
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word = fit(word, room);
        let Some(line) = lines.last_mut() else { continue };
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room {
            lines.push(word);
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(&word);
        }
    }
    let begin = |index| if index == 0 { style.paint(first, tone) } else { " ".repeat(indent) };
    lines.iter().enumerate().map(|(index, line)| format!("{}{}\n", begin(index), style.paint(line, tone))).collect()
}

/// Milliseconds as people say them: 350 ms, 2.1 s, 4 min, 3 h, 2 d.
pub fn ago(ms: u64) -> String {
    const SECOND: u64 = 1000;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    match ms {
        0..SECOND => format!("{ms} ms"),
        SECOND..MINUTE => format!("{}.{} s", ms / SECOND, ms % SECOND / 100),
        MINUTE..HOUR => format!("{} min", ms / MINUTE),
        HOUR..DAY => format!("{} h", ms / HOUR),
        DAY.. => format!("{} d", ms / DAY),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Style = Style { colour: false, width: 80 };

    #[test]
    fn lines_are_cut_and_wrapped() {
        let rows = [(["x".into(), "y".repeat(200).into()], vec![]), (["xyz".into(), Cell::default()], vec![])];
        let text = sheet(PLAIN, ["A", "B"], &rows);
        assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with('…')));
        let wrapped = paragraph(PLAIN, "ALERT ", &"word ".repeat(50), Tone::Bad);
        assert!(wrapped.lines().all(|line| line.len() <= 80), "{wrapped}");
        assert!(wrapped.lines().skip(1).all(|line| line.starts_with("      word")), "{wrapped}");
    }

    #[test]
    fn colour_does_not_shift_columns() {
        let rows = [(["ok".into(), "1".into()], vec![]), ([cell("bad", Tone::Bad), "2".into()], vec![])];
        let plain = sheet(PLAIN, ["A", "B"], &rows);
        let painted = sheet(Style { colour: true, ..PLAIN }, ["A", "B"], &rows);
        let mut bare = painted;
        for code in ["\x1b[2m", "\x1b[1;31m", "\x1b[0m"] {
            bare = bare.replace(code, "");
        }
        assert_eq!(bare, plain);
    }

    #[test]
    fn times_are_short() {
        for (ms, text) in [(0, "0 ms"), (1000, "1.0 s"), (59_999, "59.9 s"), (60_000, "1 min"), (90_000_000, "1 d")] {
            assert_eq!(ago(ms), text);
        }
    }
}
