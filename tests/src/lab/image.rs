//! What a guest boots: Debian's cloud kernel and an initramfs in three layers.
//!
//! base (busybox, modules, nft; cached) + agent (the binary under test and its libraries)
//! + machine (configuration and certificate). Joined end to end at each power-on.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, bail};

use super::cpio::Archive;
use super::dirs;
use super::run::{read, run, shell, succeeds, text, wait_until, write};

/// Process 1 of a guest.
const INIT: &str = include_str!("../../guest/init");
/// Inserted before the network is configured, with what they depend on.
const BOOT_MODULES: &[&str] = &["virtio_pci", "virtio_net", "virtio_blk"];
/// Loaded before the agent starts; whatever else it asks for, the kernel fetches with modprobe.
const AGENT_MODULES: &[&str] = &["nf_tables", "nfnetlink", "inet_diag", "tcp_diag"];
/// Folders of modules that the kernel may fetch on demand.
const MODULE_PREFIXES: &[&str] = &["nft_", "nf_", "nfnetlink", "tcp_diag", "inet_diag", "udp_diag"];
/// How the kernel is obtained; a change makes a new cache entry.
const KERNEL_RECIPE: &str = "debian linux-image-cloud-amd64, unpacked, depmod";

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The compressed image.
    pub image: PathBuf,
    /// Its release, as `uname -r` says it.
    pub release: String,
    tree: PathBuf,
}

impl Kernel {
    /// The folder of its modules.
    #[must_use]
    pub fn modules(&self) -> PathBuf {
        self.tree.join("lib/modules").join(&self.release)
    }
}

/// A name for a recipe (FNV-1a: enough to tell recipes apart).
#[must_use]
pub fn hash(parts: &[&str]) -> String {
    let mut state: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in parts.iter().flat_map(|part| part.bytes().chain([0])) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("{state:016x}")
}

fn stamp(path: &Path) -> String {
    let Ok(meta) = std::fs::metadata(path) else { return "absent".to_owned() };
    let age = meta.modified().ok().and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
    format!("{} {} {:?}", path.display(), meta.len(), age)
}

/// The guest's kernel, fetched on first use.
///
/// # Errors
/// Debian's archive can't be reached and nothing is cached.
pub fn kernel() -> Result<Kernel> {
    let tree = dirs::cache().join(format!("kernel-{}", hash(&[KERNEL_RECIPE])));
    if !tree.join("complete").exists() {
        let place = text(&tree);
        shell(&format!(
            "rm -rf '{place}'; mkdir -p '{place}'; cd '{place}'
             package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p' | head -n 1)
             if [ -z \"$package\" ]; then apt-get -q update; package=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/.*Depends: \\(linux-image-[0-9].*\\)/\\1/p' | head -n 1); fi
             apt-get -q download \"$package\" || {{ apt-get -q update; apt-get -q download \"$package\"; }}
             dpkg -x \"$package\"_*.deb .
             rm \"$package\"_*.deb
             depmod -b . \"$(ls lib/modules)\"
             touch complete"
        ))
        .context("cannot fetch the guest's kernel; check that apt works")?;
    }
    let modules = tree.join("lib/modules");
    let release = std::fs::read_dir(&modules)
        .with_context(|| format!("cannot read {}", modules.display()))?
        .find_map(|entry| entry.ok()?.file_name().into_string().ok())
        .with_context(|| format!("no kernel in {}; remove that folder and try again", tree.display()))?;
    Ok(Kernel { image: tree.join("boot").join(format!("vmlinuz-{release}")), release, tree })
}

/// Modules by name: their path below `lib/modules/RELEASE`, and those they need, nearest first.
fn dependencies(kernel: &Kernel) -> Result<BTreeMap<String, (String, Vec<String>)>> {
    let list = read(&kernel.modules().join("modules.dep"))?;
    let name_of = |path: &str| {
        let file = path.rsplit('/').next().unwrap_or(path);
        file.trim_end_matches(".ko").replace('-', "_")
    };
    Ok(list
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(path, needs)| (name_of(path), (path.to_owned(), needs.split_whitespace().map(str::to_owned).collect())))
        .collect())
}

