//! What goes wrong around power saving: a configuration that can't work, a base server without memory, one that does not see
//! the images, a host that can't be woken. Each is said once, nobody loses service by it, and once it is mended power saving
//! goes on by itself.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::config::{self, Profile};
use super::killed::arrived;
use super::load::{self, Level};
use super::losses::GAP_MS;
use super::nodes::{Kind, Layout, Spec, find, of};
use super::power::{BASE, Clients, Condition, folder, rows, until};
use super::run::{read, run as run_program, text, wait_until, write};
use super::spawn::run_in;
use super::suite::{Say, events_after, kagectl_json, last_event, prepare};
use super::{dirs, hypervisor, lifecycle, machine, network, realserver};

/// As the suite calls it.
pub(super) const NAME: &str = "power saving: bad input";

/// Who is migrated to the base server in the evening.
const MIGRATED: &str = "ftp1";
/// Whose wake-up fails: home of one that was migrated and of one that sleeps there.
const DEAF: &str = "rs2";
/// The other host that sleeps: its members serve in the morning whatever becomes of the deaf one.
const OTHER: &str = "rs3";
/// Two tries: the judgement, the first one, `backoff`, the second one.
const TWICE: Duration = Duration::from_secs(90);
/// The judgement, and three packets in twice the usual time.
const NOTICED: Duration = Duration::from_secs(60);
/// The other host awake, its members resumed.
const SERVED: Duration = Duration::from_secs(60);
/// Too little for any virtual server of the lab, enough for whatever libvirt asks QEMU: its address space in bytes.
const TOO_LITTLE: &str = "700000000";

/// All of them.
///
/// # Errors
/// The lab does not come up; one is not said, or said twice, or costs service; or it does not go on once it is mended.
pub(super) fn run(say: Say<'_>) -> Result<String> {
    prepare(Layout::Pss, Profile::Normal, say)?;
    let done = all(say);
    if done.is_err() {
        // Half a transition is nothing for the next scenario.
        lifecycle::down()?;
    }
    done
}

fn all(say: Say<'_>) -> Result<String> {
    let folder = folder("outside")?;
    say(&format!("        {}", refused(&folder).context("a configuration that can't work")?));
    load::set(None, Level::Moderate)?;
    until(Condition::Moderate).context("by day")?;
    arrived(Condition::Moderate, &folder, "by day")?;
    let clients = Clients::start(&folder)?;
    let first = last_event()?;
    let mut told = Vec::new();
    let mut night = || -> Result<()> {
        let base = find(BASE)?;
        let mut tell = |text: String| {
            say(&format!("        {text}"));
            told.push(text);
        };
        tell(evening(&Fault::scarce(base)?, "lacks memory", &folder).context("a base server without memory")?);
        load::set(None, Level::Moderate)?;
        until(Condition::Moderate).context("after the base server without memory")?;
        arrived(Condition::Moderate, &folder, "with memory again")?;
        let images = Fault::unshared(base, find(MIGRATED)?)?;
        tell(evening(&images, "initramfs", &folder).context("a base server that does not see the images")?);
        tell(morning(&folder).context("a host that can't be woken")?);
        Ok(())
    };
    let done = night();
    let ended = clients.end(&folder);
    // Whatever failed: the evidence is kept.
    let _ = load::set(None, Level::Light);
    let events = events_after(first).unwrap_or_default();
    write(&folder.join("events.jsonl"), events.iter().map(|event| format!("{event}\n")).collect::<String>())?;
    if let Ok((_, balanced, _)) = &ended {
        for (name, seen) in balanced {
            say(&format!("        {name} through the load balancer: {}", seen.word()));
        }
    }
    done?;
    let (direct, balanced, changes) = ended?;
    let report = json!({ "told": told, "direct": direct, "balanced": balanced, "changes_of_owner": changes });
    write(&folder.join("report.json"), serde_json::to_string_pretty(&report)?)?;
    let gap = balanced.values().map(|seen| seen.gap_ms).fold(0.0, f64::max);
    let failed: usize = balanced.values().map(|seen| seen.failed).sum();
    ensure!(gap <= GAP_MS, "clients waited for {gap:.0} ms");
    Ok(format!(
        "each said once and mended; {changes} changes of owner, never two; {failed} requests failed through the load balancer, \
         longest gap {gap:.0} ms"
    ))
}

// ---- a configuration ----

