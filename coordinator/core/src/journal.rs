//! The journal's lines: what the coordinator's core was given and what it wanted done, so that its decisions can be
//! replayed ([`crate::replay`]) and explained ([`crate::why`]).
//!
//! A line is an object with `seq`, which rises by one with each event, and `now` on the coordinator's CLOCK_BOOTTIME;
//! beside them `event` with `actions`, or `start` (a process begins: its configuration), or `snapshot` (the whole state
//! at that point: replaying can begin there).
//!
//! Other cores of a coordinator's process have journals of the same kind: whatever is a [`Core`].

use crate::{Coordinator, config::Cluster, event::Action, event::Event};
use kage_types::{Time, Verdict};
use serde::{Deserialize, Serialize, Serializer, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{collections::BTreeMap, fmt};

/// A core whose inputs are journalled, so that it can be stepped with them once more.
pub trait Core: Clone + PartialEq + Serialize + DeserializeOwned {
    /// What it is given.
    type Event: Clone + Serialize + DeserializeOwned;
    /// What it wants done.
    type Action;
    /// What it begins with.
    type Config: Clone + Serialize + DeserializeOwned;
    /// An action as the journal has it.
    type Brief<'a>: Serialize
    where
        Self: 'a;
    /// The key of what it begins with, in a start.
    const CONFIG: &'static str;
    /// The key of its state, in a snapshot.
    const STATE: &'static str;

    /// A new one.
    fn begin(now: Time, config: Self::Config) -> Self;
    /// One event.
    fn take(&mut self, now: Time, event: Self::Event, actions: &mut Vec<Self::Action>);
    /// As the journal has it.
    fn brief(action: &Self::Action) -> Self::Brief<'_>;
    /// The wall clock, if this event tells it: milliseconds since 1970.
    fn wall(event: &Self::Event) -> Option<u64> {
        let _ = event;
        None
    }
}

impl Core for Coordinator {
    type Event = Event;
    type Action = Action;
    type Config = Cluster;
    type Brief<'a> = Brief<'a>;
    const CONFIG: &'static str = "cluster";
    const STATE: &'static str = "core";

    fn begin(now: Time, cluster: Cluster) -> Self {
        Self::new(now, cluster)
    }

    fn take(&mut self, now: Time, event: Event, actions: &mut Vec<Action>) {
        self.step(now, event, actions);
    }

    fn brief(action: &Action) -> Brief<'_> {
        Brief(action)
    }

    fn wall(event: &Event) -> Option<u64> {
        if let Event::OrdersRead { now_unix_ms, .. } = event { Some(*now_unix_ms) } else { None }
    }
}

/// Rises when lines of an earlier one can't be replayed any more.
pub const FORMAT: u32 = 1;

/// Who wrote, and when: at the head of every start and snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// Of the program that wrote.
    pub version: String,
    /// [`FORMAT`].
    pub format: u32,
    /// Its process.
    pub pid: u32,
    /// The wall clock at the line's `now`, for people.
    pub unix_ms: u64,
}

/// Why a snapshot was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Because {
    /// The file is a new one.
    Rotation,
    /// Much was written since the last.
    Length,
    /// Lines were lost before it: full disk, or one that did not keep up.
    Gap,
}

#[derive(Serialize)]
struct EventLine<'a, E> {
    seq: u64,
    now: Time,
    event: &'a E,
}

/// An event's line without its end: what was done is added when the core has decided ([`add_actions`]), so that an event
/// that the core does not survive is journalled as well.
///
/// # Errors
/// Never in practice: every event can be written.
pub fn event_line<E: Serialize>(seq: u64, now: Time, event: &E) -> serde_json::Result<Vec<u8>> {
    let mut line = Vec::with_capacity(512);
    serde_json::to_writer(&mut line, &EventLine { seq, now, event })?;
    line.pop();
    Ok(line)
}

