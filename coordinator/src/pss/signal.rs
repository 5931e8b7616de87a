//! What power saving tells the ledger (thesis: edits of the Operation, Suspend, Live migration and State files).

use super::{
    driver::{Input, Sender},
    inventory::Ledger,
    wire,
};
use kage_proto::{
    channel::reason,
    sif::v1::{
        BeginTransitionRequest, EndTransitionRequest, FoundRequest, GetLedgerRequest, GetTablesRequest, PutStepRequest,
        StateRow, StepState, TakeTransitionRequest, sif_client::SifClient,
    },
};
use kage_pss_core::{
    execute::{Signal, SignalId},
    plan::Plan,
};
use kage_types::{AgentId, Condition, GroupName, Revision, Step, Term, TransitionRow};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};
use tonic::{Code, Request, Status, transport::Channel};

/// A commit takes milliseconds; a SIF that needs longer than this is away.
const DEADLINE: Duration = Duration::from_millis(1500);

/// The way to SIF.
#[derive(Clone)]
pub struct Sif {
    client: SifClient<Channel>,
    /// Who carries transitions out: this process, and no earlier one.
    pub by: String,
    inputs: Sender,
}

/// What came of a signal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The ledger has it; of a transition begun: its number.
    Recorded(Revision, Option<u64>),
    /// It will not have it.
    Refused(String),
    /// Nobody knows: it is sent again.
    Unknown(String),
}

fn with_deadline<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// Certainly not done, or perhaps done?
fn failure(status: &Status) -> Answer {
    let unknown = [
        Code::Unavailable,
        Code::DeadlineExceeded,
        Code::Cancelled,
        Code::Unknown,
        Code::Internal,
        Code::ResourceExhausted,
    ];
    let why = reason(status);
    if unknown.contains(&status.code()) { Answer::Unknown(why) } else { Answer::Refused(why) }
}

/// One request, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Begin(BeginTransitionRequest),
    Step(PutStepRequest),
    End(EndTransitionRequest),
    Found(FoundRequest),
}

/// The request for a signal.
pub fn message(
    signal: &Signal,
    by: &str,
    id: Option<u64>,
    plan: Option<&Plan>,
    took: &BTreeMap<AgentId, u32>,
) -> Message {
    let (by, id) = (by.to_owned(), id.unwrap_or_default());
    match signal {
        Signal::TransitionBegun { plan } => Message::Begin(BeginTransitionRequest {
            by,
            generation: plan.generation.0,
            // A plan is names and numbers: it can be written.
            plan: serde_json::to_string(plan).unwrap_or_default(),
            steps: plan.steps().map(Into::into).collect(),
            groups: plan.groups.iter().map(Into::into).collect(),
        }),
        Signal::StepBegun { index, undo } => {
            let state = if *undo { StepState::UndoBegun } else { StepState::Begun };
            Message::Step(put_step(id, by, *index, state, None))
        }
        Signal::StepDone { index, undo } => {
            let state = if *undo { StepState::Undone } else { StepState::Done };
            let step = plan.and_then(|plan| plan.steps.get(*index)).map(|planned| &planned.step);
            let woken = match (step, undo) {
                (Some(Step::WakeHost { host }), false) | (Some(Step::SuspendHost { host }), true) => Some(host),
                _ => None,
            };
            Message::Step(put_step(id, by, *index, state, woken.and_then(|host| took.get(host)).copied()))
        }
        Signal::Committed { conditions, missing } => {
            let why = if missing.is_empty() { String::new() } else { format!("{} steps are missing", missing.len()) };
            Message::End(end(id, by, true, conditions, why))
        }
        Signal::Found { vm, host, not_on } => {
            let not_on = not_on.iter().map(ToString::to_string).collect();
            Message::Found(FoundRequest { by, vm: vm.to_string(), host: host.to_string(), not_on })
        }
        Signal::RolledBack { conditions, left: _, why } => Message::End(end(id, by, false, conditions, why.clone())),
    }
}

fn put_step(id: u64, by: String, index: usize, state: StepState, took_ms: Option<u32>) -> PutStepRequest {
    PutStepRequest { id, by, index: u32::try_from(index).unwrap_or(u32::MAX), state: state.into(), took_ms }
}

fn end(
    id: u64,
    by: String,
    committed: bool,
    conditions: &BTreeMap<GroupName, Condition>,
    why: String,
) -> EndTransitionRequest {
    let row = |(group, condition): (&GroupName, &Condition)| StateRow {
        group: group.to_string(),
        condition: wire::condition(*condition),
        base: String::new(),
    };
    EndTransitionRequest { id, by, committed, state: conditions.iter().map(row).collect(), why }
}

