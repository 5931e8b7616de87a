//! Tables for people: columns as wide as their content, lines no longer than 100 columns.

/// Longest line that is printed.
const WIDTH: usize = 100;

/// Rows under a heading; the last column is cut where a line would be too long.
pub fn table<const N: usize>(heading: [&str; N], rows: &[[String; N]]) -> String {
    let mut widths = heading.map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let heading = heading.map(str::to_owned);
    let mut text = String::new();
    for row in std::iter::once(&heading).chain(rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(&fit(cells.collect::<Vec<_>>().join("  ").trim_end(), WIDTH));
        text.push('\n');
    }
    text
}

/// Cut with an ellipsis to this many columns.
pub fn fit(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

/// Words on lines of at most 100 columns, each after `indent`.
pub fn wrap(text: &str, indent: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else { continue };
        if !line.is_empty() && indent.len() + line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push(word.to_owned());
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.iter().map(|line| format!("{indent}{line}\n")).collect()
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

    #[test]
    fn lines_are_cut_and_wrapped() {
        let text = table(["A", "B"], &[["x".to_owned(), "y".repeat(200)], ["xyz".to_owned(), String::new()]]);
        assert!(text.lines().all(|line| line.chars().count() <= WIDTH), "{text}");
        assert!(text.lines().nth(1).is_some_and(|line| line.ends_with('…')));
        assert!(wrap(&"word ".repeat(50), "  ").lines().all(|line| line.len() <= WIDTH && line.starts_with("  ")));
    }

    #[test]
    fn times_are_short() {
        for (ms, text) in [(0, "0 ms"), (1000, "1.0 s"), (59_999, "59.9 s"), (60_000, "1 min"), (90_000_000, "1 d")] {
            assert_eq!(ago(ms), text);
        }
    }
}
