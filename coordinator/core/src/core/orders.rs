//! The operator's standing orders: maintenance and disarm (design: a clean stop is not a failure). They withhold
//! *action*: restart, reboot, takeover, wake, fail-back. Leases, grants, observation and the operator's own moves go on.

use super::*;
use kage_types::{Order, OrderScope, REASON_LIMIT};

/// What an order may withhold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Act {
    Restart,
    TakeOver,
    Reboot,
    Wake,
    GoBack,
}

impl Act {
    fn done(self) -> &'static str {
        match self {
            Act::Restart => "restarted its service",
            Act::TakeOver => "taken over",
            Act::Reboot => "rebooted it",
            Act::Wake => "woken it",
            Act::GoBack => "moved back",
        }
    }
}

/// An order as this process counts it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InForce {
    order: Order,
    /// Its end on this process's clock; the wall clock is read once, when the order is learnt.
    until: Option<Time>,
}

/// What is not being done about a target.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Held {
    noted: BTreeSet<Act>,
    why: String,
}

/// All orders, and what they withhold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Orders {
    rows: BTreeMap<OrderScope, InForce>,
    held: BTreeMap<TargetName, Held>,
    /// Silence before this was seen under an order that has been lifted: no evidence.
    lifted: BTreeMap<AgentId, Time>,
}

/// What a job about orders was for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OrderJob {
    Put {
        command: u64,
        order: Order,
        until: Option<Time>,
    },
    Clear {
        command: u64,
        scope: OrderScope,
        who: String,
    },
    /// It ended by itself; SIF is told.
    Ended,
}

/// An order and how long it still stands, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderView {
    /// As in the ledger.
    pub order: Order,
    /// None: until it is lifted.
    pub left: Option<Duration>,
}

impl Orders {
    /// When the next order ends by itself.
    pub fn deadline(&self) -> Option<Time> {
        self.rows.values().filter_map(|row| row.until).min()
    }

    /// No evidence of silence is older than this.
    pub fn evidence(&self, now: Time, agent: &AgentId) -> Duration {
        self.lifted.get(agent).map_or(Duration::MAX, |since| now.since(*since))
    }

    fn first(&self, scopes: [OrderScope; 3]) -> Option<&Order> {
        scopes.iter().find_map(|scope| self.rows.get(scope)).map(|row| &row.order)
    }
}

fn in_words(order: &Order) -> String {
    let what = match &order.scope {
        OrderScope::All => "disarmed".to_owned(),
        OrderScope::Target(_) => "in maintenance".to_owned(),
        OrderScope::Agent(agent) => format!("host {agent} in maintenance"),
    };
    let reason = if order.reason.is_empty() { String::new() } else { format!(": {}", order.reason) };
    format!("{what} by {}{reason}", order.who)
}

/// Whole units, for people.
pub(crate) fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

impl Coordinator {
    /// The scope an operator means: `all`, `target:NAME`, `agent:NAME`, or the name of a target or else of an agent.
    ///
    /// # Errors
    /// In words, with the names there are.
    pub fn order_scope(&self, text: &str) -> Result<OrderScope, String> {
        let scope = if text == "all" || text.contains(':') {
            text.parse().map_err(|error| format!("{error}"))?
        } else {
            let target = text.parse().ok().filter(|name| self.cluster.targets.contains_key(name));
            let agent = text.parse().ok().filter(|name| self.cluster.agents.contains_key(name));
            match (target, agent) {
                (Some(target), _) => OrderScope::Target(target),
                (None, Some(agent)) => OrderScope::Agent(agent),
                (None, None) => return Err(self.no_such_name(text)),
            }
        };
        let known = match &scope {
            OrderScope::All => true,
            OrderScope::Target(name) => self.cluster.targets.contains_key(name),
            OrderScope::Agent(name) => self.cluster.agents.contains_key(name),
        };
        if known { Ok(scope) } else { Err(self.no_such_name(text)) }
    }