/// Where each group that is Light is gathered, by the tables with all steps in them.
pub fn put_bases(request: &mut EndTransitionRequest, ledger: &Ledger) {
    for row in request.state.iter_mut().filter(|row| row.condition == wire::condition(Condition::Light)) {
        let base = row.group.parse().ok().and_then(|group| ledger.base_of(&group, Condition::Light));
        row.base = base.map(String::from).unwrap_or_default();
    }
}

impl Sif {
    pub fn new(channel: Channel, by: String, inputs: Sender) -> Self {
        Self { client: SifClient::new(channel), by, inputs }
    }

    /// Its generated client.
    pub fn client(&self) -> SifClient<Channel> {
        self.client.clone()
    }

    /// The term that agents go by. A command of power saving confers no address and needs no term of its own; one that
    /// was read before a new term began is refused by the agent.
    ///
    /// # Errors
    /// SIF's.
    pub async fn term(&self) -> Result<Term, Status> {
        let ledger = self.client.clone().get_ledger(with_deadline(GetLedgerRequest {})).await?.into_inner();
        Ok(Term(ledger.term))
    }

    /// Send it; the answer comes as one input.
    pub fn send(&self, id: SignalId, message: Message) {
        let this = self.clone();
        tokio::spawn(async move {
            let answer = this.ask(message).await;
            this.inputs.send(Input::Answered(id, answer)).await;
        });
    }

    async fn ask(&self, message: Message) -> Answer {
        let mut client = self.client.clone();
        match message {
            Message::Begin(request) => {
                let plan = request.plan.clone();
                match client.begin_transition(with_deadline(request)).await {
                    Ok(reply) => {
                        let reply = reply.into_inner();
                        Answer::Recorded(Revision(reply.revision), Some(reply.id))
                    }
                    Err(status) => self.perhaps_begun(&plan).await.unwrap_or_else(|| failure(&status)),
                }
            }
            Message::Step(request) => match client.put_step(with_deadline(request)).await {
                Ok(reply) => Answer::Recorded(Revision(reply.into_inner().revision), None),
                Err(status) => failure(&status),
            },
            Message::Found(request) => match client.found(with_deadline(request)).await {
                Ok(reply) => Answer::Recorded(Revision(reply.into_inner().revision), None),
                Err(status) => failure(&status),
            },
            Message::End(mut request) => {
                let id = request.id;
                match client.get_tables(with_deadline(GetTablesRequest {})).await {
                    Ok(tables) => match wire::ledger(&tables.into_inner()) {
                        Ok(ledger) => put_bases(&mut request, &ledger),
                        Err(error) => return Answer::Refused(error.to_string()),
                    },
                    Err(status) => return Answer::Unknown(reason(&status)),
                }
                match client.end_transition(with_deadline(request)).await {
                    Ok(reply) => Answer::Recorded(Revision(reply.into_inner().revision), None),
                    Err(status) => self.perhaps_ended(id).await.unwrap_or_else(|| failure(&status)),
                }
            }
        }
    }

    /// It was begun all the same: the answer was lost, and it was asked again.
    async fn perhaps_begun(&self, plan: &str) -> Option<Answer> {
        let tables = self.client.clone().get_tables(with_deadline(GetTablesRequest {})).await.ok()?.into_inner();
        let row = tables.transition.filter(|row| row.by == self.by && row.plan == plan)?;
        Some(Answer::Recorded(Revision(tables.revision), Some(row.id)))
    }

    /// It has ended all the same.
    async fn perhaps_ended(&self, id: u64) -> Option<Answer> {
        let tables = self.client.clone().get_tables(with_deadline(GetTablesRequest {})).await.ok()?.into_inner();
        let there = tables.transition.is_some_and(|row| row.id == id);
        (!there).then_some(Answer::Recorded(Revision(tables.revision), None))
    }

    /// Go on with the transition of a process that is gone; its end comes as one input.
    pub fn take(&self, row: TransitionRow) {
        let this = self.clone();
        tokio::spawn(async move {
            let request = TakeTransitionRequest { id: row.id, from: row.by.clone(), by: this.by.clone() };
            let answer = match this.client.clone().take_transition(with_deadline(request)).await {
                Ok(reply) => Answer::Recorded(Revision(reply.into_inner().revision), Some(row.id)),
                Err(status) => failure(&status),
            };
            this.inputs.send(Input::Taken(Box::new(row), answer)).await;
        });
    }
}

/// Signals that were sent and not answered yet: a repetition waits for the first one's end.
#[derive(Default)]
pub struct Flights(BTreeSet<SignalId>);

impl Flights {
    /// May it be sent?
    pub fn begin(&mut self, id: SignalId) -> bool {
        self.0.insert(id)
    }

    pub fn end(&mut self, id: SignalId) {
        self.0.remove(&id);
    }
}

#[cfg(test)]
#[path = "signal_tests.rs"]
mod tests;
