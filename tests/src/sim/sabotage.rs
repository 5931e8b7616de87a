//! Every rule broken once, to prove that the checks would notice.

use super::checks::{Broken, Failure, PROMISES, promise};
use super::exhaust;
use super::kernel::KernelSabotage;
use super::run::Options;
use super::scenario::{self, Scenario};
use super::search::search;
use super::world::Sabotage;
use std::{fmt, fmt::Write as _, path::Path};

/// Where the table is kept.
pub const DOCUMENT: &str = "docs/measurements/sabotage.md";

/// All of them, with the rule of docs/safety.md that each breaks.
pub const ALL: [(&str, Sabotage); 14] = [
    ("grant counted from receipt (rule 2)", Sabotage::Agent(kage_agent_core::Sabotage::GrantFromReceipt)),
    ("unconditional renewal (rule 3)", Sabotage::Kernel(KernelSabotage::UnconditionalRenewal)),
    ("live without armed (rule 3)", Sabotage::Kernel(KernelSabotage::LiveWithoutArmed)),
    ("add taken for refresh (rule 3)", Sabotage::Kernel(KernelSabotage::AddTakenForRefresh)),
    ("keep without majority (rule 6)", Sabotage::Agent(kage_agent_core::Sabotage::KeepWithoutMajority)),
    ("patience without bars (rule 6)", Sabotage::Coordinator(kage_coordinator_core::Sabotage::PatienceWithoutBars)),
    ("no wait after a new term (rule 7)", Sabotage::Coordinator(kage_coordinator_core::Sabotage::NoWaitAfterNewTerm)),
    (
        "guard opened before the epoch is durable (rule 5)",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OpenBeforeDurable),
    ),
    (
        "release acknowledged before its term is durable (rule 7)",
        Sabotage::Agent(kage_agent_core::Sabotage::ReleaseBeforeDurable),
    ),
    ("SIF answers before the disk (rule 5)", Sabotage::Sif(kage_sif_core::Sabotage::ReplyBeforeDurable)),
    (
        "single writer not fenced (never two writers)",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::WriterUnproven),
    ),
    ("release acknowledged while its writers run (never two writers)", Sabotage::ReleaseBeforeQuiet),
    ("asks too seldom (stalls cost nothing)", Sabotage::Agent(kage_agent_core::Sabotage::AsksTooSeldom)),
    (
        "an owner without its address is not told again (heals)",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::NotToldAgain),
    ),
];

/// Rules that the random search does not look at: the promise, the scenario of `tests/scenarios` that notices.
pub const SCENARIOS: [(&str, Sabotage, Broken, &str); 4] = [
    (
        "no storm brake",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::NoStormBrake),
        Broken::Storm,
        "half-dark.toml",
    ),
    (
        "orders ignored",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OrdersIgnored),
        Broken::Withheld,
        "maintenance.toml",
    ),
    (
        "opened before the double runs",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::OpenBeforeDoubleRuns),
        Broken::DoubleAsleep,
        "libvirt-hangs.toml",
    ),
    (
        "stranger ignored",
        Sabotage::Coordinator(kage_coordinator_core::Sabotage::StrangerIgnored),
        Broken::StrangerIgnored,
        "stranger.toml",
    ),
];

/// A sabotage by words of its name.
#[must_use]
pub fn named(words: &str) -> Option<Sabotage> {
    let all = ALL.iter().map(|(name, broken)| (name, broken));
    let scenarios = SCENARIOS.iter().map(|(name, broken, ..)| (name, broken));
    all.chain(scenarios).find(|(name, _)| name.contains(words)).map(|(_, broken)| *broken)
}

/// All names.
pub fn names() -> impl Iterator<Item = &'static str> {
    ALL.iter().map(|(name, _)| *name).chain(SCENARIOS.iter().map(|(name, ..)| *name))
}

/// One sabotage, and what noticed it.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// The promise that it broke.
    pub promise: String,
    /// By chance: the first seed, what was seen. None: not within so many, or not looked for.
    pub search: Option<(u64, String)>,
    /// In the small scope: its name, how many states were met before, the shortest way.
    pub scope: Option<(String, usize, Vec<String>)>,
    /// By a scenario: its file, the first seed, how.
    pub scenario: Option<(String, u64, String)>,
}