fn libraries(program: &Path) -> BTreeSet<PathBuf> {
    // A static program makes ldd fail: it needs nothing.
    let list = run(&["ldd", &text(program)]).unwrap_or_default();
    list.split_whitespace().filter(|word| word.starts_with('/') && !word.ends_with(':')).map(PathBuf::from).collect()
}

fn add_program(archive: &mut Archive, program: &Path, name: &str, known: &mut BTreeSet<PathBuf>) -> Result<()> {
    archive.copy_program(program, name)?;
    for library in libraries(program) {
        if known.insert(library.clone()) {
            archive.copy_program(&library, &text(&library))?;
        }
    }
    Ok(())
}

fn tool(name: &str) -> Result<PathBuf> {
    let found = run(&["sh", "-c", &format!("PATH=$PATH:/usr/sbin:/sbin command -v {name}")])
        .with_context(|| format!("{name} is missing; tests/lab installs it"))?;
    Ok(PathBuf::from(found.trim()))
}

/// The base layer, made on first use.
///
/// # Errors
/// A tool is missing, or the kernel lacks a module.
pub fn base(kernel: &Kernel) -> Result<PathBuf> {
    let (busybox, nft) = (tool("busybox")?, tool("nft")?);
    let key = hash(&[
        INIT,
        &BOOT_MODULES.join(" "),
        &AGENT_MODULES.join(" "),
        &MODULE_PREFIXES.join(" "),
        &kernel.release,
        &stamp(&busybox),
        &stamp(&nft),
    ]);
    let path = dirs::cache().join(format!("base-{key}.cpio"));
    if path.exists() {
        return Ok(path);
    }
    let mut archive = Archive::new();
    for folder in ["dev", "proc", "sys", "run", "tmp", "etc", "root", "var/lib", "usr/bin", "usr/sbin"] {
        archive.folder(folder)?;
    }
    archive.device("dev/console", 5, 1)?;
    archive.program("init", INIT.as_bytes())?;
    archive.file("etc/passwd", b"root:x:0:0:root:/:/bin/sh\n")?;
    let mut known = BTreeSet::new();
    add_program(&mut archive, &busybox, "bin/busybox", &mut known)?;
    for applet in run(&[&text(&busybox), "--list"])?.lines().filter(|&applet| applet != "busybox") {
        archive.link(&format!("bin/{applet}"), "/bin/busybox")?;
    }
    archive.link("sbin/modprobe", "/bin/busybox")?;
    add_program(&mut archive, &nft, "usr/sbin/nft", &mut known)?;
    add_modules(&mut archive, kernel)?;
    write(&path, archive.finish()?)?;
    Ok(path)
}

fn add_modules(archive: &mut Archive, kernel: &Kernel) -> Result<()> {
    let modules = dependencies(kernel)?;
    let folder = format!("lib/modules/{}", kernel.release);
    let mut boot: Vec<String> = Vec::new();
    let mut wanted: BTreeSet<String> = BTreeSet::new();
    for &name in BOOT_MODULES {
        let Some((path, needs)) = modules.get(name) else {
            bail!("kernel {} has no module {name}; change guest modules in the lab's image recipe", kernel.release);
        };
        for module in needs.iter().rev().chain([path]) {
            if !boot.contains(module) {
                boot.push(module.clone());
            }
        }
    }
    for (name, (path, needs)) in &modules {
        let on_demand =
            path.starts_with("kernel/net/") && MODULE_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
        if on_demand || AGENT_MODULES.contains(&name.as_str()) {
            wanted.extend(needs.iter().cloned());
            wanted.insert(path.clone());
        }
    }
    wanted.extend(boot.iter().cloned());
    let source = kernel.modules();
    for module in &wanted {
        let content = std::fs::read(source.join(module)).with_context(|| format!("cannot read module {module}"))?;
        archive.file(&format!("{folder}/{module}"), &content)?;
    }
    // busybox modprobe reads these; lines of absent modules do no harm but cost memory.
    let kept = |line: &&str| wanted.iter().any(|module| line.starts_with(&format!("{module}:")));
    let list = read(&source.join("modules.dep"))?;
    let list: Vec<&str> = list.lines().filter(kept).collect();
    archive.file(&format!("{folder}/modules.dep"), format!("{}\n", list.join("\n")).as_bytes())?;
    let names: BTreeSet<&str> =
        modules.iter().filter(|(_, (path, _))| wanted.contains(path)).map(|(name, _)| name.as_str()).collect();
    let aliases = read(&source.join("modules.alias"))?;
    let aliases: Vec<&str> =
        aliases.lines().filter(|line| line.rsplit(' ').next().is_some_and(|name| names.contains(name))).collect();
    archive.file(&format!("{folder}/modules.alias"), format!("{}\n", aliases.join("\n")).as_bytes())?;
    let boot: Vec<String> = boot.iter().map(|module| format!("/{folder}/{module}")).collect();
    archive.file("lib/kage/boot-modules", format!("{}\n", boot.join("\n")).as_bytes())?;
    archive.file("lib/kage/agent-modules", format!("{}\n", AGENT_MODULES.join("\n")).as_bytes())
}

