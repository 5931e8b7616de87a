//! The one task that owns the agent's cores. Everybody else talks to it through a [`Handle`].
//!
//! Architecture invariant: the driver waits for nothing but its inputs, the kernel's reports and its timer. What
//! takes time is handed to a thread or task and comes back as an input.

mod act;
mod inputs;
mod task;
mod writers;

use crate::{
    guard::{IfName, MacAddr, RenewalThread},
    hands::Opened,
};
use kage_agent_core::{AskVip, Assignment, CommandResult, HoldRefused, Place, VipView, VoterStore, WriterEvent};
use kage_proto::{
    agent::v1::{Grant, VoteReply, VoteRequest},
    coordinator::v1::AgentMessage,
};
use kage_types::{AgentId, DomainName, Epoch, Nonce, Term, Time, Vip};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub use task::{Driver, Parts};

/// Inputs that may wait. Those beyond make their senders wait.
const INPUTS: usize = 256;

/// The outgoing half of the stream to the coordinator, as the driver has it.
#[derive(Debug)]
pub struct Stream {
    /// Of this stream; rises by one.
    pub id: u64,
    /// Short: a question that waits behind a stalled stream is worth nothing.
    pub messages: mpsc::Sender<AgentMessage>,
    /// Tears it down.
    pub close: CancellationToken,
}

/// Where a guest's VIP is guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TapPort {
    /// The bridge's port.
    pub ifname: IfName,
    /// The guest's hardware address.
    pub mac: MacAddr,
}

/// What can be seen of the owner.
#[derive(Clone, Debug)]
pub struct Leases {
    /// All VIPs held or being acquired.
    pub vips: Vec<VipView>,
    /// Seen by this agent.
    pub highest_term: Term,
    /// Lately, itself and in authority.
    pub coordinator_reachable: bool,
    /// By whose word.
    pub renewed_by: &'static str,
    /// The machine is about to stop or sleep.
    pub leaving: bool,
    /// When this was read.
    pub at: Time,
}

/// What reaches the driver.
#[derive(Debug)]
pub enum Input {
    /// The guard covers this assignment's VIPs; it came over the stream with this id.
    Assigned {
        /// None: the stored one.
        stream: Option<u64>,
        /// Of the coordinator that sent it.
        term: Term,
        /// What it says.
        assignment: Assignment,
    },
    /// A stream to the coordinator is open; nothing is asked over it before its first assignment.
    StreamUp(Stream),
    /// It broke.
    StreamDown(u64),
    /// The coordinator's answer.
    Answer {
        /// Over which stream.
        stream: u64,
        /// The answer.
        grant: Grant,
    },
    /// The coordinator's answer to a question this voter passed on.
    RelayedGrant {
        /// Who asked.
        origin: String,
        /// The answer.
        grant: Grant,
    },
    /// A voter passed the coordinator's answer on to us.
    RelayedAnswer(Grant),
    /// A voter consents.
    Consent {
        /// Who.
        voter: AgentId,
        /// To which request.
        nonce: Nonce,
        /// To which VIPs.
        vips: Vec<AskVip>,
    },
    /// Command.
    Hold {
        /// Whose authority.
        term: Term,
        /// What.
        ask: AskVip,
        /// Where.
        place: Place,
        /// Answered when it is open.
        reply: oneshot::Sender<Result<Opened, HoldRefused>>,
    },
    /// Command; answered when it is done.
    Command(Command, oneshot::Sender<CommandResult>),
    /// Is this term's authority valid here? Err: the highest seen.
    Admit(Term, oneshot::Sender<Result<(), Term>>),
    /// Is this order to a domain younger than all before it?
    Ordered(DomainName, Term, u64, oneshot::Sender<bool>),
    /// This domain's VIPs are at this port from now on; false: it has VIPs at another.
    BindTap(DomainName, TapPort, oneshot::Sender<bool>),
    /// This domain's live VIPs are announced once more.
    Announce(DomainName),
    /// This VIP is about to come to this place.
    Prepare(Vip, Place),
    /// Status.
    Leases(oneshot::Sender<Leases>),
    /// An owner asks this voter.
    Vote {
        /// Who, by its certificate.
        from: AgentId,
        /// Checked.
        vips: Vec<AskVip>,
        /// As it came.
        question: VoteRequest,
        /// Answered when what must be stored is.
        reply: oneshot::Sender<Result<VoteReply, Status>>,
    },
    /// The coordinator bars.
    Bar {
        /// Whose authority.
        term: Term,
        /// Which VIP.
        vip: Vip,
        /// No consent below.
        floor: Epoch,
        /// The age of the last consent, when the bar is durable.
        reply: oneshot::Sender<Result<Duration, Status>>,
    },
    /// Status: what is remembered, and does the assignment list this agent as a voter?
    Voter(oneshot::Sender<(VoterStore, bool)>),
    /// The voter's store is on the disk, or could not be written.
    Stored {
        /// Which.
        version: u64,
        /// Is it?
        ok: bool,
    },
    /// The owner's memory is on the disk, or could not be written.
    Remembered {
        /// Which.
        version: u64,
        /// Is it?
        ok: bool,
    },
    /// Something about a service that must not run without a lease.
    Writer(WriterEvent),
    /// Somebody removed or changed the guard, and it stands again.
    GuardBack,
    /// The machine does not go down or to sleep after all, or is back.
    Stays,
    /// The guard stands, which it did not at the start.
    KernelUp(RenewalThread),
}

