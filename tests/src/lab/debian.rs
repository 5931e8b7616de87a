//! A Debian guest's disk: systemd, nginx, postfix, an NFS client. Real services for the layout `msbs`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::nodes::Spec;
use super::run::{run, shell, text};
use super::{dirs, image};

/// What is installed; a change makes a new cache entry.
const PACKAGES: &str =
    "systemd-sysv,dbus,udev,kmod,iproute2,iputils-ping,nftables,nginx-light,postfix,nfs-common,qemu-guest-agent,procps";

/// Run on the fresh root, before it becomes a disk. Seconds; the packages take minutes and are cached apart.
const PROVISION: &str = include_str!("../../guest/debian/provision");

/// The root with its packages, made on first use: about two minutes, and network access to Debian's archive.
fn packages() -> Result<PathBuf> {
    let root = dirs::cache().join(format!("debian-{}.root", image::hash(&[PACKAGES])));
    if !root.join("etc/os-release").exists() {
        let place = text(&root);
        shell(&format!(
            "rm -rf '{place}.new'; mkdir -p '{place}.new'
             export DEBIAN_FRONTEND=noninteractive PATH=\"$PATH:/usr/sbin:/sbin\"
             debootstrap --variant=minbase --include={PACKAGES} bookworm '{place}.new' > '{place}.log' 2>&1
             mv '{place}.new' '{place}'"
        ))
        .with_context(|| format!("cannot install Debian for the guest; read {place}.log"))?;
    }
    Ok(root)
}

/// The disk image, made on first use. A machine boots a layer over it with the lab's kernel and initramfs
/// (`KAGE_ROOT=/dev/vda`), which brings agent and configuration along.
///
/// # Errors
/// debootstrap is missing or fails.
pub fn image() -> Result<PathBuf> {
    let kernel = image::kernel()?;
    let disk = dirs::cache().join(format!("debian-{}.img", image::hash(&[PACKAGES, PROVISION, &kernel.release])));
    if disk.exists() {
        return Ok(disk);
    }
    let (packages, target, modules) = (text(&packages()?), text(&disk), text(&kernel.modules()));
    shell(&format!(
        "root='{target}.root'; export root; rm -rf \"$root\"; cp -a '{packages}' \"$root\"
         cat > '{target}.provision' <<'KAGE_END'\n{PROVISION}\nKAGE_END
         sh '{target}.provision'
         mkdir -p \"$root/lib/modules\"; cp -a '{modules}' \"$root/lib/modules/\"
         truncate -s 2G '{target}.new'
         PATH=\"$PATH:/sbin:/usr/sbin\" mke2fs -q -F -t ext4 -d \"$root\" '{target}.new'
         mv '{target}.new' '{target}'
         rm -rf \"$root\" '{target}.provision'"
    ))
    .context("cannot make the Debian guest's disk")?;
    Ok(disk)
}

/// A machine's own layer over the image, made if it is absent: it lasts as long as the lab.
///
/// # Errors
/// The image can't be made, or qemu-img fails.
pub fn overlay(node: &Spec) -> Result<PathBuf> {
    let layer = dirs::node(node.name).join("root.qcow2");
    if !layer.exists() {
        let base = image()?;
        std::fs::create_dir_all(dirs::node(node.name))
            .with_context(|| format!("cannot make {}", dirs::node(node.name).display()))?;
        run(&["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", &text(&base), &text(&layer)])?;
    }
    Ok(layer)
}
