//! The file server: NFS 4.1 in user space (nfs-ganesha), in a namespace of its own. Services' data lies here, never on
//! the servers themselves (thesis ch. 2), so that a double serves what its target served.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::dirs;
use super::nodes::Spec;
use super::run::{shell, text, wait_until, write};
use super::spawn::{Daemon, run_in};

/// What the guests mount as `/srv`, on this machine's disk.
#[must_use]
pub fn export(node: &Spec) -> PathBuf {
    dirs::node(node.name).join("export")
}

/// Starts the server on empty data, and waits until it takes connections.
///
/// # Errors
/// nfs-ganesha is not installed, or does not start.
pub fn up(node: &'static Spec) -> Result<()> {
    let (folder, data) = (dirs::node(node.name), text(&export(node)));
    let settings = folder.join("ganesha.conf");
    write(
        &settings,
        format!(
            "NFS_CORE_PARAM {{ NFS_Protocols = 4; Bind_addr = {}; Enable_NLM = false; Enable_RQUOTA = false; }}\n\
             NFSV4 {{ Graceless = true; }}\n\
             LOG {{ Default_Log_Level = WARN; }}\n\
             EXPORT {{ Export_Id = 1; Path = {data}; Pseudo = /srv; Access_Type = RW; Squash = No_Root_Squash;\n\
             \x20   SecType = sys; Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }} }}\n",
            node.ip()
        ),
    )?;
    // Ids of Debian's www-data and of the guests' user demo.
    shell(&format!(
        "mkdir -p '{data}/mail/demo' '{data}/www'; chown 1000:1000 '{data}/mail/demo'; chown 33:33 '{data}/www'"
    ))?;
    // Ganesha knows these folders by fixed paths.
    let mut script = String::new();
    for path in ["/var/lib/nfs/ganesha", "/run/ganesha"] {
        let own = text(&folder.join("root").join(path.trim_start_matches('/')));
        script.push_str(&format!("mkdir -p {own} {path}; mount --bind {own} {path}\n"));
    }
    // It asks for each client's name before it answers, and there is no name server here.
    let names = folder.join("nsswitch.conf");
    write(&names, "passwd: files\ngroup: files\nhosts: files\n")?;
    script.push_str(&format!("mount --bind {} /etc/nsswitch.conf\n", text(&names)));
    script.push_str(&format!(
        "exec ganesha.nfsd -F -L STDOUT -f {} -p {}\n",
        text(&settings),
        text(&folder.join("nfs.pid"))
    ));
    let words = ["ip", "netns", "exec", &node.namespace(), "unshare", "-m", "sh", "-ec", &script].map(str::to_owned);
    let daemon = Daemon::new(node, "ganesha");
    daemon.start_bare(&words).context("cannot start nfs-ganesha; tests/lab installs it")?;
    let probe = format!("timeout 1 bash -c '</dev/tcp/{}/2049'", node.ip());
    wait_until(Duration::from_secs(20), "the file server takes connections", || {
        Ok(run_in(node, &["sh", "-c", &probe]).is_ok())
    })
    .with_context(|| daemon.tail())?;
    Ok(())
}