    fn no_such_name(&self, text: &str) -> String {
        let targets: Vec<&str> = self.cluster.targets.keys().map(TargetName::as_str).collect();
        let agents: Vec<&str> = self.cluster.agents.keys().map(AgentId::as_str).collect();
        format!(
            "there is neither a target nor an agent {text:?}; targets: {}; agents: {}",
            targets.join(", "),
            agents.join(", ")
        )
    }

    /// Orders in force.
    pub fn orders(&self, now: Time) -> impl Iterator<Item = OrderView> {
        self.orders
            .rows
            .values()
            .map(move |row| OrderView { order: row.order.clone(), left: row.until.map(|until| until.since(now)) })
    }

    /// The order that withholds every action for this target.
    pub(crate) fn withheld(&self, name: &TargetName) -> Option<&Order> {
        if self.breaks(Sabotage::OrdersIgnored) {
            return None;
        }
        let target = self.cluster.targets.get(name)?;
        let agent = OrderScope::Agent(self.host_of(target));
        self.orders.first([OrderScope::All, OrderScope::Target(name.clone()), agent])
    }

    /// Is this machine being worked on? Then its silence says nothing about it.
    pub(crate) fn left_alone(&self, agent: &AgentId) -> bool {
        // A virtual server's maintenance says nothing of its host.
        let target = |name: &TargetName| self.cluster.targets.get(name);
        let serves = |name: &TargetName| target(name).is_some_and(|target| target.inner_agent() == Some(agent));
        self.orders.rows.keys().any(|scope| match scope {
            OrderScope::All => true,
            OrderScope::Agent(name) => name == agent,
            OrderScope::Target(name) => serves(name),
        })
    }

    /// The order that withholds this: a takeover is not sent to a backup host in maintenance either.
    fn withholding(&self, name: &TargetName, act: Act) -> Option<&Order> {
        if let Some(order) = self.withheld(name) {
            return Some(order);
        }
        let backup = OrderScope::Agent(self.double_host(self.cluster.targets.get(name)?));
        self.orders.rows.get(&backup).filter(|_| act == Act::TakeOver).map(|row| &row.order)
    }

    /// Is this action withheld? Then what would have been done is noted, once for each kind of action, and shown in
    /// the target's status until the target is well again or the order is lifted.
    pub(crate) fn hold_back(&mut self, name: &TargetName, act: Act, why: &str, actions: &mut Vec<Action>) -> bool {
        let Some(order) = self.withholding(name, act) else {
            return false;
        };
        let by = in_words(order);
        // The backup host's maintenance leaves its targets unprotected: somebody should know.
        let severity = if self.withheld(name).is_some() { Severity::Warning } else { Severity::Alert };
        let text = format!("{by}; would have {}: {why}", act.done());
        let held = self.orders.held.entry(name.clone()).or_default();
        held.why = why.to_owned();
        if held.noted.insert(act) {
            self.note(Some(name.clone()), severity, "withheld", text, actions);
        }
        true
    }

    /// Is this action being withheld for this target, and said?
    pub(crate) fn held_already(&self, name: &TargetName, act: Act) -> bool {
        self.orders.held.get(name).is_some_and(|held| held.noted.contains(&act))
            && self.withholding(name, act).is_some()
    }

    /// Is anything withheld for this target?
    pub(crate) fn holds_back(&self, name: &TargetName) -> bool {
        self.orders.held.contains_key(name)
    }

    /// The target is well: what is withheld next is news.
    pub(crate) fn nothing_held_back(&mut self, name: &TargetName) {
        self.orders.held.remove(name);
    }

    /// A target's detail with its orders.
    pub(super) fn detail_under_orders(&self, name: &TargetName, detail: String) -> String {
        let order = self.withheld(name).or_else(|| self.withholding(name, Act::TakeOver));
        let Some(order) = order else { return detail };
        let what = match &order.scope {
            OrderScope::All => "disarmed".to_owned(),
            OrderScope::Target(_) => "in maintenance".to_owned(),
            OrderScope::Agent(agent) if self.withheld(name).is_none() => {
                format!("its backup host {agent} in maintenance")
            }
            OrderScope::Agent(agent) => format!("host {agent} in maintenance"),
        };
        match self.orders.held.get(name) {
            Some(held) => format!("{what}: not acting on: {}", held.why),
            None if detail.is_empty() => what,
            None => format!("{what}; {detail}"),
        }
    }