/// The initramfs of one machine, written to `target`: the layers joined.
/// Everything under `configuration` appears in the guest's `/etc`.
///
/// # Errors
/// A layer can't be made.
pub fn initramfs(kernel: &Kernel, agent: Option<&Path>, configuration: &Path, target: &Path) -> Result<()> {
    let base = base(kernel)?;
    let mut bytes = std::fs::read(&base).with_context(|| format!("cannot read {}", base.display()))?;
    if let Some(agent) = agent {
        let mut archive = Archive::new();
        add_program(&mut archive, agent, "usr/bin/kage-agent", &mut BTreeSet::new())?;
        bytes.extend(archive.finish()?);
    }
    let mut archive = Archive::new();
    add_tree(&mut archive, configuration, "etc")?;
    bytes.extend(archive.finish()?);
    write(target, bytes)
}

fn add_tree(archive: &mut Archive, folder: &Path, name: &str) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Ok(()) };
    for entry in entries {
        let path = entry.with_context(|| format!("cannot list {}", folder.display()))?.path();
        let Some(file) = path.file_name().and_then(|file| file.to_str()) else { continue };
        let inner = format!("{name}/{file}");
        if path.is_dir() {
            add_tree(archive, &path, &inner)?;
        } else {
            let content = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            archive.file(&inner, &content)?;
        }
    }
    Ok(())
}

/// `kvm` where it really boots a Linux guest, else `tcg`. Tried once for each host kernel.
///
/// # Errors
/// The image can't be made.
pub fn accelerator(kernel: &Kernel) -> Result<&'static str> {
    let host = run(&["uname", "-r"])?;
    let verdict = dirs::cache().join(format!("accelerator-{}", hash(&[&host, &kernel.release])));
    if let Ok(text) = std::fs::read_to_string(&verdict) {
        return Ok(if text.trim() == "kvm" { "kvm" } else { "tcg" });
    }
    let works = succeeds(&["test", "-w", "/dev/kvm"]) && kvm_boots(kernel)?;
    write(&verdict, if works { "kvm\n" } else { "tcg\n" })?;
    Ok(if works { "kvm" } else { "tcg" })
}

fn kvm_boots(kernel: &Kernel) -> Result<bool> {
    let base = base(kernel)?;
    let log = dirs::cache().join(format!("kvm-probe-{}.log", std::process::id()));
    let mut guest = std::process::Command::new("qemu-system-x86_64")
        .args(["-M", "pc", "-accel", "kvm", "-m", "96", "-nodefaults", "-no-user-config", "-display", "none"])
        .args(["-kernel", &text(&kernel.image), "-initrd", &text(&base)])
        .args(["-append", "console=ttyS0 quiet KAGE_NAME=probe KAGE_IP=10.77.0.254/24"])
        .args(["-serial", &format!("file:{}", text(&log)), "-serial", "null"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .context("cannot start qemu-system-x86_64; tests/lab installs it")?;
    let up = wait_until(Duration::from_secs(5), "the guest is up under KVM", || {
        Ok(std::fs::read_to_string(&log).is_ok_and(|log| log.contains("lab: probe up")))
    });
    let _ = guest.kill();
    let _ = guest.wait();
    let _ = std::fs::remove_file(&log);
    Ok(up.is_ok())
}
