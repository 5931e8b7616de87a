//! Who may call what: roles, peers and the table of every RPC.
//!
//! A certificate says who its bearer is in one URI name, `kagemusha:ROLE:NAME`. The table below repeats what the
//! comments in the `.proto` files promise; a test holds it against the descriptors, and an RPC that is not in it is
//! refused.

use std::{fmt, net::SocketAddr, str::FromStr};

/// What a certificate's bearer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The coordinator.
    Coordinator,
    /// The owner of the shared tables.
    Sif,
    /// An agent, one per machine.
    Agent,
    /// A person or program that may change things.
    Operator,
    /// A person or program that may look.
    Viewer,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 5] = [Role::Coordinator, Role::Sif, Role::Agent, Role::Operator, Role::Viewer];

    /// As written in a certificate.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Coordinator => "coordinator",
            Role::Sif => "sif",
            Role::Agent => "agent",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A role that isn't one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: use coordinator, sif, agent, operator or viewer")]
pub struct RoleError(String);

impl FromStr for Role {
    type Err = RoleError;
    fn from_str(text: &str) -> Result<Self, RoleError> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| RoleError(text.to_owned()))
    }
}

/// SHA-256 of a certificate's DER form.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

impl Fingerprint {
    /// Of a certificate in DER form.
    #[must_use]
    pub fn of(der: &[u8]) -> Self {
        let digest = ring::digest::digest(&ring::digest::SHA256, der);
        let mut bytes = [0; 32];
        bytes.copy_from_slice(digest.as_ref());
        Self(bytes)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A fingerprint that isn't 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no SHA-256 fingerprint: it has 64 hexadecimal digits")]
pub struct FingerprintError(String);

impl FromStr for Fingerprint {
    type Err = FingerprintError;
    fn from_str(text: &str) -> Result<Self, FingerprintError> {
        let bad = || FingerprintError(text.to_owned());
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut bytes = [0; 32];
        for (byte, at) in bytes.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).map_err(|_| bad())?;
        }
        Ok(Self(bytes))
    }
}

/// Who a certificate says its bearer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// What it is.
    pub role: Role,
    /// Its name: an agent's is its id.
    pub name: String,
}

/// Begins the URI name of a certificate.
const SCHEME: &str = "kagemusha:";

impl Identity {
    /// The name is checked as an agent's is.
    ///
    /// # Errors
    /// A name that is not 1 to 63 letters, digits, `.`, `_`, `-`.
    pub fn new(role: Role, name: &str) -> Result<Self, kage_types::IdError> {
        kage_types::AgentId::new(name)?;
        Ok(Self { role, name: name.to_owned() })
    }

    /// The URI name for a certificate.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("{SCHEME}{}:{}", self.role, self.name)
    }

    /// From a certificate's URI name; none for another scheme or a malformed one.
    #[must_use]
    pub fn from_uri(uri: &str) -> Option<Self> {
        let (role, name) = uri.strip_prefix(SCHEME)?.split_once(':')?;
        Self::new(role.parse().ok()?, name).ok()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.role, self.name)
    }
}

/// Who is at the other end of a connection; in the extensions of every request that reaches a handler.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who.
    pub caller: Caller,
    /// From where.
    pub address: SocketAddr,
}

/// How a peer is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// By a certificate of our authority.
    Certified {
        /// What the certificate says.
        identity: Identity,
        /// Of the certificate.
        fingerprint: Fingerprint,
    },
    /// On this machine, without TLS, because the server was told to allow it. Has the rights of an operator.
    Local,
    /// TLS without a certificate.
    Anonymous,
}

impl Peer {
    /// Its role; none if anonymous.
    #[must_use]
    pub fn role(&self) -> Option<Role> {
        match &self.caller {
            Caller::Certified { identity, .. } => Some(identity.role),
            Caller::Local => Some(Role::Operator),
            Caller::Anonymous => None,
        }
    }

    /// The name in its certificate; none without one.
    #[must_use]
    pub fn name(&self) -> Option<&str> {
        match &self.caller {
            Caller::Certified { identity, .. } => Some(&identity.name),
            Caller::Local | Caller::Anonymous => None,
        }
    }

    /// The agent this is.
    ///
    /// # Errors
    /// PERMISSION_DENIED for any other role.
    pub fn agent(&self) -> Result<kage_types::AgentId, tonic::Status> {
        match &self.caller {
            Caller::Certified { identity: Identity { role: Role::Agent, name }, .. } => {
                kage_types::AgentId::new(name.as_str())
                    .map_err(|error| tonic::Status::permission_denied(error.to_string()))
            }
            Caller::Certified { .. } | Caller::Local | Caller::Anonymous => {
                Err(tonic::Status::permission_denied(format!("{self} is no agent")))
            }
        }
    }

    /// The peer behind a request.
    ///
    /// # Errors
    /// UNAUTHENTICATED if the request came past [`crate::server`], which can't be.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Peer, tonic::Status> {
        request
            .extensions()
            .get::<Peer>()
            .cloned()
            .ok_or_else(|| tonic::Status::unauthenticated("who calls is unknown"))
    }
}

