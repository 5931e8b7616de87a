//! Small readers over a parsed TOML document that go on after a fault, so that one run names them all.

use super::{
    Fault,
    keys::{Key, Section},
};
use jiff::SignedDuration;
use std::{collections::BTreeSet, fmt::Display, ops::Range, str::FromStr, time::Duration};
use toml::{
    Spanned,
    de::{DeArray, DeTable, DeValue},
};

/// Shown of a faulty value.
const MAX_SHOWN: usize = 60;

/// A value and where it stands.
pub type Given<T> = Spanned<T>;

/// What was found so far.
pub struct Faults<'t> {
    text: &'t str,
    /// Of syntax: where they are, what is missing elsewhere may only be unreadable.
    broken: BTreeSet<usize>,
    faults: Vec<Fault>,
}

impl<'t> Faults<'t> {
    /// None yet in this text.
    pub fn new(text: &'t str) -> Self {
        Self { text, broken: BTreeSet::new(), faults: Vec::new() }
    }

    /// Read the document. What can be read in spite of faults of syntax is.
    pub fn document(&mut self) -> Spanned<DeTable<'t>> {
        let (document, errors) = DeTable::parse_recoverable(self.text);
        for error in errors {
            let line = self.line(error.span().map_or(0, |span| span.start));
            // One slip often causes several complaints: the first of a line is the one to mend.
            if self.broken.insert(line) {
                let shown = self.text.lines().nth(line - 1).unwrap_or_default().trim();
                let text = format!("{}: no TOML: {}", shorten(shown), error.message());
                self.faults.push(Fault { line, text });
            }
        }
        document
    }

    /// The line of a byte, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1
    }

    /// What stands there, on one line.
    pub fn source(&self, span: Range<usize>) -> String {
        shorten(self.text.get(span).unwrap_or_default())
    }

    /// How many so far?
    pub fn count(&self) -> usize {
        self.faults.len()
    }

    /// Is it no TOML somewhere?
    pub fn is_broken(&self) -> bool {
        !self.broken.is_empty()
    }

    /// A fault of what stands there.
    pub fn at(&mut self, span: Range<usize>, text: String) {
        let line = self.line(span.start);
        // A line that is no TOML was complained about already.
        if !self.broken.contains(&line) {
            self.faults.push(Fault { line, text });
        }
    }

    /// A fault of what does not stand anywhere: not to be told from what could not be read.
    pub fn missing(&mut self, span: Range<usize>, text: String) {
        if self.broken.is_empty() {
            self.at(span, text);
        }
    }

    /// A value that can't be used: named as written.
    pub fn value(&mut self, place: &str, key: &str, span: Range<usize>, reason: impl Display) {
        let source = self.text.get(span.clone()).unwrap_or_default();
        self.at(span, format!("{place}: {key} = {}: {reason}", shorten(source)));
    }

    /// All, in the order of their lines.
    ///
    /// # Errors
    /// If there is any.
    pub fn end(mut self) -> Result<(), Vec<Fault>> {
        if self.faults.is_empty() {
            return Ok(());
        }
        self.faults.sort_by_key(|fault| fault.line);
        Err(self.faults)
    }
}

/// One line of at most [`MAX_SHOWN`] characters.
fn shorten(source: &str) -> String {
    let line = source.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= MAX_SHOWN { line } else { line.chars().take(MAX_SHOWN).collect::<String>() + "…" }
}

/// A type's name in the words of the file.
fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a float",
        DeValue::Boolean(_) => "a boolean",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}

/// A table of the document.
pub struct Table<'a, 'i> {
    /// How faults name it: `[[target]] mail`.
    pub place: String,
    /// Where it stands.
    pub span: Range<usize>,
    section: &'static Section,
    entries: &'a DeTable<'i>,
}

impl<'a, 'i> Table<'a, 'i> {
    /// The whole document.
    pub fn root(faults: &mut Faults<'_>, section: &'static Section, entries: &'a DeTable<'i>) -> Self {
        let table = Self { place: "top level".into(), span: 0..0, section, entries };
        table.unknown_keys(faults);
        table
    }

