//! Colour and width of the terminal; plain text where there is none.

use std::io::IsTerminal as _;

/// Of a terminal that does not say how wide it is.
const WIDTH: usize = 100;
/// Narrower than this the tables would say nothing.
const NARROWEST: usize = 60;
/// Wider lines are hard to read.
const WIDEST: usize = 160;

/// What a piece of text means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tone {
    /// Nothing special.
    #[default]
    Plain,
    /// A heading, or what is only background.
    Dim,
    /// As it should be.
    Good,
    /// By somebody's will, or on its way.
    Notice,
    /// Somebody should look.
    Bad,
    /// A name.
    Strong,
}

/// How to write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// With escape sequences.
    pub colour: bool,
    /// Longest line.
    pub width: usize,
}

impl Style {
    /// Plain, of a fixed width.
    pub const REPORT: Style = Style { colour: false, width: WIDTH };

    /// Of standard output. `NO_COLOR` and `TERM=dumb` are heeded (no-color.org).
    pub fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { colour: terminal && !dumb && !set("NO_COLOR"), width: size().map_or(WIDTH, |(columns, _)| columns) }
    }

    /// Paint.
    pub fn paint(self, text: &str, tone: Tone) -> String {
        let code = match tone {
            _ if !self.colour || text.is_empty() => return text.to_owned(),
            Tone::Plain => return text.to_owned(),
            Tone::Dim => "2",
            Tone::Good => "32",
            Tone::Notice => "33",
            Tone::Bad => "1;31",
            Tone::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// Columns and rows of the terminal behind standard output.
pub fn size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok()?;
    let columns = usize::from(size.ws_col);
    (columns > 0).then(|| (columns.clamp(NARROWEST, WIDEST), usize::from(size.ws_row)))
}
