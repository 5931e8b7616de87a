//! The gate before every handler: looks up who calls, asks the table, audits.

use crate::{
    audit,
    roles::{Audit, Peer, Role, Rule, Who, rule},
};
use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};
use tonic::{
    Status,
    body::Body,
    codegen::{Service, http},
};

/// Refuses what [`crate::roles::RULES`] does not allow; default deny.
#[derive(Clone, Debug)]
pub(crate) struct Guard<S> {
    inner: S,
}

impl<S> Guard<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self { inner }
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

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        match admit(request.extensions().get::<Peer>(), request.uri().path()) {
            Ok(()) => Box::pin(self.inner.call(request)),
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}

fn admit(peer: Option<&Peer>, path: &str) -> Result<(), Status> {
    let Some(peer) = peer else {
        return Err(Status::internal("the connection has no peer: it did not come through kage_proto::server"));
    };
    let rule = rule(path);
    match decide(peer, path, rule) {
        Ok(()) => {
            if rule.is_some_and(|rule| rule.audit == Audit::Calls) {
                audit::allowed(peer, path);
            }
            Ok(())
        }
        Err(status) => {
            audit::refused(peer, path, status.message());
            Err(status)
        }
    }
}

/// The decision itself.
fn decide(peer: &Peer, path: &str, rule: Option<&Rule>) -> Result<(), Status> {
    let who = rule.map(|rule| rule.who);
    if who == Some(Who::Anyone) {
        return Ok(());
    }
    let Some(role) = peer.role() else {
        return Err(Status::unauthenticated(
            "this call needs a client certificate of the cluster's authority; kagectl takes it from --pki DIR, \
             and `kagectl pki issue` makes one",
        ));
    };
    match who {
        None => Err(Status::unimplemented(format!("there is no RPC {path}; server reflection lists those there are"))),
        Some(Who::AnyRole | Who::Anyone) => Ok(()),
        Some(Who::Roles(roles)) if roles.contains(&role) => Ok(()),
        Some(Who::Roles(roles)) => {
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
    match decide(&peer, rpc, Some(&rule)) {
        Ok(()) => Ok(peer),
        Err(status) => {
            audit::refused(&peer, rpc, status.message());
            Err(status)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::roles::{Caller, Fingerprint, Identity};
    use tonic::Code;

    fn peer(caller: Caller) -> Peer {
        Peer { caller, address: ([127, 0, 0, 1], 1).into() }
    }

    fn certified(role: Role) -> Peer {
        let identity = Identity::new(role, "x").expect("name");
        peer(Caller::Certified { identity, fingerprint: Fingerprint::of(b"") })
    }

    fn verdict(peer: &Peer, path: &str) -> Code {
        decide(peer, path, rule(path)).map_or_else(|status| status.code(), |()| Code::Ok)
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
