//! The gate before every handler: looks up who calls, asks the table, audits.

use crate::{
    audit,
    rate::Rates,
    roles::{Audit, Peer, Role, Rule, Who, rule},
};
use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};
use tonic::{
    Code, Status,
    body::Body,
    codegen::{Service, http},
};

/// Refuses what [`crate::roles::RULES`] does not allow (default deny), and what is too much.
#[derive(Clone, Debug)]
pub(crate) struct Guard<S> {
    inner: S,
    rates: Arc<Rates>,
    /// At a time on one connection.
    calls: u32,
}

impl<S> Guard<S> {
    pub(crate) fn new(inner: S, rates: Rates, calls: u32) -> Self {
        Self { inner, rates: Arc::new(rates), calls }
    }
}

type Answer<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Guard<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answer<S::Error>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let (peer, rule, slot) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        request.extensions_mut().insert(peer.clone());
        let call = self.inner.call(request);
        Box::pin(async move {
            let begun = Instant::now();
            let (answer, about) = audit::listening(call).await;
            let mut answer = answer?;
            let mut status = Status::from_header_map(answer.headers());
            if let Some(large) = status.as_ref().and_then(too_large) {
                answer = large.clone().into_http();
                status = Some(large);
            }
            if rule.audit == Audit::Calls {
                let end = status.as_ref().filter(|status| status.code() != Code::Ok).map_or(Ok(()), Err);
                audit::ended(&peer, rule.path, &about, begun.elapsed(), end);
            }
            Ok(answer.map(|body| Body::new(Counted { body, _slot: slot })))
        })
    }
}

impl<S> Guard<S> {
    fn admit(&self, request: &http::Request<Body>) -> Result<(Peer, &'static Rule, Slot), Status> {
        let path = request.uri().path();
        let Some(Connected { peer, open }) = request.extensions().get::<Connected>() else {
            return Err(Status::internal("the connection has no peer: it did not come through kage_proto::server"));
        };
        let checked = || {
            let rule = decide(peer, path, rule(path))?;
            self.rates.admit(peer, rule, Instant::now())?;
            let slot = Slot::take(open, self.calls)?;
            Ok((peer.clone(), rule, slot))
        };
        let admitted = checked().inspect_err(|status: &Status| audit::refused(peer, path, status.message()))?;
        if admitted.1.audit == Audit::Calls {
            audit::allowed(peer, path);
        }
        Ok(admitted)
    }
}

/// A message that was not read because it is larger than its call takes, in words of ours; none for any other status.
#[must_use]
pub fn too_large(status: &Status) -> Option<Status> {
    // tonic says so with OUT_OF_RANGE.
    let large = status.code() == Code::OutOfRange && status.message().starts_with("Error, decoded message length too");
    large.then(|| {
        let sizes = status.message().split_once(": ").map_or("", |(_, sizes)| sizes);
        Status::resource_exhausted(format!(
            "the message is larger than this call takes ({sizes}): ask for less at once"
        ))
    })
}

/// What is known of the connection on which a request comes.
#[derive(Clone, Debug)]
pub(crate) struct Connected {
    pub(crate) peer: Peer,
    /// Calls on it.
    pub(crate) open: Arc<AtomicU32>,
}

/// One call's place on its connection.
#[derive(Debug)]
struct Slot(Arc<AtomicU32>);