/// Who, as an audit line says it.
impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.caller {
            Caller::Certified { identity, .. } => write!(f, "{identity}"),
            Caller::Local => f.write_str("local operator"),
            Caller::Anonymous => f.write_str("anonymous"),
        }
    }
}

/// Who may call one RPC.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// `/package.Service/Method`.
    pub path: &'static str,
    /// Roles that may call it.
    pub who: Who,
    /// Is an accepted call written to the audit log too?
    pub audit: Audit,
}

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// These roles.
    Roles(&'static [Role]),
    /// Any role.
    AnyRole,
    /// Anyone, without certificate even: the call proves itself otherwise.
    Anyone,
}

/// What of an RPC is audited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Audit {
    /// Refusals only: it changes nothing, or it is routine traffic, several a second.
    Refusals,
    /// Every call: it changes something.
    Calls,
}

/// The rule of an RPC; none: nobody may call it.
#[must_use]
pub fn rule(path: &str) -> Option<&'static Rule> {
    RULES.iter().find(|rule| rule.path == path)
}

const C: Role = Role::Coordinator;
const S: Role = Role::Sif;
const A: Role = Role::Agent;
const O: Role = Role::Operator;
const V: Role = Role::Viewer;

macro_rules! rules {
    ($($path:literal, $who:expr, $audit:ident;)*) => {
        /// The rule of every RPC of the contract, and of health and reflection.
        pub const RULES: &[Rule] = &[$(Rule { path: $path, who: $who, audit: Audit::$audit }),*];
    };
}

const LOOK: Who = Who::Roles(&[C, O, V]);
const COMMAND: Who = Who::Roles(&[C, O]);
const OPERATOR: Who = Who::Roles(&[O]);
const VIEW: Who = Who::Roles(&[O, V]);
const COORDINATOR: Who = Who::Roles(&[C]);
const AGENT: Who = Who::Roles(&[A]);

