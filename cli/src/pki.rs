//! `kagectl pki`: the authority and its certificates.

use crate::{Failure, Global, connect::Coordinator};
use kage_proto::{
    coordinator::v1::CreateTokenRequest,
    issue::{AUTHORITY_DAYS, Authority, CERTIFICATE_DAYS, Subject, Trust},
    roles::{Identity, Role},
    tls::Pki,
};
use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

/// Subcommands of `kagectl pki`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an authority in DIR/ca, and certificates of a coordinator, a SIF, an operator and a viewer beside it.
    Init {
        /// A directory that is empty or not there yet.
        #[arg(long)]
        dir: PathBuf,
        /// Name of the cluster, in the authority's certificate.
        #[arg(long, default_value = "cluster")]
        name: String,
        /// Days the certificates are valid.
        #[arg(long, default_value_t = CERTIFICATE_DAYS)]
        days: u32,
    },
    /// Issue one certificate with its key.
    Issue {
        /// The directory of `kagectl pki init`, or the authority's own (with its ca.pem and key.pem).
        #[arg(long)]
        dir: PathBuf,
        /// coordinator, sif, agent, operator or viewer.
        #[arg(long)]
        role: Role,
        /// Name of its bearer; an agent's is its id.
        #[arg(long)]
        name: String,
        /// An address for foreign gRPC clients to verify; Kagemusha itself goes by role and name. Repeatable.
        #[arg(long = "san", value_name = "IP")]
        addresses: Vec<IpAddr>,
        /// Days it is valid.
        #[arg(long, default_value_t = CERTIFICATE_DAYS)]
        days: u32,
        /// Where ca.pem, cert.pem and key.pem go. Default: DIR/NAME.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Renew the certificate in PKI in place, with a new key: same bearer, addresses and length of life. Who uses it takes it
    /// up within seconds, without a restart. For a change of authority see docs/operations.md.
    Renew {
        /// The directory of `kagectl pki init`, or the authority's own.
        #[arg(long)]
        dir: PathBuf,
        /// The directory of ca.pem, cert.pem and key.pem.
        pki: PathBuf,
        /// Only add the authority to ca.pem: the first step of a change of authority, on every machine.
        #[arg(long, conflicts_with = "distrust_others")]
        trust_only: bool,
        /// Leave no other authority in ca.pem: the last step.
        #[arg(long)]
        distrust_others: bool,
        /// Days it is valid, instead of as many as the one before.
        #[arg(long)]
        days: Option<u32>,
    },
    /// Make a one-line token with which one machine enrols, once: `kage-agent enrol TOKEN`.
    Token {
        /// Name of the machine; an agent's id.
        #[arg(long)]
        name: String,
        /// Its role.
        #[arg(long, default_value = "agent")]
        role: Role,
        /// An address for foreign gRPC clients to verify. Repeatable, or with commas.
        #[arg(long, value_name = "IP", value_delimiter = ',')]
        addresses: Vec<IpAddr>,
        /// Minutes within which it must be used.
        #[arg(long, default_value_t = 60)]
        valid_minutes: u32,
    },
    /// Show whose certificate a directory holds and when it ends.
    Show {
        /// The directory of ca.pem, cert.pem and key.pem.
        dir: PathBuf,
    },
}

pub async fn run(command: &Command, global: &Global) -> Result<(), Failure> {
    match command {
        Command::Init { dir, name, days } => init(dir, name, *days),
        Command::Issue { dir, role, name, addresses, days, out } => {
            let subject = Subject { identity: Identity::new(*role, name)?, addresses: addresses.clone(), days: *days };
            issue(dir, &subject, out.as_deref())
        }
        Command::Token { name, role, addresses, valid_minutes } => {
            let identity = Identity::new(*role, name)?;
            token(global, &identity, addresses, *valid_minutes).await
        }
        Command::Renew { dir, pki, trust_only, distrust_others, days } => {
            let authority = authority(dir)?;
            let trust = if *distrust_others { Trust::Alone } else { Trust::Beside };
            if *trust_only {
                authority.trust_in(pki)?;
                println!("{}: its bearer now trusts authority {} too", pki.display(), authority.fingerprint());
            } else {
                let renewed = authority.renew_in(pki, trust, *days)?;
                println!("{}: certificate of {}, valid {} days", pki.display(), renewed.identity, renewed.days);
            }
            Ok(())
        }
        Command::Show { dir } => show(dir, global.json),
    }
}