    // ---- the ledger's table ----

    /// All orders as in the ledger, with the wall clock's time.
    pub(super) fn orders_read(&mut self, now: Time, rows: Vec<Order>, now_unix_ms: u64, actions: &mut Vec<Action>) {
        let known: BTreeSet<OrderScope> = self.orders.rows.keys().cloned().collect();
        let before = std::mem::take(&mut self.orders.rows);
        for order in rows {
            if !known.contains(&order.scope) {
                let target = target_of(&order.scope);
                let text = format!("an order stands: {}", in_words(&order));
                self.note(target, Severity::Warning, "order-stands", text, actions);
            }
            let until = order.until_unix_ms.map(|until| now + Duration::from_millis(until.saturating_sub(now_unix_ms)));
            self.orders.rows.insert(order.scope.clone(), InForce { order, until });
        }
        let gone = before.into_keys().filter(|scope| !self.orders.rows.contains_key(scope));
        for scope in gone.collect::<Vec<_>>() {
            self.begin_without(now, &scope);
        }
    }

    /// Orders whose time is over.
    pub(super) fn end_orders(&mut self, now: Time, actions: &mut Vec<Action>) {
        let over =
            |(scope, row): (&OrderScope, &InForce)| row.until.filter(|until| now >= *until).map(|_| scope.clone());
        for scope in self.orders.rows.iter().filter_map(over).collect::<Vec<_>>() {
            self.lift(now, &scope, "its time is over", actions);
            let job = self.job(JobFor::Order(OrderJob::Ended));
            actions.push(Action::ClearOrder { job, scope });
        }
    }

    // ---- the operator ----

    pub(super) fn put_order(&mut self, now: Time, command: u64, mut order: Order, actions: &mut Vec<Action>) {
        if let Err(reason) = self.may_order(now, &order) {
            return actions.push(Action::Moved { command, result: Err(reason) });
        }
        let length = order.until_unix_ms.map(|until| until.saturating_sub(order.since_unix_ms));
        let until = length.map(|ms| now + Duration::from_millis(ms));
        if let Some(old) = self.orders.rows.get(&order.scope) {
            order.since_unix_ms = old.order.since_unix_ms;
        }
        let job = self.job(JobFor::Order(OrderJob::Put { command, order: order.clone(), until }));
        actions.push(Action::PutOrder { job, order });
    }

    fn may_order(&self, now: Time, order: &Order) -> Result<(), String> {
        if !self.in_authority(now) {
            return Err(
                "this coordinator has no valid term, and an order must be durable: is SIF up? (kagectl status)".into(),
            );
        }
        if order.reason.len() > REASON_LIMIT {
            return Err(format!("the reason has {} bytes, more than {REASON_LIMIT}: shorten it", order.reason.len()));
        }
        Ok(())
    }

    pub(super) fn clear_order(
        &mut self,
        now: Time,
        command: u64,
        scope: OrderScope,
        who: String,
        actions: &mut Vec<Action>,
    ) {
        let refusal = if !self.orders.rows.contains_key(&scope) {
            Some(match &scope {
                OrderScope::All => "the cluster is armed already".to_owned(),
                OrderScope::Target(_) | OrderScope::Agent(_) => {
                    format!("{scope} is not in maintenance; what is: kagectl status")
                }
            })
        } else if !self.in_authority(now) {
            Some("this coordinator has no valid term, and this must be durable: is SIF up? (kagectl status)".into())
        } else {
            None
        };
        if let Some(reason) = refusal {
            return actions.push(Action::Moved { command, result: Err(reason) });
        }
        let job = self.job(JobFor::Order(OrderJob::Clear { command, scope: scope.clone(), who }));
        actions.push(Action::ClearOrder { job, scope });
    }