impl Row {
    /// Something noticed.
    #[must_use]
    pub fn caught(&self) -> bool {
        self.search.is_some() || self.scope.is_some() || self.scenario.is_some()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:<15} {:<66}", self.promise, self.name)?;
        if let Some((seed, how)) = &self.search {
            write!(f, " seed {seed:>4}: {how};")?;
        }
        if let Some((scope, states, way)) = &self.scope {
            write!(f, " small scope ({scope}): {states} states, {} steps;", way.len())?;
        }
        if let Some((file, seed, how)) = &self.scenario {
            write!(f, " {file} seed {seed}: {how}")?;
        }
        if self.caught() { Ok(()) } else { f.write_str(" NOT CAUGHT") }
    }
}

/// Break this rule, and see what notices.
///
/// # Errors
/// A scenario can't be read: it is looked for below the current folder.
pub fn row(name: &str, options: &Options, seeds: u64, jobs: usize) -> Result<Row, String> {
    let mut row = Row { name: name.to_owned(), ..Row::default() };
    if let Some((_, broken)) = ALL.iter().find(|(known, _)| *known == name) {
        if let Some((seed, failure)) = caught(*broken, options, seeds, jobs) {
            promise(failure.broken).clone_into(&mut row.promise);
            row.search = Some((seed, failure.text));
        }
        row.scope = exhaust::found(*broken);
    }
    if let Some((_, broken, kept, file)) = SCENARIOS.iter().find(|(known, ..)| *known == name) {
        let path = Path::new("tests/scenarios").join(file);
        let scenario = scenario::load(&path).map_err(|error| error.to_string())?;
        promise(*kept).clone_into(&mut row.promise);
        let found = noticed(&scenario, *broken, *kept, seeds.min(50));
        row.scenario = found.map(|(seed, how)| ((*file).to_owned(), seed, how));
    }
    Ok(row)
}

/// All of them, as a page.
#[must_use]
pub fn table(rows: &[Row]) -> String {
    let mut page = "# Broken on purpose\n\nGenerated by `simulate lease --sabotage all --hours 10 --seeds 1..500 --table`: each rule \
         broken once, and what noticed.\nA number of seeds is how many the random search ran until then; a small scope is explored \
         breadth first, so the way\nto the broken promise is the shortest there is.\n\n| Promise | Sabotage | Random search: seeds | Small scope: states, steps of the shortest way | Scenario |\n\
         |---|---|---|---|---|\n"
        .to_owned();
    for row in rows {
        let dash = || "–".to_owned();
        let search = row.search.as_ref().map_or_else(dash, |(seed, _)| seed.to_string());
        let scope = row.scope.as_ref();
        let scope =
            scope.map_or_else(dash, |(scope, states, way)| format!("{states} states, {} steps ({scope})", way.len()));
        let scenario = row.scenario.as_ref().map_or_else(dash, |(file, seed, _)| format!("{file}, seed {seed}"));
        let promise = if row.caught() { &row.promise } else { "NOT CAUGHT" };
        let _ = writeln!(page, "| `{promise}` | {} | {search} | {scope} | {scenario} |", row.name);
    }
    page += "\nThe promises: [simulation.md](../simulation.md). A dash: not of its kind, or not found within its bounds.\n\n\
             ## The shortest ways\n\nEach line: the time in steps of R, and what happens.\n";
    for (row, (scope, _, way)) in rows.iter().filter_map(|row| Some((row, row.scope.as_ref()?))) {
        let _ = writeln!(page, "\n**{}** ({scope})\n\n```text\n{}\n```", row.name, way.join("\n"));
    }
    page
}

/// The first seed by which this scenario notices it, within so many, and how.
#[must_use]
pub fn noticed(scenario: &Scenario, sabotage: Sabotage, promise: Broken, seeds: u64) -> Option<(u64, String)> {
    let (_, name, _) = PROMISES.iter().find(|(broken, ..)| *broken == promise)?;
    (1..=seeds).find_map(|seed| {
        let (outcome, _) = super::scenario::run(scenario, seed, Some(sabotage), 0).ok()?;
        let broken = outcome.promises.into_iter().find(|promise| promise.name == *name)?;
        Some((seed, broken.broken_by?))
    })
}

/// The first seed that catches it, within so many, and how.
#[must_use]
pub fn caught(sabotage: Sabotage, options: &Options, seeds: u64, jobs: usize) -> Option<(u64, Failure)> {
    let options = Options { sabotage: Some(sabotage), ..*options };
    // In slices: the first seed is wanted, not all of them.
    let slice = 16;
    (0..seeds.div_ceil(slice)).find_map(|index| {
        let first = 1 + index * slice;
        search(first, (first + slice - 1).min(seeds), &options, jobs, false).0.failure
    })
}
