//! The thesis's own logs (figures F4.1 to F4.4) beside ours of the same trouble, line by line.

use std::fmt::Write as _;

use anyhow::{Context, Result};
use serde_json::json;

use super::config::Profile;
use super::msbs::Measurement;
use super::run::{run, text, write};
use super::trouble::{TargetRun, Trouble};
use super::{dirs, trouble::TroubleRun};

/// A log's lines: seconds after its first sign of trouble, and the words; `S` is the service.
type Lines = Vec<(f64, String)>;

/// Figure, seconds between detection and each line, seconds that its client was refused. F4.1 and F4.2 as printed, without
/// the counted seconds; F4.3 and F4.4 by the text that describes them.
const fn printed(trouble: Trouble) -> (&'static str, &'static [(u32, &'static str)], u32) {
    match trouble {
        Trouble::St1 => (
            "F4.1",
            &[
                (0, "Network_is_normal"),
                (0, "S_is_stop_condition"),
                (1, "Network_is_normal"),
                (1, "Start_to_restart_S"),
                (3, "Start_to_check_S"),
                (3, "S_is_normal"),
                (14, "Network_is_normal"),
                (14, "Service_is_normal"),
                (14, "IPR_is_normal"),
            ],
            9,
        ),
        Trouble::St2 => (
            "F4.2",
            &[
                (0, "Network_is_normal"),
                (0, "S_is_stop_condition"),
                (1, "Network_is_normal"),
                (1, "Start_to_restart_S"),
                (3, "Cannot_recover_S_on_IPR"),
                (3, "Remove_virtual_IP_(IPR)"),
                (3, "__Start_of_restart_(IPR)"),
                (3, "Start_of_virtual_server_(IPV)"),
                (5, "Server_start_Complete"),
                (5, "Virtual_IP:_VIP_(IPV)"),
                (51, "__Restart_is_end_(IPR)"),
                (53, "__Recovery_of_S_on_IPR"),
                (53, "__Make_up.file"),
                (54, "Find_up.file"),
                (54, "Virtual_IP:_VIP_(IPV->IPR)"),
                (54, "Suspend_IPV"),
                (55, "Network_is_normal"),
                (55, "Service_is_normal"),
                (55, "IPR_is_normal"),
            ],
            11,
        ),
        Trouble::Nt1 => (
            "F4.3",
            &[
                (0, "IPR_network_is_trouble"),
                (2, "IPR_network_is_trouble"),
                (2, "__Restart_check_(IPR)"),
                (2, "Start_of_virtual_server_(IPV)"),
                (4, "Server_start_Complete"),
                (4, "Virtual_IP:_VIP_(IPV)"),
                (41, "__Restart_is_end_(IPR)"),
                (43, "__IPR_is_normal"),
                (43, "__Make_up.file"),
                (44, "Find_up.file"),
                (44, "Virtual_IP:_VIP_(IPV->IPR)"),
            ],
            11,
        ),
        Trouble::Nt2 => (
            "F4.4",
            &[
                (0, "IPR_network_is_trouble"),
                (2, "IPR_network_is_trouble"),
                (2, "__Restart_check_(IPR)"),
                (2, "Start_of_virtual_server_(IPV)"),
                (4, "Server_start_Complete"),
                (4, "Virtual_IP:_VIP_(IPV)"),
                (62, "__Server_is_down_(IPR)"),
                (62, "__Start_IPR_forcibly"),
                (99, "__Server_start_Complete"),
                (101, "__IPR_is_normal"),
                (101, "__Make_up.file"),
                (102, "Find_up.file"),
                (102, "Virtual_IP:_VIP_(IPV->IPR)"),
            ],
            11,
        ),
    }
}

/// What `kagectl events --format thesis` makes of a run's events.
fn ours(run_of: &TroubleRun, seen: &TargetRun) -> Result<Lines> {
    let kagectl = dirs::binary("kagectl").context("kagectl is not built; tests/lab builds it")?;
    let file = std::env::temp_dir().join(format!("kage-events-{}.jsonl", std::process::id()));
    let mut events = String::new();
    for (number, (after_ms, kind, text)) in seen.log.iter().enumerate() {
        // From the beginning of a day on: a log has the time of day only, and none of ours is a day long.
        let event = json!({ "seq": number + 1, "unix_ms": after_ms.max(&0), "kind": kind, "text": text,
                            "target": seen.target, "severity": "info" });
        let _ = writeln!(events, "{event}");
    }
    write(&file, events)?;
    let log = run(&["env", "TZ=UTC", &text(&kagectl), "events", "--file", &text(&file), "--format", "thesis"]);
    let _ = std::fs::remove_file(&file);
    let mut lines = Lines::new();
    for line in log.with_context(|| format!("the log of {}", run_of.folder.display()))?.lines() {
        let Some((clock, words)) = line.split_once(' ') else { continue };
        let mut parts = clock.split(':').map(str::parse::<f64>);
        if let (Some(Ok(hour)), Some(Ok(minute)), Some(Ok(second))) = (parts.next(), parts.next(), parts.next())
            && words != "Wait"
        {
            lines.push((hour.mul_add(3600.0, minute.mul_add(60.0, second)), words.replace("smtp", "S")));
        }
    }
    let first = lines.first().map_or(0.0, |(at, _)| *at);
    lines.iter_mut().for_each(|(at, _)| *at -= first);
    Ok(lines)
}

/// Lines with the same words side by side, as many as can be in order; the others alone.
fn side_by_side(left: &Lines, right: &Lines) -> Vec<(Option<usize>, Option<usize>)> {
    let mut longest = vec![vec![0_usize; right.len() + 1]; left.len() + 1];
    for l in (0..left.len()).rev() {
        for r in (0..right.len()).rev() {
            longest[l][r] = if left[l].1 == right[r].1 {
                longest[l + 1][r + 1] + 1
            } else {
                longest[l + 1][r].max(longest[l][r + 1])
            };
        }
    }
    let (mut l, mut r, mut rows) = (0, 0, Vec::new());
    while l < left.len() || r < right.len() {
        let both = l < left.len() && r < right.len();
        if both && left[l].1 == right[r].1 {
            rows.push((Some(l), Some(r)));
            (l, r) = (l + 1, r + 1);
        } else if r == right.len() || (both && longest[l + 1][r] >= longest[l][r + 1]) {
            rows.push((Some(l), None));
            l += 1;
        } else {
            rows.push((None, Some(r)));
            r += 1;
        }
    }
    rows
}

/// The page: each trouble of Mail alone at profile `thesis`, its first run without problems.
///
/// # Errors
/// kagectl is not built, or does not understand the events.
pub fn page(measurement: &Measurement, stale: Option<&str>) -> Result<String> {
    let mut text = String::from(
        "# The thesis's logs beside ours\n\nGenerated by `tests/campaign msbs --table` from `msbs.json`: Mail, profile \
         `thesis`, the first run of each trouble. Seconds after the first sign of trouble in the log, as \
         `kagectl events --format thesis` writes it (docs/events.md); `S` is the service; counted and waited seconds are \
         left out. F4.1 and F4.2 as printed, F4.3 and F4.4 by the text that describes them.\n",
    );
    for trouble in Trouble::ALL {
        let known = measurement
            .runs
            .iter()
            .map(|known| &known.run)
            .find(|run| run.profile == Profile::Thesis && run.troubles == [trouble] && run.problems.is_empty());
        let Some((run, seen)) = known.and_then(|run| Some((run, run.targets.first()?))) else { continue };
        let (figure, lines, refused) = printed(trouble);
        let theirs: Lines = lines.iter().map(|(at, words)| (f64::from(*at), (*words).to_owned())).collect();
        let ours = ours(run, seen)?;
        let _ = write!(text, "\n## {} ({figure})\n\n| Line | thesis, s | ours, s |\n|---|---|---|\n", trouble.name());
        for (left, right) in side_by_side(&theirs, &ours) {
            let at = |place: Option<usize>, lines: &Lines| {
                place.map_or_else(String::new, |place| format!("{:.0}", lines[place].0))
            };
            let words = left.map(|left| &theirs[left].1).or_else(|| right.map(|right| &ours[right].1));
            let words = words.map_or("", String::as_str);
            let _ = writeln!(text, "| `{words}` | {} | {} |", at(left, &theirs), at(right, &ours));
        }
        let _ = writeln!(text, "| client: `XX` for | {refused} | {:.0} |", seen.client_s);
    }
    if let Some(reason) = stale {
        let _ = write!(text, "\n**Older than the code it measures:** {reason}.\n");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_words_stand_side_by_side_in_order() {
        let lines = |words: &[&str]| words.iter().map(|word| (0.0, (*word).to_owned())).collect::<Lines>();
        let rows = side_by_side(&lines(&["a", "b", "c", "b"]), &lines(&["b", "x", "c", "d"]));
        assert_eq!(
            rows,
            [
                (Some(0), None),
                (Some(1), Some(0)),
                (None, Some(1)),
                (Some(2), Some(2)),
                (Some(3), None),
                (None, Some(3)),
            ]
        );
    }
}