/// Ends an event's line with what the core wants done.
///
/// # Errors
/// Never in practice: every action can be written.
pub fn add_actions<C: Core>(line: &mut Vec<u8>, actions: &[C::Action]) -> serde_json::Result<()> {
    line.extend_from_slice(b",\"actions\":[");
    for (index, action) in actions.iter().enumerate() {
        if index > 0 {
            line.push(b',');
        }
        serde_json::to_writer(&mut *line, &C::brief(action))?;
    }
    line.push(b']');
    Ok(())
}

#[derive(Serialize)]
struct StartLine<'a, T> {
    seq: u64,
    now: Time,
    start: Body<'a, T>,
}

#[derive(Serialize)]
struct Body<'a, T> {
    #[serde(flatten)]
    head: &'a Head,
    #[serde(skip_serializing_if = "Option::is_none")]
    because: Option<Because>,
    /// Under the core's own key.
    #[serde(flatten)]
    content: BTreeMap<&'static str, &'a T>,
}

/// The line of a process that begins with [`Core::begin`]; `seq` is that of the last event before.
///
/// # Errors
/// Never in practice.
pub fn start_line<C: Core>(seq: u64, now: Time, head: &Head, config: &C::Config) -> serde_json::Result<Vec<u8>> {
    let content = BTreeMap::from([(C::CONFIG, config)]);
    serde_json::to_vec(&StartLine { seq, now, start: Body { head, because: None, content } })
}

#[derive(Serialize)]
struct SnapshotLine<'a, C> {
    seq: u64,
    now: Time,
    snapshot: Body<'a, C>,
}

/// The line of the state after event `seq`.
///
/// # Errors
/// Never in practice.
pub fn snapshot_line<C: Core>(
    seq: u64,
    now: Time,
    head: &Head,
    because: Because,
    core: &C,
) -> serde_json::Result<Vec<u8>> {
    let content = BTreeMap::from([(C::STATE, core)]);
    serde_json::to_vec(&SnapshotLine { seq, now, snapshot: Body { head, because: Some(because), content } })
}

/// An action as the journal has it: answers to requests for leases, by far the most, are one short text.
#[derive(Clone, Copy, Debug)]
pub struct Brief<'a>(pub &'a Action);

impl Serialize for Brief<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Action::Reply { .. } => serializer.collect_str(self),
            Action::AcquireTerm
            | Action::RenewTerm { .. }
            | Action::ReadLedger
            | Action::AdvanceEpoch { .. }
            | Action::SetLongLease { .. }
            | Action::Bar { .. }
            | Action::Command { .. }
            | Action::Ping { .. }
            | Action::Probe { .. }
            | Action::ReadPower { .. }
            | Action::PowerOff { .. }
            | Action::FenceStorage { .. }
            | Action::PutTrouble { .. }
            | Action::PutOrder { .. }
            | Action::ClearOrder { .. }
            | Action::PutArrangement { .. }
            | Action::FunctionRestored { .. }
            | Action::TargetVerdict { .. }
            | Action::PutClaims { .. }
            | Action::MovedTo { .. }
            | Action::Note(_)
            | Action::Configured
            | Action::Moved { .. } => self.0.serialize(serializer),
        }
    }
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Action::Reply { session, origin, grant } = self.0 else {
            return write!(f, "{:?}", self.0);
        };
        write!(f, "reply to {}", session.0)?;
        if let Some(origin) = origin {
            write!(f, " for {origin}")?;
        }
        write!(f, ": nonce {}, term {}", grant.nonce.0, grant.term.0)?;
        if !grant.in_authority {
            f.write_str(" without authority")?;
        }
        write!(f, ", {:?}", grant.length)?;
        for item in &grant.items {
            let verdict = match item.verdict {
                Verdict::Granted => "granted",
                Verdict::Wait => "wait",
                Verdict::Superseded => "superseded",
            };
            write!(f, ", {}@{} {verdict}", item.vip, item.epoch)?;
        }
        Ok(())
    }
}

