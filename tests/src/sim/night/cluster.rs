//! The thesis's arrangement (fig. 4.4) as a configuration.

use anyhow::{Result, anyhow};
use kage_coordinator_core::config::Cluster;
use std::fmt::Write as _;

/// Virtual server, its group, its real server, the end of its virtual IP, its service's port.
pub const MEMBERS: [(&str, &str, &str, u8, u16); 6] = [
    ("mail1", "mail", "rs1", 101, 25),
    ("web1", "web", "rs1", 102, 80),
    ("ftp1", "ftp", "rs2", 103, 21),
    ("mail2", "mail", "rs2", 104, 25),
    ("web2", "web", "rs3", 105, 80),
    ("ftp2", "ftp", "rs3", 106, 21),
];

/// Groups, and the end of their doubles' own addresses.
const GROUPS: [(&str, u8); 3] = [("mail", 51), ("web", 52), ("ftp", 53)];

/// Three real servers, three groups of two, a double for each group on the management server with an agent inside, a further
/// one of each on a second such server, three voters.
///
/// # Errors
/// None, unless the configuration's own rules have changed.
pub fn cluster(pss: &str) -> Result<Cluster> {
    let mut text = "[cluster]\nname = \"night\"\nprofile = \"normal\"\n[coordinator]\n\
                    listen = \"10.0.0.2:7700\"\n[sif]\nlisten = \"10.0.0.2:7701\"\n[[agent]]\nname = \"mgmt\"\n\
                    address = \"10.0.0.2:7702\"\nguard = \"tap\"\n[[agent]]\nname = \"more\"\naddress = \"10.0.0.3:7702\"\n\
                    guard = \"tap\"\n"
        .to_owned();
    for number in 1..=3 {
        let _ = write!(
            text,
            "[[agent]]\nname = \"rs{number}\"\naddress = \"10.0.0.1{number}:7702\"\nguard = \"tap\"\n\
             mac = \"52:54:00:00:00:1{number}\"\n[[agent]]\nname = \"v{number}\"\naddress = \"10.0.0.2{number}:7702\"\n\
             voter = true\n[[host]]\nagent = \"rs{number}\"\nwatts = {{ awake = 88, asleep = 3 }}\nwakes_in = \"3s\"\n"
        );
    }
    for (group, last) in GROUPS {
        let _ = write!(text, "[[agent]]\nname = \"{group}bg\"\naddress = \"10.0.1.{last}:7702\"\nguard = \"none\"\n");
    }
    for (name, group, host, last, port) in MEMBERS {
        let double = GROUPS.iter().find(|(name, _)| *name == group).map_or(0, |(_, last)| *last);
        let _ = write!(
            text,
            "[[target]]\nname = \"{name}\"\nvm = {{ domain = \"{name}\", host = \"{host}\" }}\naddress = \"10.0.1.{last}\"\n\
             vips = [\"10.0.0.{last}\"]\nfailback = \"auto\"\n\
             backup = {{ agent = \"mgmt\", domain = \"{group}b\", guest = \"{group}bg\", address = \"10.0.1.{double}\", \
             further = {{ agent = \"more\", domain = \"{group}c\" }} }}\n\
             healthy_for = \"3s\"\nreboot_wait = \"30s\"\nstart_wait = \"30s\"\n\
             budget = {{ restarts = 1000, reboots = 1000, takeovers = 1000 }}\n[[target.service]]\nname = \"s{port}\"\n\
             probe = \"tcp\"\nport = {port}\n"
        );
    }
    for (group, _) in GROUPS {
        let _ = write!(
            text,
            "[[group]]\nname = \"{group}\"\nmembers = [\"{group}1\", \"{group}2\"]\nbase = \"rs1\"\nrated = 1000\n"
        );
    }
    text.push_str(pss);
    Cluster::parse(&text).map_err(|error| anyhow!("{error}"))
}
