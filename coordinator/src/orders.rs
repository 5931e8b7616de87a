//! The operators' standing orders, `adopt` and quarantines: what the RPCs ask of the core.

use crate::{
    agents::Agents,
    clock::unix_ms,
    driver::{Handle, Input},
    events::Events,
};
use kage_coordinator_core::{Coordinator, Event as CoreEvent, Holding, OrderView, QuarantineView};
use kage_proto::{
    channel::reason,
    coordinator::v1::{
        AdoptReply, AdoptRequest, ClearOrderRequest, EndQuarantineRequest, OrderReply, OrderStatus, PutOrderRequest,
        QuarantineStatus,
    },
    roles::Peer,
};
use kage_types::{AgentId, Order, OrderScope, TargetName, Time};
use tokio::sync::oneshot;
use tonic::Status;

/// Give an event to the core and wait for its end.
pub(crate) async fn command(
    handle: &Handle,
    event: impl FnOnce(u64) -> CoreEvent + Send + 'static,
) -> Result<(), Status> {
    let (done, ended) = oneshot::channel();
    handle.send(Input::Command(Box::new(event), done)).await;
    ended.await.map_err(|_| Status::unavailable("the coordinator is stopping"))?.map_err(Status::failed_precondition)
}

async fn scope_of(handle: &Handle, text: String) -> Result<OrderScope, Status> {
    handle.query(move |core, _| core.order_scope(&text)).await?.map_err(Status::not_found)
}

pub async fn put(handle: &Handle, peer: &Peer, request: PutOrderRequest) -> Result<OrderReply, Status> {
    let scope = scope_of(handle, request.scope).await?;
    let since_unix_ms = unix_ms();
    let order = Order {
        scope: scope.clone(),
        reason: request.reason.split_whitespace().collect::<Vec<_>>().join(" "),
        who: peer.to_string(),
        since_unix_ms,
        until_unix_ms: request.for_ms.map(|length| since_unix_ms.saturating_add(length)),
    };
    command(handle, move |command| CoreEvent::PutOrder { command, order }).await?;
    Ok(OrderReply { scope: scope.to_string() })
}

pub async fn clear(handle: &Handle, peer: &Peer, request: ClearOrderRequest) -> Result<OrderReply, Status> {
    let scope = scope_of(handle, request.scope).await?;
    let (text, who) = (scope.to_string(), peer.to_string());
    command(handle, move |command| CoreEvent::ClearOrder { command, scope, who }).await?;
    Ok(OrderReply { scope: text })
}

pub async fn end_quarantine(handle: &Handle, peer: &Peer, request: EndQuarantineRequest) -> Result<(), Status> {
    let agent: AgentId = request.agent.parse().map_err(|error| Status::invalid_argument(format!("agent: {error}")))?;
    let who = peer.to_string();
    command(handle, move |command| CoreEvent::EndQuarantine { command, agent, who }).await
}

/// Asks the agents of target and backup what they hold, then has the core accept it.
pub async fn adopt(
    handle: &Handle,
    events: &Events,
    agents: &Agents,
    peer: &Peer,
    request: AdoptRequest,
) -> Result<AdoptReply, Status> {
    let target: TargetName =
        request.target.parse().map_err(|error| Status::invalid_argument(format!("target: {error}")))?;
    let name = target.clone();
    let machines: Option<Vec<AgentId>> = handle
        .query(move |core, _| {
            let target = core.cluster().targets.get(&name)?;
            Some(vec![core.host_of(target), core.double_host(target)])
        })
        .await?;
    let mut found = Vec::new();
    for agent in machines.unwrap_or_default() {
        let vips = agents.holds(&agent).await.map_err(|status| reason(&status));
        found.push(Holding { agent, vips });
    }
    let (after, who, name) = (events.seq(), peer.to_string(), target.clone());
    command(handle, move |command| CoreEvent::Adopt { command, target: name, who, found }).await?;
    let findings = events
        .after(after)
        .into_iter()
        .filter(|numbered| numbered.note.kind == "adopted" && numbered.note.target.as_ref() == Some(&target))
        .map(|numbered| numbered.note.text)
        .collect();
    Ok(AdoptReply { findings })
}

/// Orders in force, for status.
pub fn status(core: &Coordinator, now: Time) -> Vec<OrderStatus> {
    let wall = unix_ms();
    let row = |OrderView { order, left }: OrderView| OrderStatus {
        scope: order.scope.to_string(),
        reason: order.reason,
        who: order.who,
        age_ms: wall.saturating_sub(order.since_unix_ms),
        ends_in_ms: left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX)),
    };
    core.orders(now).map(row).collect()
}

/// Machines in quarantine, for status.
pub fn quarantines(core: &Coordinator, now: Time) -> Vec<QuarantineStatus> {
    let ms = |length: std::time::Duration| u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
    let row = |QuarantineView { agent, why, age, left }: QuarantineView| QuarantineStatus {
        agent: agent.to_string(),
        reason: why,
        age_ms: ms(age),
        ends_in_ms: ms(left),
    };
    core.quarantines(now).map(row).collect()
}
