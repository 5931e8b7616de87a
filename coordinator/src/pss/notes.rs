//! Power saving's notes in the log that operators read. Kinds and their meaning: docs/events.md.

use kage_coordinator_core::{Note, Severity};
use kage_pss_core::execute::{Kind, Note as PssNote, Severity as PssSeverity};
use kage_types::TransitionRow;

/// Every kind.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Begun => "pss-begun",
        Kind::StepDone => "pss-step-done",
        Kind::StepUndone => "pss-step-undone",
        Kind::StepFailed => "pss-step-failed",
        Kind::NoWake => "pss-no-wake",
        Kind::Stuck => "pss-stuck",
        Kind::Committed => "pss-committed",
        Kind::RolledBack => "pss-rolled-back",
        Kind::Yielded => "pss-yielded",
        Kind::Found => "pss-found",
        Kind::Refused => "pss-refused",
        Kind::StepBegun => "pss-step-begun",
        Kind::Judged => "pss-judged",
        Kind::Unmeasured => "pss-unmeasured",
        Kind::Measured => "pss-measured",
        Kind::Trouble => "pss-trouble",
        Kind::Obstacle => "pss-obstacle",
    }
}

/// An earlier process's transition is gone on with.
pub const RESUMED: &str = "pss-resumed";

pub fn note(note: &PssNote) -> Note {
    let severity = match note.severity {
        PssSeverity::Info => Severity::Info,
        PssSeverity::Warning => Severity::Warning,
        PssSeverity::Alert => Severity::Alert,
    };
    Note { target: None, severity, kind: kind(note.kind).to_owned(), text: note.text.clone() }
}

pub fn resumed(row: &TransitionRow) -> Note {
    let text = format!("transition {} of {} goes on here: its process is gone", row.id, row.by);
    Note { target: None, severity: Severity::Warning, kind: RESUMED.to_owned(), text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_described() {
        const DOCS: &str = include_str!("../../../docs/events.md");
        let all = [
            Kind::Begun,
            Kind::StepDone,
            Kind::StepUndone,
            Kind::StepFailed,
            Kind::NoWake,
            Kind::Stuck,
            Kind::Committed,
            Kind::RolledBack,
            Kind::Yielded,
            Kind::Found,
            Kind::Refused,
            Kind::StepBegun,
            Kind::Judged,
            Kind::Unmeasured,
            Kind::Measured,
            Kind::Trouble,
            Kind::Obstacle,
        ];
        for kind in all.map(kind).into_iter().chain([RESUMED]) {
            assert!(DOCS.contains(&format!("\n| `{kind}` |")), "not in docs/events.md: {kind}");
        }
        assert_eq!(DOCS.matches("\n| `pss-").count(), all.len() + 1);
    }
}