rules! {
    "/kagemusha.agent.v1.Agent/GetFacts", LOOK, Refusals;
    "/kagemusha.agent.v1.Agent/WatchLoad", LOOK, Refusals;
    "/kagemusha.agent.v1.Agent/WatchEvents", LOOK, Refusals;
    "/kagemusha.agent.v1.Agent/ListVms", LOOK, Refusals;
    "/kagemusha.agent.v1.Agent/StartVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/ResumeVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/PauseVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/SaveVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/ShutdownVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/DestroyVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/RebootVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/MigrateVm", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/ListServices", LOOK, Refusals;
    "/kagemusha.agent.v1.Agent/RestartService", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/RebootHost", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/PowerOffHost", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/SuspendHost", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/Wake", COMMAND, Calls;
    "/kagemusha.agent.v1.Agent/Ping", COMMAND, Refusals;
    "/kagemusha.agent.v1.Agent/Probe", COMMAND, Refusals;
    "/kagemusha.agent.v1.Agent/ProbeVip", COMMAND, Refusals;
    "/kagemusha.agent.v1.Agent/HoldVip", COORDINATOR, Calls;
    "/kagemusha.agent.v1.Agent/ReleaseVip", COORDINATOR, Calls;
    "/kagemusha.agent.v1.Agent/ListLeases", LOOK, Refusals;
    "/kagemusha.agent.v1.Voter/Vote", AGENT, Refusals;
    "/kagemusha.agent.v1.Voter/Bar", COORDINATOR, Calls;
    "/kagemusha.agent.v1.Voter/GetVoterState", Who::Roles(&[C, S, O, V]), Refusals;
    "/kagemusha.coordinator.v1.Coordinator/GetStatus", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/WatchEvents", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/Failover", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/Failback", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/PutOrder", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/ClearOrder", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/Adopt", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/EndQuarantine", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/Check", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/ProbeTarget", OPERATOR, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/Reload", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/Characterise", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.Coordinator/GetCharacteristics", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/Explain", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Coordinator/CreateToken", OPERATOR, Calls;
    "/kagemusha.coordinator.v1.PowerSaving/GetPowerSaving", VIEW, Refusals;
    "/kagemusha.coordinator.v1.Lease/Attend", AGENT, Calls;
    "/kagemusha.coordinator.v1.Enrolment/Enrol", Who::Anyone, Calls;
    "/kagemusha.coordinator.v1.Enrolment/Renew", AGENT, Calls;
    "/kagemusha.sif.v1.Sif/GetLedger", Who::Roles(&[C, O, V]), Refusals;
    "/kagemusha.sif.v1.Sif/Subscribe", Who::Roles(&[C, O, V]), Refusals;
    "/kagemusha.sif.v1.Sif/AcquireTerm", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/RenewTerm", COORDINATOR, Refusals;
    "/kagemusha.sif.v1.Sif/ReportVoter", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/AdvanceEpoch", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/SetLongLease", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/PutTrouble", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/PutOrder", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/ClearOrder", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/GetTables", LOOK, Refusals;
    "/kagemusha.sif.v1.Sif/WatchTables", LOOK, Refusals;
    "/kagemusha.sif.v1.Sif/PutArrangement", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/AskTarget", LOOK, Refusals;
    "/kagemusha.sif.v1.Sif/FunctionRestored", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/TargetVerdict", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/PutClaims", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/MovedTo", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/BeginTransition", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/TakeTransition", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/PutStep", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/Found", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/EndTransition", COORDINATOR, Calls;
    "/kagemusha.sif.v1.Sif/Backup", OPERATOR, Calls;
    "/grpc.health.v1.Health/Check", Who::AnyRole, Refusals;
    "/grpc.health.v1.Health/Watch", Who::AnyRole, Refusals;
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", Who::AnyRole, Refusals;
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", Who::AnyRole, Refusals;
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message as _;
    use std::collections::BTreeSet;

    #[test]
    fn every_rpc_has_a_rule_and_every_rule_an_rpc() {
        let files = prost_types::FileDescriptorSet::decode(crate::DESCRIPTORS).expect("descriptors").file;
        let declared: BTreeSet<String> = files
            .iter()
            .flat_map(|file| file.service.iter().map(move |service| (file.package(), service)))
            .flat_map(|(package, service)| {
                service.method.iter().map(move |method| format!("/{package}.{}/{}", service.name(), method.name()))
            })
            .collect();
        let ruled: BTreeSet<String> =
            RULES.iter().map(|rule| rule.path.to_owned()).filter(|path| !path.starts_with("/grpc.")).collect();
        assert_eq!(declared, ruled);
        assert_eq!(RULES.len(), RULES.iter().map(|rule| rule.path).collect::<BTreeSet<_>>().len(), "no rule twice");
    }

    /// What changes nothing, or is routine several times a second, and so is audited when refused only. An RPC that is
    /// added is audited, or argued for here.
    #[test]
    fn every_rpc_that_changes_something_is_audited() {
        const LOOKS: [&str; 26] = [
            "agent.v1.Agent/GetFacts",
            "agent.v1.Agent/WatchLoad",
            "agent.v1.Agent/WatchEvents",
            "agent.v1.Agent/ListVms",
            "agent.v1.Agent/ListServices",
            "agent.v1.Agent/ListLeases",
            // They look at others, from here.
            "agent.v1.Agent/Ping",
            "agent.v1.Agent/Probe",
            "agent.v1.Agent/ProbeVip",
            "coordinator.v1.Coordinator/ProbeTarget",
            // Several a second from every owner while the coordinator is away; what was promised is on the disk.
            "agent.v1.Voter/Vote",
            "agent.v1.Voter/GetVoterState",
            "coordinator.v1.Coordinator/GetStatus",
            "coordinator.v1.Coordinator/WatchEvents",
            "coordinator.v1.Coordinator/Check",
            "coordinator.v1.Coordinator/Explain",
            "coordinator.v1.Coordinator/GetCharacteristics",
            "coordinator.v1.PowerSaving/GetPowerSaving",
            "sif.v1.Sif/GetLedger",
            "sif.v1.Sif/Subscribe",
            "sif.v1.Sif/GetTables",
            "sif.v1.Sif/WatchTables",
            "sif.v1.Sif/AskTarget",
            // Every second, and it prolongs what AcquireTerm gave.
            "sif.v1.Sif/RenewTerm",
            "grpc.health.v1.Health/Check",
            "grpc.health.v1.Health/Watch",
        ];
        let silent: BTreeSet<&str> = RULES
            .iter()
            .filter(|rule| rule.audit == Audit::Refusals && !rule.path.contains("ServerReflection"))
            .map(|rule| rule.path.trim_start_matches('/').trim_start_matches("kagemusha."))
            .collect();
        assert_eq!(silent, BTreeSet::from(LOOKS));
    }

    #[test]
    fn only_enrolment_is_open_to_anyone() {
        let open: Vec<_> = RULES.iter().filter(|rule| rule.who == Who::Anyone).map(|rule| rule.path).collect();
        assert_eq!(open, ["/kagemusha.coordinator.v1.Enrolment/Enrol"]);
    }

    #[test]
    fn identities_are_strict() {
        let identity = Identity::new(Role::Agent, "rs1").expect("name");
        assert_eq!(identity.uri(), "kagemusha:agent:rs1");
        assert_eq!(Identity::from_uri("kagemusha:agent:rs1"), Some(identity));
        for bad in
            ["kagemusha:agent", "kagemusha:root:x", "kagemusha:agent:", "kagemusha:agent:a:b", "https://x", "agent:rs1"]
        {
            assert_eq!(Identity::from_uri(bad), None, "{bad}");
        }
    }

    #[test]
    fn fingerprints_round_trip() {
        let fingerprint = Fingerprint::of(b"x");
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        for bad in ["", "zz", &"é".repeat(32), &"+f".repeat(32)] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }
}