/// The lab's own configuration, spoiled in one place: the operator's tool and the coordinator refuse it in the same words.
fn refused(folder: &Path) -> Result<String> {
    let usual = read(&config::cluster_file())?;
    // What stands there, what is put there, who is told of, what is said of it, and what to do.
    let cases = [
        (
            "base = \"rs1\"",
            "base = \"rs9\"",
            "[[group]] mail: base = \"rs9\"",
            "there is no [[host]] of that name",
            "rs1",
        ),
        (
            "light = 25, moderate1 = 35",
            "light = 36, moderate1 = 35",
            "[[group]] mail thresholds cpu: moderate1 = 35",
            "must be above light",
            "which is 36",
        ),
    ];
    for (number, (good, bad, value, why, next)) in cases.into_iter().enumerate() {
        let (before, _) = usual.split_once(good).with_context(|| format!("the lab's configuration has no {good}"))?;
        let file = folder.join(format!("spoiled-{number}.toml"));
        write(&file, usual.replacen(good, bad, 1))?;
        let line = before.matches('\n').count() + 1;
        let (shown, state) = (text(&file), folder.join("state"));
        for argv in refusing(&shown, &text(&state))? {
            // One that took it would go on for ever.
            let words: Vec<&str> = ["timeout", "10"].into_iter().chain(argv.iter().map(String::as_str)).collect();
            let Err(said) = run_program(&words) else { bail!("{argv:?} took {bad}") };
            let said = format!("{said:#}");
            ensure!(said.contains("exit status: 64"), "not status 64: {said}");
            let told = said.lines().find(|told| told.contains(&format!("{shown}:{line}: {value}")));
            let told =
                told.with_context(|| format!("not with file, line and value {shown}:{line}: {value}: {said}"))?;
            ensure!(told.contains(why) && told.contains(next), "neither why nor what to do: {told}");
        }
        ensure!(!state.exists(), "the coordinator made a state directory for a configuration that it refused");
    }
    Ok("a base server that does not exist, thresholds out of order: refused with line and value, status 64".to_owned())
}

/// `kagectl check`, and the coordinator's own start.
fn refusing(file: &str, state: &str) -> Result<[Vec<String>; 2]> {
    let program = |name: &str| -> Result<String> {
        let path = dirs::binary(name).with_context(|| format!("{name} is not built; tests/lab builds it"))?;
        Ok(text(&path))
    };
    let pki = text(&config::pki("coordinator"));
    Ok([
        vec![program("kagectl")?, "check".into(), file.into()],
        vec![
            program("kage-coordinator")?,
            "--config".into(),
            file.into(),
            "--state".into(),
            state.into(),
            "--pki".into(),
            pki,
        ],
    ])
}

// ---- a base server that can't take what is migrated to it ----

/// Something mounted over a path of one host, as that host alone sees it; gone when this goes.
struct Fault {
    host: &'static Spec,
    /// In the order in which they were mounted.
    over: Vec<String>,
}

impl Fault {
    /// QEMU finds too little memory for any virtual server that is to start or arrive there: what it says then is its own.
    fn scarce(host: &'static Spec) -> Result<Self> {
        const QEMU: &str = "/usr/bin/qemu-system-x86_64";
        let folder = dirs::node(host.name);
        let (real, script) = (text(&folder.join("qemu-itself")), folder.join("qemu-scarce"));
        write(Path::new(&real), "")?;
        // What libvirt asks QEMU about itself is answered as ever; from another place it does not find its modules.
        let scarce = format!(
            "#!/bin/sh\nexport QEMU_MODULE_DIR=$(dirname /usr/lib/*/qemu/accel-tcg-x86_64.so)\ncase \"$*\" in\n*guest=*) exec prlimit --as={TOO_LITTLE} {real} \"$@\" ;;\n*) exec {real} \"$@\" ;;\n\
             esac\n"
        );
        write(&script, scarce)?;
        run_program(&["chmod", "755", &text(&script)])?;
        let mut fault = Self { host, over: Vec::new() };
        fault.mount(QEMU, &real)?;
        fault.mount(&text(&script), QEMU)?;
        Ok(fault)
    }

    /// The folder of this virtual server's image is an empty one there.
    fn unshared(host: &'static Spec, server: &Spec) -> Result<Self> {
        let empty: PathBuf = dirs::node(host.name).join("empty");
        std::fs::create_dir_all(&empty).with_context(|| format!("cannot make {}", empty.display()))?;
        let mut fault = Self { host, over: Vec::new() };
        fault.mount(&text(&empty), &text(&dirs::node(server.name)))?;
        Ok(fault)
    }

    fn mount(&mut self, what: &str, over: &str) -> Result<()> {
        run_in(self.host, &["mount", "--bind", what, over])?;
        self.over.push(over.to_owned());
        Ok(())
    }

    fn mend(&self) -> Result<()> {
        // Lazily: a process that is about to end may still have it open.
        self.over.iter().rev().try_for_each(|over| run_in(self.host, &["umount", "-l", over]).map(drop))
    }
}

impl Drop for Fault {
    fn drop(&mut self) {
        // Mended before, if all went well.
        let _ = self.mend();
    }
}