    pub(super) fn order_job_done(&mut self, now: Time, what: OrderJob, result: &JobResult, actions: &mut Vec<Action>) {
        let failed = |reason: &str| Err(format!("SIF did not note it ({reason}): nothing is changed; try again"));
        let in_doubt = |reason: &str| {
            Err(format!(
                "SIF did not answer ({reason}): a restarted coordinator may not know of it; repeat the command"
            ))
        };
        match (what, result) {
            (OrderJob::Put { command, order, until }, JobResult::Done) => {
                self.in_force(now, order, until, actions);
                actions.push(Action::Moved { command, result: Ok(()) });
            }
            // To withhold is safe, to forget is not.
            (OrderJob::Put { command, order, until }, JobResult::Unknown(reason)) => {
                self.in_force(now, order, until, actions);
                actions.push(Action::Moved { command, result: in_doubt(reason) });
            }
            (OrderJob::Clear { command, scope, who }, JobResult::Done) => {
                self.lift(now, &scope, &format!("lifted by {who}"), actions);
                actions.push(Action::Moved { command, result: Ok(()) });
            }
            (OrderJob::Clear { command, .. }, JobResult::Unknown(reason)) => {
                actions.push(Action::Moved { command, result: in_doubt(reason) });
            }
            (OrderJob::Put { command, .. } | OrderJob::Clear { command, .. }, other) => {
                let reason = crate::placement::describe(other);
                actions.push(Action::Moved { command, result: failed(&reason) });
            }
            // A row that stays is ended again by the next coordinator that reads it.
            (OrderJob::Ended, _) => {}
        }
    }

    fn in_force(&mut self, now: Time, order: Order, until: Option<Time>, actions: &mut Vec<Action>) {
        let target = target_of(&order.scope);
        let long =
            until.map_or_else(|| "until it is lifted".to_owned(), |until| format!("for {}", span(until.since(now))));
        let text = format!("{} ({long})", in_words(&order));
        self.orders.rows.insert(order.scope.clone(), InForce { order: order.clone(), until });
        self.note(target, Severity::Warning, "order-given", text, actions);
        let OrderScope::Agent(agent) = &order.scope else { return };
        let unprotected: Vec<TargetName> = self
            .cluster
            .targets
            .iter()
            .filter(|(_, target)| self.double_host(target) == *agent)
            .map(|(name, _)| name.clone())
            .collect();
        for name in unprotected {
            let text =
                format!("its backup host {agent} is in maintenance: no takeover is sent there until that is lifted");
            self.note(Some(name), Severity::Alert, "unprotected", text, actions);
        }
    }

    fn lift(&mut self, now: Time, scope: &OrderScope, how: &str, actions: &mut Vec<Action>) {
        let Some(row) = self.orders.rows.remove(scope) else {
            return;
        };
        let text = format!("no longer {}: {how}; what was seen meanwhile counts for nothing", in_words(&row.order));
        self.note(target_of(scope), Severity::Info, "order-lifted", text, actions);
        self.begin_without(now, scope);
    }

    /// Evidence starts anew for everything that the order covered.
    fn begin_without(&mut self, now: Time, scope: &OrderScope) {
        let covers = |name: &TargetName, target: &crate::config::Target| match scope {
            OrderScope::All => true,
            OrderScope::Target(covered) => covered == name,
            OrderScope::Agent(agent) => self.concerns(target, agent),
        };
        let covered: Vec<(TargetName, AgentId)> = self
            .cluster
            .targets
            .iter()
            .filter(|(name, target)| covers(name, target))
            .map(|(name, target)| (name.clone(), self.host_of(target)))
            .collect();
        for (name, agent) in covered {
            self.orders.held.remove(&name);
            self.orders.lifted.insert(agent, now);
            self.alerts_over(Some(&name));
            if let Some(dbss) = self.targets.get_mut(&name) {
                dbss.begin_evidence(now);
            }
        }
    }
}

fn target_of(scope: &OrderScope) -> Option<TargetName> {
    match scope {
        OrderScope::Target(name) => Some(name.clone()),
        OrderScope::All | OrderScope::Agent(_) => None,
    }
}