    fn open(
        faults: &mut Faults<'_>,
        place: String,
        section: &'static Section,
        key: &str,
        value: &'a Spanned<DeValue<'i>>,
    ) -> Option<Self> {
        let DeValue::Table(entries) = value.get_ref() else {
            faults.value(&place, key, value.span(), format!("{} where a table is wanted", kind(value.get_ref())));
            return None;
        };
        Some(Self { place, span: value.span(), section, entries })
    }

    fn unknown_keys(&self, faults: &mut Faults<'_>) {
        for key in self.entries.keys() {
            let name = key.get_ref().as_ref();
            if self.section.keys.iter().any(|known| known.name == name) {
                continue;
            }
            let hint = match nearest(name, self.section.keys.iter().map(|key| key.name)) {
                Some(nearest) => format!("did you mean {nearest}?"),
                None => format!("known here: {}", list(self.section.keys)),
            };
            faults.at(key.span(), format!("{}: unknown key {name}: {hint}", self.place));
        }
    }

    fn value(&self, key: &str) -> Option<&'a Spanned<DeValue<'i>>> {
        debug_assert!(self.section.keys.iter().any(|known| known.name == key), "{key} is not in the list of keys");
        self.entries.get(key)
    }

    /// Does the key stand there, good or bad?
    pub fn has(&self, key: &str) -> bool {
        self.entries.contains_key(key)
    }

    /// Where the key's value stands, or the table where it should.
    pub fn span_of(&self, key: &str) -> Range<usize> {
        self.entries.get(key).map_or_else(|| self.span.clone(), Spanned::span)
    }

    /// The value of a key that must stand there.
    pub fn required<T>(&self, faults: &mut Faults<'_>, key: &str, value: Option<T>) -> Option<T> {
        if value.is_none() && !self.has(key) {
            let about = self.section.keys.iter().find(|known| known.name == key).map_or("", |key| key.about);
            faults.missing(self.span.clone(), format!("{}: {key} is missing: {about}", self.place));
        }
        value
    }

    /// A table of its own.
    pub fn table(&self, faults: &mut Faults<'_>, key: &str, section: &'static Section) -> Option<Table<'a, 'i>> {
        let place = if self.place.starts_with("[[") { format!("{} {key}", self.place) } else { format!("[{key}]") };
        let table = Table::open(faults, place, section, key, self.value(key)?)?;
        table.unknown_keys(faults);
        Some(table)
    }

    /// An array of tables. Each is named in faults by its `name`.
    pub fn tables(&self, faults: &mut Faults<'_>, key: &str, section: &'static Section) -> Vec<Table<'a, 'i>> {
        let Some(value) = self.value(key) else { return Vec::new() };
        let DeValue::Array(items) = value.get_ref() else {
            let reason = format!("{} where a list of tables is wanted: write [[{key}]]", kind(value.get_ref()));
            faults.at(value.span(), format!("{}: {key}: {reason}", self.place));
            return Vec::new();
        };
        let mut tables = Vec::new();
        for (index, item) in items.iter().enumerate() {
            let named = item.get_ref().get("name").and_then(|name| name.get_ref().as_str());
            let named = named.map_or_else(|| format!("#{}", index + 1), str::to_owned);
            let place = if self.place.starts_with("[[") {
                format!("{} {key} {named}", self.place)
            } else {
                format!("[[{key}]] {named}")
            };
            if let Some(table) = Table::open(faults, place, section, key, item) {
                table.unknown_keys(faults);
                tables.push(table);
            }
        }
        tables
    }

    fn wrong(&self, faults: &mut Faults<'_>, key: &str, value: &Spanned<DeValue<'_>>, wanted: &str) {
        faults.value(&self.place, key, value.span(), format!("{} where {wanted} is wanted", kind(value.get_ref())));
    }

    /// A string.
    pub fn string(&self, faults: &mut Faults<'_>, key: &str) -> Option<Given<String>> {
        let value = self.value(key)?;
        let DeValue::String(text) = value.get_ref() else {
            self.wrong(faults, key, value, "a string");
            return None;
        };
        Some(Given::new(value.span(), text.to_string()))
    }

    /// A string that is one of these words.
    pub fn choice<T: Copy>(&self, faults: &mut Faults<'_>, key: &str, words: &[(&str, T)]) -> Option<T> {
        let text = self.string(faults, key)?;
        let found = words.iter().find(|(word, _)| word == text.get_ref()).map(|(_, value)| *value);
        if found.is_none() {
            let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            let hint = nearest(text.get_ref(), all.iter().copied())
                .map_or_else(String::new, |nearest| format!("; did you mean {nearest:?}?"));
            faults.value(&self.place, key, text.span(), format!("none of {}{hint}", all.join(", ")));
        }
        found
    }