/// Commands that end with a bare result.
#[derive(Debug)]
pub enum Command {
    /// Let go of this VIP at this epoch and all below.
    Release(Term, AskVip),
    /// Let go of all this VM's.
    ReleaseVm(DomainName),
    /// Live migration has moved this VM, to there: its VIPs are over here, which is told.
    SwitchedOver(DomainName, String),
    /// The machine goes down or to sleep: let go of everything, and take nothing.
    ReleaseAll,
    /// Obtain a long lease.
    PrepareStop,
}

/// The way to the driver. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle(mpsc::Sender<Input>);

/// A handle, and the driver's end of it.
#[must_use]
pub fn channel() -> (Handle, mpsc::Receiver<Input>) {
    let (inputs, queue) = mpsc::channel(INPUTS);
    (Handle(inputs), queue)
}

fn gone<T>(_: T) -> Status {
    Status::unavailable("this agent is stopping; ask again when it has restarted")
}

impl Handle {
    /// For threads that report by themselves.
    #[must_use]
    pub fn inputs(&self) -> mpsc::Sender<Input> {
        self.0.clone()
    }

    /// Tells the driver; waits while its queue is full.
    ///
    /// # Errors
    /// UNAVAILABLE: the agent stops. So for all methods.
    pub async fn tell(&self, input: Input) -> Result<(), Status> {
        self.0.send(input).await.map_err(gone)
    }

    async fn ask<T>(&self, input: impl FnOnce(oneshot::Sender<T>) -> Input) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.tell(input(reply)).await?;
        answer.await.map_err(gone)
    }

    /// Hold a VIP; returns when it is open and announced. Giving up undoes nothing.
    ///
    /// # Errors
    /// FAILED_PRECONDITION as the core refuses.
    pub async fn hold(&self, term: Term, ask: AskVip, place: Place) -> Result<Opened, Status> {
        self.ask(|reply| Input::Hold { term, ask, place, reply }).await?.map_err(refused)
    }

    /// This VIP is about to come here: its address may be put on already, the guard keeps it shut. It runs out by
    /// itself if nothing follows.
    pub async fn prepare(&self, vip: Vip, place: Place) {
        let _ = self.0.send(Input::Prepare(vip, place)).await;
    }

    /// A command; returns when it is done.
    ///
    /// # Errors
    /// FAILED_PRECONDITION as the core refuses.
    pub async fn command(&self, command: Command) -> Result<(), Status> {
        self.ask(|reply| Input::Command(command, reply)).await?.map_err(refused)
    }

    /// Is this term's authority valid here? A higher one than seen is remembered.
    ///
    /// # Errors
    /// FAILED_PRECONDITION: a higher term was seen.
    pub async fn admit(&self, term: Term) -> Result<(), Status> {
        self.ask(|reply| Input::Admit(term, reply)).await?.map_err(|seen| {
            Status::failed_precondition(format!("term {term} is over: this agent has seen term {seen}"))
        })
    }

    /// May this order to a domain be obeyed? One that is not counted (0) may.
    ///
    /// # Errors
    /// ABORTED: a later one came first.
    pub async fn order(&self, domain: DomainName, term: Term, order: u64) -> Result<(), Status> {
        let named = domain.clone();
        if order == 0 || self.ask(|reply| Input::Ordered(domain, term, order, reply)).await? {
            return Ok(());
        }
        Err(Status::aborted(format!("a later order for {named} came first: this one is overtaken")))
    }

    /// The domain's VIPs are at this port; if it has VIPs at another, they are released first.
    ///
    /// # Errors
    /// As [`Handle::command`].
    pub async fn bind_tap(&self, domain: &DomainName, port: TapPort) -> Result<(), Status> {
        for _ in 0..2 {
            if self.ask(|reply| Input::BindTap(domain.clone(), port, reply)).await? {
                return Ok(());
            }
            self.command(Command::ReleaseVm(domain.clone())).await?;
        }
        Err(Status::aborted(format!("domain {domain} changed its interface while its VIPs were released; try again")))
    }

    /// Status.
    ///
    /// # Errors
    /// UNAVAILABLE.
    pub async fn leases(&self) -> Result<Leases, Status> {
        self.ask(Input::Leases).await
    }

    /// An owner's question.
    ///
    /// # Errors
    /// As the voter refuses.
    pub async fn vote(&self, from: AgentId, vips: Vec<AskVip>, question: VoteRequest) -> Result<VoteReply, Status> {
        self.ask(|reply| Input::Vote { from, vips, question, reply }).await?
    }

    /// A coordinator's bar; how long ago the last consent was given, at least.
    ///
    /// # Errors
    /// FAILED_PRECONDITION: a lower term, or the store could not be written.
    pub async fn bar(&self, term: Term, vip: Vip, floor: Epoch) -> Result<Duration, Status> {
        self.ask(|reply| Input::Bar { term, vip, floor, reply }).await?
    }

    /// What the voter remembers, and whether this agent is one.
    ///
    /// # Errors
    /// UNAVAILABLE.
    pub async fn voter(&self) -> Result<(VoterStore, bool), Status> {
        self.ask(Input::Voter).await
    }
}

fn refused(refused: HoldRefused) -> Status {
    Status::failed_precondition(refused.to_string())
}
