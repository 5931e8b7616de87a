//! Real servers on loopback: who gets in, who doesn't, and what the audit log says of it.

mod access;
mod compatible;
mod enrolment;
mod fuzz;
mod handshake;
mod lab;
mod limits;
mod serving;