fn init(dir: &Path, cluster: &str, days: u32) -> Result<(), Failure> {
    let roles = [Role::Coordinator, Role::Sif, Role::Operator, Role::Viewer];
    let taken = roles.map(Role::as_str).into_iter().chain(["ca"]).map(|name| dir.join(name)).find(|path| path.exists());
    if let Some(taken) = taken {
        return Err(Failure::Failed(format!(
            "{} is there already and nothing was changed; issue single certificates with `kagectl pki issue --dir {}`, \
             or name another directory",
            taken.display(),
            dir.display()
        )));
    }
    let authority = Authority::create(&dir.join("ca"), cluster, AUTHORITY_DAYS.max(days))?;
    for role in roles {
        let subject = Subject { days, ..Subject::new(Identity::new(role, role.as_str())?) };
        authority.issue_into(&subject, &dir.join(role.as_str()))?;
    }
    println!("Authority {cluster}, fingerprint {}", authority.fingerprint());
    println!("In {}: ca (keep its key.pem safe), coordinator, sif, operator, viewer.", dir.display());
    println!("Next: copy coordinator/ and sif/ to their machines; `kagectl --pki {}/operator status`.", dir.display());
    Ok(())
}

fn issue(dir: &Path, subject: &Subject, out: Option<&Path>) -> Result<(), Failure> {
    let authority = authority(dir)?;
    let out = out.map_or_else(|| dir.join(&subject.identity.name), Path::to_owned);
    authority.issue_into(subject, &out)?;
    println!("{}: certificate of {}, valid {} days", out.display(), subject.identity, subject.days);
    Ok(())
}

fn authority(dir: &Path) -> Result<Authority, Failure> {
    let inner = dir.join("ca");
    Ok(Authority::load(if inner.is_dir() { &inner } else { dir })?)
}

async fn token(global: &Global, identity: &Identity, addresses: &[IpAddr], valid_minutes: u32) -> Result<(), Failure> {
    let request = CreateTokenRequest {
        name: identity.name.clone(),
        role: identity.role.to_string(),
        addresses: addresses.iter().map(ToString::to_string).collect(),
        valid_minutes,
    };
    let coordinator = Coordinator::new(global)?;
    let reply = coordinator.ask(async |mut client| client.create_token(request).await).await?;
    if global.json {
        println!("{}", serde_json::json!({ "token": reply.token }));
    } else {
        println!("{}", reply.token);
        eprintln!("On {}'s machine, within {valid_minutes} minutes: kage-agent enrol TOKEN", identity.name);
    }
    Ok(())
}

fn show(dir: &Path, json: bool) -> Result<(), Failure> {
    let pki = Pki::load(dir)?;
    let end = i64::try_from(pki.not_after_unix_s())
        .ok()
        .and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
        .map_or_else(|| "never".to_owned(), |end| end.to_string());
    let identity = pki.identity();
    if json {
        let shown = serde_json::json!({
            "role": identity.role.as_str(),
            "name": identity.name,
            "expires": end,
            "fingerprint": pki.fingerprint().to_string(),
            "authority_fingerprint": pki.authority_fingerprint().to_string(),
        });
        println!("{shown}");
        return Ok(());
    }
    println!("role         {}", identity.role);
    println!("name         {}", identity.name);
    println!("expires      {end}");
    println!("fingerprint  {}", pki.fingerprint());
    println!("authority    {}", pki.authority_fingerprint());
    Ok(())
}