impl Slot {
    fn take(open: &Arc<AtomicU32>, most: u32) -> Result<Self, Status> {
        let slot = Self(open.clone());
        // Given back by its end, also when there are too many.
        if open.fetch_add(1, Ordering::Relaxed) < most {
            return Ok(slot);
        }
        Err(Status::resource_exhausted(format!(
            "{most} calls at a time are taken on one connection: wait for one to end, or close a stream"
        )))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, which holds the call's place until it has ended or is given up.
struct Counted {
    body: Body,
    _slot: Slot,
}

impl http_body::Body for Counted {
    type Data = <Body as http_body::Body>::Data;
    type Error = <Body as http_body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

/// The decision itself.
fn decide<'r>(peer: &Peer, path: &str, rule: Option<&'r Rule>) -> Result<&'r Rule, Status> {
    if let Some(rule) = rule.filter(|rule| rule.who == Who::Anyone) {
        return Ok(rule);
    }
    let Some(role) = peer.role() else {
        return Err(Status::unauthenticated(
            "this call needs a client certificate of the cluster's authority; kagectl takes it from --pki DIR, \
             and `kagectl pki issue` makes one",
        ));
    };
    let Some(rule) = rule else {
        return Err(Status::unimplemented(format!("there is no RPC {path}; server reflection lists those there are")));
    };
    match rule.who {
        Who::AnyRole | Who::Anyone => Ok(rule),
        Who::Roles(roles) if roles.contains(&role) => Ok(rule),
        Who::Roles(roles) => {
            let needed = roles.iter().map(|role| role.as_str()).collect::<Vec<_>>().join(" or ");
            Err(Status::permission_denied(format!("{peer} may not call {path}: it is for {needed}")))
        }
    }
}

/// A finer rule within a handler: one of these roles, else the refusal is audited.
///
/// # Errors
/// UNAUTHENTICATED without a certificate, PERMISSION_DENIED for other roles.
pub fn require<T>(request: &tonic::Request<T>, rpc: &'static str, roles: &'static [Role]) -> Result<Peer, Status> {
    let peer = Peer::of(request)?;
    let rule = Rule { path: rpc, who: Who::Roles(roles), audit: Audit::Refusals };
    let decided = decide(&peer, rpc, Some(&rule)).map(drop);
    decided.inspect_err(|status| audit::refused(&peer, rpc, status.message()))?;
    Ok(peer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{Caller, Fingerprint, Identity};

    fn peer(caller: Caller) -> Peer {
        Peer { caller, address: ([127, 0, 0, 1], 1).into() }
    }

    fn certified(role: Role) -> Peer {
        let identity = Identity::new(role, "x").expect("name");
        peer(Caller::Certified { identity, fingerprint: Fingerprint::of(b"") })
    }

    fn verdict(peer: &Peer, path: &str) -> Code {
        decide(peer, path, rule(path)).map_or_else(|status| status.code(), |_| Code::Ok)
    }

    #[test]
    fn what_is_not_listed_is_denied() {
        let path = "/kagemusha.agent.v1.Agent/FormatDisk";
        for role in Role::ALL {
            assert_eq!(verdict(&certified(role), path), Code::Unimplemented);
        }
        assert_eq!(verdict(&peer(Caller::Anonymous), path), Code::Unauthenticated);
    }

    #[test]
    fn an_operator_commands_but_never_confers_a_vip() {
        let hold = "/kagemusha.agent.v1.Agent/HoldVip";
        assert_eq!(verdict(&certified(Role::Operator), "/kagemusha.agent.v1.Agent/DestroyVm"), Code::Ok);
        assert_eq!(verdict(&peer(Caller::Local), "/kagemusha.agent.v1.Agent/DestroyVm"), Code::Ok);
        assert_eq!(verdict(&certified(Role::Operator), hold), Code::PermissionDenied);
        assert_eq!(verdict(&peer(Caller::Local), hold), Code::PermissionDenied);
        assert_eq!(verdict(&certified(Role::Coordinator), hold), Code::Ok);
    }

    #[test]
    fn anyone_may_enrol_and_do_nothing_else() {
        let anonymous = peer(Caller::Anonymous);
        assert_eq!(verdict(&anonymous, "/kagemusha.coordinator.v1.Enrolment/Enrol"), Code::Ok);
        for rule in crate::roles::RULES.iter().filter(|rule| rule.who != Who::Anyone) {
            assert_eq!(verdict(&anonymous, rule.path), Code::Unauthenticated, "{}", rule.path);
        }
    }
}