fn of_kind<'a>(events: &'a [Value], kind: &'a str, about: &'a str) -> impl Iterator<Item = &'a str> {
    let texts = events.iter().filter(move |event| event["kind"] == kind).filter_map(|event| event["text"].as_str());
    texts.filter(move |text| text.contains(about))
}

/// Whether `kagectl pss` gives a reason that has this in it.
fn shown(about: &str) -> Result<bool> {
    let status = kagectl_json(&["pss"])?;
    Ok(rows(&status["reasons"]).iter().any(|reason| reason.as_str().is_some_and(|reason| reason.contains(about))))
}

/// The load goes, and the live migration to the base server fails, twice: alerted once with these words, all taken back.
/// Mended, the night comes after all.
fn evening(fault: &Fault, words: &str, folder: &Path) -> Result<String> {
    let step = format!("live migration of {MIGRATED}");
    std::thread::sleep(realserver::AWAKE_FOR);
    let after = last_event()?;
    load::set(None, Level::Light)?;
    wait_until(TWICE, "the live migration has failed twice", || {
        Ok(of_kind(&events_after(after)?, "pss-step-failed", &step).count() >= 2)
    })?;
    // Between two tries: backoff is 20 s by now.
    arrived(Condition::Moderate, folder, &format!("{words} there"))?;
    let shown_meanwhile = shown(&step)?;
    let events = events_after(after)?;
    let alerts: Vec<&str> = of_kind(&events, "pss-trouble", &step).collect();
    let [alert] = alerts[..] else { bail!("{} alerts where one is due: {alerts:?}", alerts.len()) };
    ensure!(alert.contains(words) && alert.contains(BASE), "the alert does not say what is wrong: {alert}");
    ensure!(shown_meanwhile, "`kagectl pss` does not show what failed");
    for kind in ["host-asleep", "pss-stuck"] {
        ensure!(of_kind(&events, kind, "").count() == 0, "{kind}, though nobody could be gathered: {events:?}");
    }
    let alert = alert.to_owned();
    fault.mend()?;
    let began = Instant::now();
    until(Condition::Light).context("mended")?;
    arrived(Condition::Light, folder, &format!("{words} there no more"))?;
    ensure!(!shown(&step)?, "`kagectl pss` still shows what has been done since");
    Ok(format!("{alert} Mended, it was Light {:.1} s later", began.elapsed().as_secs_f64()))
}

// ---- a host that does not wake ----

/// A deaf network card: healed when this goes.
struct Deaf(&'static Spec);

impl Drop for Deaf {
    fn drop(&mut self) {
        let _ = realserver::set_deaf(self.0, false);
    }
}

/// From the night on: the load returns, and one of two hosts does not.
fn morning(folder: &Path) -> Result<String> {
    let (deaf, other, client) = (find(DEAF)?, find(OTHER)?, find("client")?);
    let after = last_event()?;
    realserver::set_deaf(deaf, true)?;
    let healing = Deaf(deaf);
    load::set(None, Level::Moderate)?;
    wait_until(NOTICED, "it is said that the host does not wake", || {
        Ok(of_kind(&events_after(after)?, "pss-no-wake", DEAF).count() > 0)
    })?;
    // Of the groups that have a member on the other host that member serves; of all others whoever served at night.
    let expected = |server: &'static Spec| if server.host == DEAF { None } else { Some(server.name) };
    wait_until(SERVED, "the other host is awake and its members serve, and so is everybody else's address", || {
        Ok(machine::power(other) == machine::Power::On
            && of(Kind::VirtualServer).all(|server| {
                let who = server.vip().and_then(|vip| network::who_serves(client, vip, server.service));
                match expected(server) {
                    Some(own) => who.as_deref() == Some(own),
                    None => who.is_some(),
                }
            }))
    })?;
    ensure!(machine::power(deaf) == machine::Power::Asleep, "{DEAF} is not asleep, though nothing can wake it");
    let sleeper = of(Kind::VirtualServer).find(|server| server.host == DEAF && server.name != MIGRATED);
    let sleeper = sleeper.context("somebody sleeps on it")?;
    let state = hypervisor::active(deaf)?.remove(sleeper.name);
    ensure!(state.as_deref() == Some("paused"), "{} sleeps on {DEAF} and is {state:?}", sleeper.name);
    ensure!(shown(DEAF)?, "`kagectl pss` does not show {DEAF}");
    let events = events_after(after)?;
    let alerts: Vec<&str> = of_kind(&events, "pss-no-wake", DEAF).collect();
    let [alert] = alerts[..] else { bail!("{} alerts where one is due: {alerts:?}", alerts.len()) };
    let alert = alert.to_owned();
    drop(healing);
    let began = Instant::now();
    until(Condition::Moderate).context("healed")?;
    arrived(Condition::Moderate, folder, "healed")?;
    Ok(format!("{alert}. Healed, it was Moderate {:.1} s later", began.elapsed().as_secs_f64()))
}
