//! docs/modes.md: mode × input → next mode and actions, as the core does it. `UPDATE_MODES=1 cargo test -p
//! kage-coordinator-core --test modes` writes it anew.

mod support;

use kage_coordinator_core::{Action, AgentCommand, Event};
use std::fmt::Write as _;
use support::{Cure, Ms, World, head, target, vip, with_target};

/// Nothing has led out of a mode by then: it stays.
const LIMIT: Ms = 130_000;

const KEYS: &str = "healthy_for = \"5s\"\nreboot_wait = \"30s\"\nstart_wait = \"40s\"";

type Do = fn(&mut World);

/// Every mode, and how the world is brought into it.
const MODES: &[(&str, &str, Do)] = &[
    ("regular", "Checked every interval: ping and probes at the VIP; its lease is watched.", |_| {}),
    ("service-recovery/restarting", "A service in trouble is being restarted; others wait for their turn.", |world| {
        world.service_down("mail", 25, Cure::Restart);
        world.service_reported("mail", 25);
    }),
    ("service-recovery/probing", "Tsw after the restart, then probes until its patience ends.", |world| {
        world.service_down("mail", 25, Cure::Restart);
        world.service_reported("mail", 25);
    }),
    ("network-examination", "Is it really lost? Ping and probes again, power where it can be read.", |world| {
        world.server("mail").wakes = false;
        world.power_lost("mail");
    }),
    ("backup-server", "The VIPs are on their way to the double.", |world| {
        world.server("mail").wakes = false;
        world.power_lost("mail");
    }),
    (
        "target-server-recovery/awaiting",
        "The double serves. Is the target rebooting? Up to reboot_wait (Trc).",
        |world| {
            world.server("mail").wakes = false;
            world.power_lost("mail");
        },
    ),
    ("target-server-recovery/waking", "It is stopped: Wake-on-LAN, three times start_wait.", |world| {
        world.server("mail").wakes = false;
        world.power_lost("mail");
    }),
    ("target-server-recovery/settling", "It came back: Tsw, then ping and probes, up to start_wait.", |world| {
        world.power_lost("mail");
    }),
    ("target-server-recovery/healthy", "Verdict up: it returns when it has been healthy for healthy_for.", |world| {
        world.power_lost("mail");
    }),
    (
        "target-server-recovery/double-silent",
        "The same, and the host of its double is silent. The target returns at once if its services do not answer at the \
         VIP either.",
        |world| {
            world.power_lost("mail");
            world.until(300_000, "healthy", |world| world.mode("mail") == "target-server-recovery/healthy");
            world.server("mgmt").agent_dead = true;
        },
    ),
    ("target-server-recovery/moved-by-operator", "Moved by the operator: only observed.", |world| {
        operator(world, false, true);
    }),
    ("target-server-recovery/returning", "The VIPs are on their way back.", |world| world.power_lost("mail")),
    ("ended", "Verdict down: the double keeps VIP and service until the operator starts this again.", |world| {
        world.server("mail").wakes = false;
        world.power_lost("mail");
    }),
];

fn operator(world: &mut World, back: bool, force: bool) {
    world.step(Event::Move { command: 1, target: target("mail"), back, force });
}

/// Everything that matters, as it comes from outside.
const INPUTS: &[(&str, Do)] = &[
    ("time goes by", |_| {}),
    ("its pings are lost, all else is well", |world| world.server("mail").mute = true),
    ("its agent dies, all else is well", |world| world.server("mail").agent_dead = true),
    ("a service stops, a restart cures it", |world| world.service_down("mail", 25, Cure::Restart)),
    ("its agent reports a service down, a restart cures it", |world| {
        world.service_down("mail", 25, Cure::Restart);
        world.service_reported("mail", 25);
    }),
    ("a service stops for good", |world| world.service_down("mail", 25, Cure::Nothing)),
    ("its machine is lost", |world| {
        world.server("mail").wakes = false;
        world.power_lost("mail");
    }),
    ("the host of its double is lost", |world| world.power_lost("mgmt")),
    ("its machine says that it goes down", |world| world.shut_down("mail", false)),
    ("it is there again, and well", |world| world.back("mail")),
    ("operator: failover", |world| operator(world, false, false)),
    ("operator: failback", |world| operator(world, true, true)),
];

fn word(action: &Action) -> Option<&'static str> {
    Some(match action {
        Action::Ping { .. } => "ping",
        Action::Probe { .. } => "probe",
        Action::ReadPower { .. } => "read power",
        Action::AdvanceEpoch { .. } => "new epoch",
        Action::Bar { .. } => "bar",
        Action::Command { command, .. } => match command {
            AgentCommand::Hold { .. } => "hold",
            AgentCommand::Prepare { .. } => "prepare",
            AgentCommand::Release { .. } => "release",
            AgentCommand::ResumeVm { .. } => "resume double",
            AgentCommand::PauseVm { .. } => "suspend double",
            AgentCommand::StartVm { .. } => "start VM",
            AgentCommand::DestroyVm { .. } => "destroy VM",
            AgentCommand::RebootVm { force: false, .. } => "reboot VM",
            AgentCommand::RebootVm { force: true, .. } => "reset VM",
            AgentCommand::MigrateVm { .. } => "migrate VM",
            AgentCommand::FindVm { .. } => "look for VM",
            AgentCommand::RestartService { .. } => "restart service",
            AgentCommand::Reboot => "reboot",
            AgentCommand::Wake { .. } => "wake",
            AgentCommand::ProbeVip { .. } => "look for the VIP",
        },
        Action::Note(note) if note.severity == kage_coordinator_core::Severity::Alert => "**alert**",
        Action::PowerOff { .. } => "power off",
        Action::FenceStorage { revoke: true, .. } => "revoke storage",
        Action::FenceStorage { revoke: false, .. } => "give storage back",
        Action::Reply { .. }
        | Action::AcquireTerm
        | Action::RenewTerm { .. }
        | Action::ReadLedger
        | Action::SetLongLease { .. }
        | Action::PutTrouble { .. }
        | Action::Note(_)
        | Action::Moved { .. }
        | Action::PutOrder { .. }
        | Action::ClearOrder { .. }
        | Action::PutArrangement { .. }
        | Action::FunctionRestored { .. }
        | Action::TargetVerdict { .. }
        | Action::PutClaims { .. }
        | Action::MovedTo { .. }
        | Action::Configured => return None,
    })
}

