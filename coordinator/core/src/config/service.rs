//! Reads `[[target.service]]`: the keys of its probe are checked by [`crate::probe`].

use super::{
    Service, WriterFence, keys,
    parse::A_NAME,
    read::{Faults, Given, Table},
};
use crate::probe::{FileProbe, FileStep};
use jiff::SignedDuration;
use kage_types::ServiceName;
use std::collections::BTreeMap;

const FENCES: &[(&str, WriterFence)] =
    &[("none", WriterFence::None), ("power", WriterFence::Power), ("storage", WriterFence::Storage)];

/// A target's services; `host` is the address its clients use.
pub(super) fn services(faults: &mut Faults<'_>, target: &Table<'_, '_>, host: &str) -> Vec<Service> {
    let mut services: Vec<Service> = Vec::new();
    let mut seen = BTreeMap::new();
    for table in target.tables(faults, "service", &keys::SERVICE) {
        let name: Option<Given<ServiceName>> = table.parsed(faults, "name", A_NAME);
        let name = table.required(faults, "name", name);
        let restart = table.boolean(faults, "restart").unwrap_or(true);
        let single_writer = table.boolean(faults, "single_writer").unwrap_or_default();
        let writer_fence = table.choice(faults, "writer_fence", FENCES).unwrap_or_default();
        let probe = probe(faults, &table, host);
        if let Some(name) = &name
            && let Some(first) = seen.insert(name.get_ref().clone(), name.span())
        {
            faults.twice(&table.place, name.span(), first);
            continue;
        }
        let (Some(name), Some((port, probe))) = (name, probe) else { continue };
        services.push(Service { name: name.into_inner(), probe, port, restart, single_writer, writer_fence });
    }
    services
}

fn probe(faults: &mut Faults<'_>, table: &Table<'_, '_>, host: &str) -> Option<(u16, crate::probe::Probe)> {
    let before = faults.count();
    let steps = table.has("steps").then(|| table.tables(faults, "steps", &keys::STEP));
    let mut text = |key| table.string(faults, key).map(Given::into_inner);
    let (probe, path, host_name) = (text("probe"), text("path"), text("host"));
    let (status, method, query) = (text("status"), text("method"), text("query"));
    let written = FileProbe {
        port: table.integer(faults, "port", 1..65_536).and_then(|port| u16::try_from(port.into_inner()).ok()),
        probe,
        steps: steps.as_ref().map(|steps| steps.iter().map(|step| self::step(faults, step)).collect()),
        timeout: duration(faults, table),
        tls: table.boolean(faults, "tls"),
        udp: table.boolean(faults, "udp"),
        path,
        host: host_name,
        status,
        method,
        query,
    };
    // What could not be read was complained about; checking the rest would complain of what is missing because of it.
    if faults.count() > before {
        return None;
    }
    let found = match written.check(host) {
        Ok(checked) => return Some(checked),
        Err(found) => found,
    };
    for fault in found {
        let of_step = fault.step.and_then(|number| steps.as_ref()?.get(number - 1));
        let at = of_step.unwrap_or(table);
        let text = format!("{}: {}", at.place, fault.text);
        if at.has(fault.key) {
            faults.at(at.span_of(fault.key), text);
        } else {
            faults.missing(at.span.clone(), text);
        }
    }
    None
}

fn step(faults: &mut Faults<'_>, table: &Table<'_, '_>) -> FileStep {
    let mut text = |key| table.string(faults, key).map(Given::into_inner);
    let (send, expect, wrong) = (text("send"), text("expect"), text("wrong"));
    FileStep { send, expect, wrong, timeout: duration(faults, table) }
}

fn duration(faults: &mut Faults<'_>, table: &Table<'_, '_>) -> Option<SignedDuration> {
    SignedDuration::try_from(table.duration(faults, "timeout")?.into_inner()).ok()
}
