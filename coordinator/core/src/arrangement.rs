//! What the configuration says there is, for the shared tables of thesis ch. 4.

use crate::config::Cluster;
use kage_types::{AgentId, DomainName, GroupName, OperationRow};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// Virtual servers at home in Moderate condition, real servers, service groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arrangement {
    /// By place: the virtual server's own name.
    pub operation: BTreeMap<DomainName, OperationRow>,
    /// RSG.
    pub real_servers: BTreeSet<AgentId>,
    /// All service groups.
    pub groups: BTreeSet<GroupName>,
}

impl Arrangement {
    /// Of a configuration. Without virtual servers as targets there is nothing in it.
    #[must_use]
    pub fn of(cluster: &Cluster) -> Self {
        let group = |target| {
            let member = |(_, group): &(&GroupName, &crate::config::saving::Group)| group.members.contains(target);
            cluster.groups.iter().find(member).map(|(name, _)| name.clone())
        };
        let rows = cluster.targets.iter().filter_map(|(name, target)| {
            let domain = target.domain()?.clone();
            let row = OperationRow {
                group: group(name),
                vm: domain.clone(),
                host: target.agent.clone(),
                home: target.agent.clone(),
                home_vips: target.vips.clone(),
            };
            Some((domain, row))
        });
        Self {
            operation: rows.collect(),
            real_servers: cluster.hosts.keys().cloned().collect(),
            groups: cluster.groups.keys().cloned().collect(),
        }
    }

    /// Is there nothing to be told? Then no shared tables are needed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
