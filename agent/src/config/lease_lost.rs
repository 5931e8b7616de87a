//! What becomes of a service without its lease (docs/safety.md, "Never two writers").

use super::ServiceConfig;
use kage_agent_core::Halt;
use kage_types::ServiceName;
use serde::Deserialize;

/// `on_lease_lost`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnLeaseLost {
    /// It is stopped, and started when the VIP is here again.
    Stop,
    /// Its processes are frozen, and thawed.
    Freeze,
    /// Nothing: what it writes goes to no storage that its double writes to.
    None,
}

/// Services that deliver or store: two of them over the same data do harm.
const WRITERS: &[&str] = &[
    "cyrus-imapd",
    "dovecot",
    "exim4",
    "mariadb",
    "mongod",
    "mysql",
    "mysqld",
    "nfs-server",
    "postfix",
    "postgresql",
    "proftpd",
    "redis",
    "redis-server",
    "sendmail",
    "slapd",
    "smbd",
    "vsftpd",
];

impl ServiceConfig {
    /// How it is kept from writing without a lease; None: not at all.
    #[must_use]
    pub fn halt(&self, name: &ServiceName) -> Option<Halt> {
        match self.on_lease_lost {
            Some(OnLeaseLost::Stop) => Some(Halt::Stop),
            Some(OnLeaseLost::Freeze) => Some(Halt::Freeze),
            Some(OnLeaseLost::None) => None,
            None => {
                let unit = self.unit.as_deref().unwrap_or(name.as_str());
                let unit = unit.strip_suffix(".service").unwrap_or(unit);
                // postgresql@15-main, postgresql-15
                let usual = WRITERS.contains(&unit) || unit.starts_with("postgresql");
                usual.then_some(Halt::Stop)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_that_write_stop_without_a_lease_unless_told_otherwise() {
        let halt = |name: &str, rest: &str| {
            let config: ServiceConfig = toml::from_str(rest).expect("service");
            config.halt(&ServiceName::new(name).expect("name"))
        };
        assert_eq!(halt("mail", "unit = \"postfix.service\""), Some(Halt::Stop));
        assert_eq!(halt("db", "unit = \"postgresql@15-main.service\""), Some(Halt::Stop));
        assert_eq!(halt("mail", "unit = \"postfix.service\"\non_lease_lost = \"none\""), None);
        assert_eq!(halt("http", "unit = \"nginx.service\""), None);
        let own = "unit = \"nginx.service\"\non_lease_lost = \"freeze\"\nvips = [\"10.0.0.1\"]";
        assert_eq!(halt("http", own), Some(Halt::Freeze));
    }
}
