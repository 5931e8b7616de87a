//! Enrolment: a one-line token lets one machine have a certificate, once.

use crate::{clock::unix_ms, driver::Handle};
use anyhow::Context as _;
use kage_coordinator_core::config::Cluster;
use kage_proto::{
    coordinator::v1::{CreateTokenRequest, EnrolReply, EnrolRequest, RenewRequest, enrolment_server},
    issue::{Authority, Subject},
    roles::{Identity, Peer, Role},
    token::Token,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};
use tonic::{Request, Response, Status};

/// Unless another is asked for.
const VALID_MINUTES: u32 = 60;
/// Tokens not yet used. More are refused: somebody's script is wild.
const MAX_OPEN: usize = 1000;

/// A token not yet used: whom it makes, until when. The secret itself is not kept.
#[derive(Clone, Serialize, Deserialize)]
struct Open {
    role: String,
    name: String,
    addresses: Vec<IpAddr>,
    until_unix_ms: u64,
    /// What it made. The same request gets the same answer again, in case the first was lost; any other is refused.
    used: Option<Used>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Used {
    csr_pem: String,
    certificate_pem: String,
}

/// The authority, and the tokens.
#[derive(Clone)]
pub struct Enrolment(Arc<Inner>);

struct Inner {
    authority: Option<Authority>,
    coordinator: String,
    file: PathBuf,
    open: Mutex<BTreeMap<String, Open>>,
}

impl Enrolment {
    /// With the authority in `dir`, or none.
    ///
    /// # Errors
    /// An authority or token file that can't be read.
    pub fn load(dir: Option<&Path>, state: &Path, cluster: &Cluster) -> anyhow::Result<Self> {
        let authority = dir.map(Authority::load).transpose()?;
        let file = state.join("tokens.json");
        let open = match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged: delete it, and make the tokens anew", file.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error).with_context(|| format!("{} can't be read", file.display())),
        };
        let coordinator = cluster.coordinator.to_string();
        Ok(Self(Arc::new(Inner { authority, coordinator, file, open: Mutex::new(open) })))
    }

    fn authority(&self) -> Result<&Authority, Status> {
        self.0.authority.as_ref().ok_or_else(|| {
            Status::failed_precondition(
                "this coordinator has no certificate authority: start it with --authority DIR, or issue certificates with `kagectl pki issue`",
            )
        })
    }

    /// Change the tokens, durably.
    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Open>) -> Result<T, Status>) -> Result<T, Status> {
        let mut open = self.0.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = unix_ms();
        let mut next = open.clone();
        next.retain(|_, token| token.until_unix_ms > now);
        let value = change(&mut next)?;
        let bytes = serde_json::to_vec(&next).map_err(|error| Status::internal(error.to_string()))?;
        let part = self.0.file.with_extension("part");
        std::fs::write(&part, bytes)
            .and_then(|()| std::fs::File::open(&part)?.sync_all())
            .and_then(|()| std::fs::rename(&part, &self.0.file))
            .map_err(|error| Status::unavailable(format!("{} can't be written: {error}", self.0.file.display())))?;
        *open = next;
        Ok(value)
    }

    /// A new token.
    pub fn create(&self, request: CreateTokenRequest) -> Result<String, Status> {
        let authority = self.authority()?;
        let bad = |error: String| Status::invalid_argument(error);
        let role: Role = if request.role.is_empty() {
            Role::Agent
        } else {
            request.role.parse().map_err(|_| bad(format!("role {:?} is unknown", request.role)))?
        };
        if !matches!(role, Role::Agent | Role::Viewer) {
            return Err(bad(format!("a token makes an agent or a viewer; issue role {role} with `kagectl pki issue`")));
        }
        let identity = Identity::new(role, &request.name).map_err(|error| bad(error.to_string()))?;
        let addresses = request
            .addresses
            .iter()
            .map(|text| text.parse().map_err(|_| bad(format!("{text:?} is no IP address"))))
            .collect::<Result<Vec<IpAddr>, Status>>()?;
        let token = Token::new(&self.0.coordinator, authority.fingerprint(), identity)
            .map_err(|error| Status::internal(error.to_string()))?;
        let minutes = if request.valid_minutes == 0 { VALID_MINUTES } else { request.valid_minutes };
        let open = Open {
            role: role.to_string(),
            name: request.name,
            addresses,
            until_unix_ms: unix_ms().saturating_add(u64::from(minutes) * 60_000),
            used: None,
        };
        self.change(|tokens| {
            if tokens.len() >= MAX_OPEN {
                return Err(Status::resource_exhausted(format!(
                    "{MAX_OPEN} tokens are open: use them or let them expire"
                )));
            }
            tokens.insert(Token::secret_digest(&token.secret), open);
            Ok(())
        })?;
        Ok(token.encode())
    }
}

fn unknown() -> Status {
    Status::permission_denied("this token is unknown, used or expired: make a new one with `kagectl pki token`")
}

/// `kagemusha.coordinator.v1.Enrolment`: what needs the configuration in force, too.
pub struct Service {
    pub enrolment: Enrolment,
    pub handle: Handle,
}

#[tonic::async_trait]
impl enrolment_server::Enrolment for Service {
    async fn enrol(&self, request: Request<EnrolRequest>) -> Result<Response<EnrolReply>, Status> {
        self.enrolment.enrol(request.into_inner()).map(Response::new)
    }

    async fn renew(&self, request: Request<RenewRequest>) -> Result<Response<EnrolReply>, Status> {
        let authority = self.enrolment.authority()?;
        let agent = Peer::of(&request)?.agent()?;
        let name = agent.clone();
        let machine = self.handle.query(move |core, _| core.cluster().agents.get(&name).cloned()).await?;
        // Taken out of the configuration, its certificate is left to end.
        let machine = machine.ok_or_else(|| {
            Status::permission_denied(format!("{agent} is not in the coordinator's configuration: nothing is renewed"))
        })?;
        let identity =
            Identity::new(Role::Agent, agent.as_str()).map_err(|error| Status::internal(error.to_string()))?;
        let subject = Subject { addresses: vec![machine.address.ip()], ..Subject::new(identity) };
        let certificate_pem = authority
            .sign(&request.into_inner().csr_pem, &subject)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        Ok(Response::new(EnrolReply { certificate_pem, ca_pem: authority.ca_pem().to_owned() }))
    }
}

impl Enrolment {
    fn enrol(&self, request: EnrolRequest) -> Result<EnrolReply, Status> {
        let authority = self.authority()?;
        let EnrolRequest { secret, csr_pem } = request;
        let digest = Token::secret_digest(&secret);
        let certificate_pem = self.change(|tokens| {
            let open = tokens.get_mut(&digest).ok_or_else(unknown)?;
            if let Some(used) = &open.used {
                return if used.csr_pem == csr_pem { Ok(used.certificate_pem.clone()) } else { Err(unknown()) };
            }
            let role: Role = open.role.parse().map_err(|_| Status::internal("a token of an unknown role"))?;
            let identity = Identity::new(role, &open.name).map_err(|error| Status::internal(error.to_string()))?;
            tracing::info!(target: "audit", %identity, "a machine enrolled");
            let subject = Subject { addresses: open.addresses.clone(), ..Subject::new(identity) };
            let certificate_pem =
                authority.sign(&csr_pem, &subject).map_err(|error| Status::invalid_argument(error.to_string()))?;
            open.used = Some(Used { csr_pem, certificate_pem: certificate_pem.clone() });
            Ok(certificate_pem)
        })?;
        Ok(EnrolReply { certificate_pem, ca_pem: authority.ca_pem().to_owned() })
    }
}
