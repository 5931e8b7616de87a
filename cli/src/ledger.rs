//! `kagectl ledger`: copies of SIF's ledger.

use crate::{Failure, Global};
use kage_proto::{
    channel::{Credentials, Options, channel, reason},
    roles::Role,
    sif::v1::{BackupRequest, sif_client::SifClient},
    tls::{Expected, Pki},
};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};
use tonic::transport::Channel;

/// Subcommands of `kagectl ledger`.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Copy SIF's ledger into FILE while it serves; restored with `kage-sif restore FILE --state DIR`.
    Backup {
        /// Replaced if it is there.
        file: PathBuf,
        /// Address of SIF: `[sif] listen` of cluster.toml.
        #[arg(long, env = "KAGE_SIF", default_value = "127.0.0.1:7701", value_name = "HOST:PORT")]
        sif: String,
    },
}

pub async fn run(command: &Command, global: &Global) -> Result<(), Failure> {
    let Command::Backup { file, sif } = command;
    match tokio::time::timeout(global.timeout, fetch(global, sif)).await {
        Ok(copy) => {
            let copy = copy?;
            write(file, &copy).map_err(|error| Failure::Failed(format!("can't write {}: {error}", file.display())))?;
            if global.json {
                println!("{}", serde_json::json!({ "file": file, "bytes": copy.len() }));
            } else {
                println!("{}: {} bytes. Keep it on another machine.", file.display(), copy.len());
            }
            Ok(())
        }
        Err(_) => Err(unreachable(sif, &format!("no copy within {:?}", global.timeout))),
    }
}

/// The end of a call that failed.
pub fn told(sif: &str, status: &tonic::Status) -> Failure {
    match std::error::Error::source(status) {
        Some(_) => unreachable(sif, &reason(status)),
        None => Failure::Failed(format!("SIF refused: {}", status.message())),
    }
}

pub fn client(global: &Global, sif: &str) -> Result<SifClient<Channel>, Failure> {
    let credentials =
        if global.plaintext { Credentials::PlaintextLoopback } else { Credentials::Tls(Pki::load(&global.pki)?) };
    let options = Options { connect_timeout: global.timeout.min(Duration::from_secs(5)), ..Options::default() };
    Ok(SifClient::new(channel(sif, &credentials, Expected::role(Role::Sif), &options)?))
}

pub fn unreachable(sif: &str, why: &str) -> Failure {
    Failure::Unreachable(format!(
        "can't ask SIF at {sif}: {why}\n\
         Next: is kage-sif running there (`systemctl status kage-sif`)? Is the address right (--sif, KAGE_SIF)?"
    ))
}

async fn fetch(global: &Global, sif: &str) -> Result<Vec<u8>, Failure> {
    let mut client = client(global, sif)?;
    let told = |status: tonic::Status| told(sif, &status);
    let mut chunks = client.backup(BackupRequest {}).await.map_err(told)?.into_inner();
    let mut copy = Vec::new();
    while let Some(chunk) = chunks.message().await.map_err(told)? {
        copy.extend(chunk.content);
    }
    // SIF ends the stream in good order only after the last byte; its own checksum is in the first line.
    Ok(copy)
}

/// Whole or not at all. Readable by its owner alone: it names machines and people.
fn write(file: &Path, copy: &[u8]) -> io::Result<()> {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&part)?;
    open.write_all(copy)?;
    open.sync_all()?;
    fs::rename(&part, file)?;
    let dir = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(dir)?.sync_all()
}
