//! Kagemusha beside others: the same faults, the same client, the same machine, in one run.
//!
//! ```text
//!   client ─┐                    ┌─ a  (serves; mail in the lab)
//!           ├─ switch (capture) ─┤
//!   near ───┘                    └─ b  (stands by; mailb)
//! ```
//!
//! `near` is an observer on `a`'s side of every cut: it can talk to `a` and to nobody else, so what it gets from the
//! virtual address shows who owns it where the client can't look.

pub mod failover;
pub mod kagemusha;
pub mod measure;
pub mod peers;
pub mod site;
pub mod table;
pub mod variant;