/// An action as the journal has it.
pub(crate) fn brief<C: Core>(action: &C::Action) -> Value {
    serde_json::to_value(C::brief(action)).unwrap_or(Value::Null)
}

/// A line, read.
pub(crate) struct Record<C: Core> {
    pub seq: u64,
    pub now: Time,
    pub what: What<C>,
}

pub(crate) enum What<C: Core> {
    Start(Head, Box<C::Config>),
    Snapshot(Head, Box<C>),
    /// A start or snapshot whose content this program does not understand, and why.
    Foreign(Head, String),
    /// Actions are absent in journals of before they were recorded, and of an event that the core did not survive.
    Event(Box<C::Event>, Option<Vec<Value>>),
}

#[derive(Deserialize)]
struct Raw<E> {
    seq: u64,
    now: Time,
    event: Option<E>,
    actions: Option<Vec<Value>>,
    start: Option<RawBody>,
    snapshot: Option<RawBody>,
}

#[derive(Deserialize)]
struct RawBody {
    #[serde(flatten)]
    head: Head,
    #[serde(flatten)]
    content: Map<String, Value>,
}

impl RawBody {
    /// What stands there, if this version can read it.
    fn read<T: DeserializeOwned>(mut self, key: &str, what: &str) -> Result<(Head, T), (Head, String)> {
        match serde_json::from_value(self.content.remove(key).unwrap_or_default()) {
            Ok(content) if self.head.format == FORMAT => Ok((self.head, content)),
            Ok(_) => Err((self.head, "its format is another".into())),
            Err(error) => Err((self.head, format!("its {what} can't be read: {error}"))),
        }
    }
}

/// A line that can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unread {
    /// Not even JSON: perhaps cut short.
    Torn(String),
    /// Whole, and unknown here.
    Unknown(String),
}

/// Reads a line.
///
/// # Errors
/// In words: it is cut short, or says what this version does not know.
pub(crate) fn read<C: Core>(text: &str) -> Result<Record<C>, Unread> {
    let raw: Raw<C::Event> = serde_json::from_str(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Data => {
            Unread::Unknown(format!("this version does not know it, perhaps that which wrote it does: {error}"))
        }
        serde_json::error::Category::Io | serde_json::error::Category::Syntax | serde_json::error::Category::Eof => {
            Unread::Torn(error.to_string())
        }
    })?;
    let Raw { seq, now, event, actions, start, snapshot } = raw;
    let what = match (event, start, snapshot) {
        (Some(event), None, None) => What::Event(Box::new(event), actions),
        (None, Some(start), None) => match start.read(C::CONFIG, "configuration") {
            Ok((head, config)) => What::Start(head, Box::new(config)),
            Err((head, why)) => What::Foreign(head, why),
        },
        (None, None, Some(snapshot)) => match snapshot.read(C::STATE, "state") {
            Ok((head, core)) => What::Snapshot(head, Box::new(core)),
            Err((head, why)) => What::Foreign(head, why),
        },
        _ => {
            return Err(Unread::Unknown(
                "it has neither event nor start nor snapshot, or more than one of them".into(),
            ));
        }
    };
    Ok(Record { seq, now, what })
}

/// The number of a line, for the next process to go on with. None: cut short, or no line of a journal.
#[must_use]
pub fn number(line: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Numbered {
        seq: u64,
    }
    serde_json::from_str::<Numbered>(line).ok().map(|line| line.seq)
}

/// Maps whose keys are no text, as lists of pairs: JSON has no other way.
pub(crate) mod pairs {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;

    pub fn serialize<K: Serialize, V: Serialize, S: Serializer>(
        map: &BTreeMap<K, V>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(map)
    }

    pub fn deserialize<'de, K: Deserialize<'de> + Ord, V: Deserialize<'de>, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<K, V>, D::Error> {
        Ok(Vec::<(K, V)>::deserialize(deserializer)?.into_iter().collect())
    }
}