struct Row {
    input: &'static str,
    next: String,
    actions: Vec<&'static str>,
}

fn bring(mode: &str, script: Do, config: &str) -> World {
    let mut world = World::new(config);
    script(&mut world);
    world.until(300_000, mode, |world| world.mode("mail") == mode);
    world.log.clear();
    world
}

fn row(mode: &str, script: Do, input: &'static str, apply: Do, config: &str) -> Row {
    let mut world = bring(mode, script, config);
    apply(&mut world);
    let end = world.now + LIMIT;
    while world.now < end && world.mode("mail") == mode {
        world.run(5);
    }
    let mut actions = Vec::new();
    for word in world.log.iter().filter_map(|(_, action)| word(action)) {
        if !actions.contains(&word) {
            actions.push(word);
        }
    }
    Row { input, next: world.mode("mail"), actions }
}

fn document() -> String {
    let plain = head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25]);
    let used_up = format!("{KEYS}\nbudget = {{ restarts = 0, reboots = 0, takeovers = 1 }}");
    let used_up = head("normal") + &with_target("mail", 100, "mailb", &used_up, &[25]);
    let mut tables = String::new();
    let mut edges: Vec<(String, String, &'static str)> = Vec::new();
    for (mode, about, script) in MODES {
        let mut rows: Vec<Row> =
            INPUTS.iter().map(|(input, apply)| row(mode, *script, input, *apply, &plain)).collect();
        if *mode == "regular" {
            let stop: Do = |world| world.service_down("mail", 25, Cure::Nothing);
            rows.push(row(mode, *script, "a service stops, its restarts are used up", stop, &used_up));
        }
        if mode.ends_with("healthy") {
            rows.push(row(mode, *script, "time goes by, its takeovers are used up", |_| {}, &used_up));
        }
        let _ = write!(
            tables,
            "### {mode}\n\n{about}\n\n| What happens | Next | What is done until then |\n|---|---|---|\n"
        );
        for row in rows {
            let stays = row.next == *mode;
            let next = if stays { "stays".to_owned() } else { format!("**{}**", row.next) };
            let _ = writeln!(tables, "| {} | {next} | {} |", row.input, row.actions.join(", "));
            if !stays && !edges.iter().any(|(from, to, _)| from == mode && *to == row.next) {
                edges.push(((*mode).to_owned(), row.next, row.input));
            }
        }
        tables.push('\n');
    }
    let id = |mode: &str| mode.replace(['/', '-'], "_");
    let mut diagram = String::from("stateDiagram-v2\n    [*] --> regular: VIPs placed\n");
    for (mode, _, _) in MODES {
        let _ = writeln!(diagram, "    state \"{mode}\" as {}", id(mode));
    }
    for (from, to, input) in &edges {
        let _ = writeln!(diagram, "    {} --> {}: {}", id(from), id(to), input.replace(':', ""));
    }
    format!(
        "# The modes of a target's supervision\n\n\
         Each supervised server has a machine of its own (thesis chapter 2: DBSS) with the five modes regular, service \
         recovery, network examination, backup server and target server recovery; `kagectl status` shows the mode. This \
         page is made by a test from what the coordinator's core does in virtual time, profile `normal` \
         (`UPDATE_MODES=1 cargo test -p kage-coordinator-core --test modes` writes it anew): brought into the mode, then \
         something happens; what is done, in order of first use, until the mode changes, or {} s are over (stays).\n\n\
         Not in the tables: a coordinator that starts or gets a new term reads from SIF who owns the VIPs and goes on in \
         regular or target server recovery mode (`starting`). The storm brake holds network examination until it clears. \
         Profile `thesis` checks one thing after another, pings again before it restarts a service, and acts on nothing \
         that agents push.\n\n## Diagram\n\n```mermaid\n{diagram}```\n\n## Tables\n\n{}",
        LIMIT / 1000,
        tables.trim_end().to_owned() + "\n"
    )
}

#[test]
fn docs_modes_md_is_what_the_core_does() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/modes.md");
    let wanted = document();
    if std::env::var_os("UPDATE_MODES").is_some() {
        std::fs::write(path, &wanted).expect("docs/modes.md is written");
    }
    let there = std::fs::read_to_string(path).unwrap_or_default();
    let differs = wanted.lines().zip(there.lines()).find(|(wanted, there)| wanted != there);
    assert!(
        there == wanted,
        "docs/modes.md is stale (UPDATE_MODES=1 cargo test -p kage-coordinator-core --test modes): {differs:?}"
    );
}

#[test]
fn the_storm_brake_holds_network_examination() {
    let mut world = World::new(&(head("normal") + &with_target("mail", 100, "mailb", KEYS, &[25])));
    for name in ["mail", "web", "v1"] {
        world.power_lost(name);
    }
    world.run(20_000);
    assert_eq!(world.mode("mail"), "network-examination");
    assert_eq!(world.notes("held").len(), 1);
    assert!(world.held[&vip(100)].0.as_str() == "mail");
}
