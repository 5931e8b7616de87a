//! Where a replay and its journal part.

use super::Place;
use kage_types::Time;
use serde_json::Value;

/// The replayed core does not do what the journal says.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct Difference {
    /// Where.
    pub place: Place,
    /// The event's number.
    pub seq: u64,
    /// When.
    pub now: Time,
    /// What happened, as in the journal; none: a snapshot's state is not the state that was reached.
    pub event: Option<Value>,
    /// As recorded.
    pub expected: Vec<Value>,
    /// As replayed.
    pub got: Vec<Value>,
}

impl Difference {
    fn text(&self) -> String {
        let Self { place, seq, now, event, expected, got } = self;
        let Some(event) = event else {
            let (expected, got) =
                (first_difference(&expected[..], &got[..]), first_difference(&got[..], &expected[..]));
            return format!(
                "{place}: the state after event {seq} at {now} is not that of the snapshot\n  snapshot: {expected}\n  \
                 replayed: {got}"
            );
        };
        let mut text = format!("{place}: event {seq} at {now} leads to other actions\n  event:    {event}\n");
        let same = expected.iter().zip(got).take_while(|(expected, got)| expected == got).count();
        if same > 0 {
            text += &format!("  ({same} actions are the same)\n");
        }
        let list = |actions: &[Value]| match actions.get(same..).unwrap_or_default() {
            [] => "nothing more".to_owned(),
            rest => rest.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n            "),
        };
        text += &format!("  expected: {}\n  got:      {}", list(expected), list(got));
        text
    }
}

/// The first field of the state that differs: the whole of it would be no help.
fn first_difference(one: &[Value], other: &[Value]) -> String {
    let (Some(Value::Object(one)), Some(Value::Object(other))) = (one.first(), other.first()) else {
        return "?".into();
    };
    let field = one.iter().find(|(key, value)| other.get(*key) != Some(*value));
    field.map_or_else(|| "?".into(), |(key, value)| format!("{key} = {value}"))
}
