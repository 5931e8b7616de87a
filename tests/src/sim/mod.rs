//! The deterministic simulator of the lease protocol: the production cores under virtual time, in a world that stalls,
//! crashes, cuts and delays by one seed. What is checked: docs/safety.md; what is modelled: each file's first lines.

pub mod agent;
mod agent_act;
mod agent_command;
pub mod campaign;
pub mod checks;
pub mod clock;
pub mod config;
pub mod coordinator;
pub mod exhaust;
pub mod faults;
pub mod journal;
pub mod kernel;
mod look;
pub mod machine;
pub mod net;
pub mod night;
pub mod outcome;
pub mod record;
pub mod rng;
pub mod run;
pub mod sabotage;
pub mod scenario;
pub mod search;
pub mod sif;
mod streams;
pub mod world;
pub mod writing;