    /// A string that can be understood; `wanted` says as what.
    pub fn parsed<T: FromStr>(&self, faults: &mut Faults<'_>, key: &str, wanted: &str) -> Option<Given<T>> {
        let text = self.string(faults, key)?;
        match text.get_ref().parse() {
            Ok(value) => Some(Given::new(text.span(), value)),
            Err(_) => {
                faults.value(&self.place, key, text.span(), wanted);
                None
            }
        }
    }

    /// A duration above zero.
    pub fn duration(&self, faults: &mut Faults<'_>, key: &str) -> Option<Given<Duration>> {
        const WANTED: &str = "give a duration above zero such as \"2s\" or \"500ms\"";
        let given: Given<SignedDuration> = self.parsed(faults, key, WANTED)?;
        match Duration::try_from(*given.get_ref()) {
            Ok(duration) if !duration.is_zero() => Some(Given::new(given.span(), duration)),
            Ok(_) | Err(_) => {
                faults.value(&self.place, key, given.span(), WANTED);
                None
            }
        }
    }

    /// true or false.
    pub fn boolean(&self, faults: &mut Faults<'_>, key: &str) -> Option<bool> {
        let value = self.value(key)?;
        let DeValue::Boolean(given) = value.get_ref() else {
            self.wrong(faults, key, value, "true or false");
            return None;
        };
        Some(*given)
    }

    /// An integer within limits.
    pub fn integer(&self, faults: &mut Faults<'_>, key: &str, limits: Range<u32>) -> Option<Given<u32>> {
        let value = self.value(key)?;
        let DeValue::Integer(integer) = value.get_ref() else {
            self.wrong(faults, key, value, "an integer");
            return None;
        };
        match u32::from_str_radix(integer.as_str(), integer.radix()) {
            Ok(number) if limits.contains(&number) => Some(Given::new(value.span(), number)),
            Ok(_) | Err(_) => {
                let reason = format!("give {} to {}", limits.start, limits.end - 1);
                faults.value(&self.place, key, value.span(), reason);
                None
            }
        }
    }

    fn array(&self, faults: &mut Faults<'_>, key: &str) -> Option<Spanned<&'a DeArray<'i>>> {
        let value = self.value(key)?;
        let DeValue::Array(items) = value.get_ref() else {
            self.wrong(faults, key, value, "a list of strings");
            return None;
        };
        Some(Spanned::new(value.span(), items))
    }

    /// A list of strings that can be understood. Those that can't are reported and left out.
    pub fn list<T: FromStr>(&self, faults: &mut Faults<'_>, key: &str, wanted: &str) -> Option<Vec<Given<T>>> {
        let items = self.array(faults, key)?.into_inner();
        let mut list = Vec::new();
        for item in items {
            let DeValue::String(text) = item.get_ref() else {
                self.wrong(faults, key, item, "a string");
                continue;
            };
            match text.parse() {
                Ok(value) => list.push(Given::new(item.span(), value)),
                Err(_) => faults.value(&self.place, key, item.span(), wanted),
            }
        }
        Some(list)
    }
}

fn list(keys: &[Key]) -> String {
    keys.iter().map(|key| key.name).collect::<Vec<_>>().join(", ")
}

/// The known word that was probably meant: at most a third of its letters differ.
pub fn nearest<'w>(word: &str, known: impl Iterator<Item = &'w str>) -> Option<&'w str> {
    let close = known.map(|known| (distance(word, known), known)).min()?;
    (close.0 <= close.1.len().max(3) / 3).then_some(close.1)
}

/// Letters to add, drop, change or swap with their neighbour (optimal string alignment).
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let changed = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut best = changed.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(before[j - 2] + 1);
            }
            row.push(best);
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_of_the_finger_are_understood() {
        assert_eq!(distance("healthy_fro", "healthy_for"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(nearest("helthy_for", ["healthy_for", "failback"].into_iter()), Some("healthy_for"));
        assert_eq!(nearest("colour", ["healthy_for", "failback"].into_iter()), None);
    }
}
