//! A Debian guest's disk: systemd, nginx, postfix, an NFS client. Off the main path.

use std::path::PathBuf;

use anyhow::{Context, Result};

use super::run::{shell, text};
use super::{dirs, image};

/// What is installed; a change makes a new cache entry.
const PACKAGES: &str =
    "systemd-sysv,udev,kmod,iproute2,iputils-ping,nftables,nginx-light,postfix,nfs-common,qemu-guest-agent";

/// Made in the fresh root, before it becomes a disk. The network comes from the kernel's
/// command line (`KAGE_NAME`, `KAGE_IP`, `KAGE_VIP`), which systemd passes on as environment.
const PROVISION: &str = r#"
cat > "$root/etc/systemd/system/kage-network.service" <<'UNIT'
[Unit]
Description=Address from the lab's kernel command line
DefaultDependencies=no
Before=network.target
Wants=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/kage-network
[Install]
WantedBy=multi-user.target
UNIT
cat > "$root/usr/local/sbin/kage-network" <<'SCRIPT'
#!/bin/sh
for word in $(cat /proc/cmdline); do case $word in KAGE_*) eval "$word" ;; esac; done
hostname "$KAGE_NAME"
mkdir -p /var/www/html
echo "$KAGE_NAME" > /var/www/html/index.html
ip link set lo up
ip address add "$KAGE_IP" dev eth0
ip link set eth0 up
if [ -n "$KAGE_VIP" ]; then ip address add "$KAGE_VIP/32" dev eth0; fi
SCRIPT
chmod +x "$root/usr/local/sbin/kage-network"
ln -s /etc/systemd/system/kage-network.service "$root/etc/systemd/system/multi-user.target.wants/"
echo '/dev/vda / ext4 rw,noatime 0 1' > "$root/etc/fstab"
echo 'root::0:0:root:/root:/bin/bash' > "$root/etc/passwd.new"
sed 1d "$root/etc/passwd" >> "$root/etc/passwd.new"
mv "$root/etc/passwd.new" "$root/etc/passwd"
"#;

/// The disk image, made on first use: about two minutes, and network access to Debian's archive.
/// Boot it with the lab's kernel, `net.ifnames=0 root=/dev/vda rw` and an initramfs that
/// loads virtio (the modules are in the image too).
///
/// # Errors
/// debootstrap is missing or fails.
pub fn image() -> Result<PathBuf> {
    let kernel = image::kernel()?;
    let key = image::hash(&[PACKAGES, PROVISION, &kernel.release]);
    let disk = dirs::cache().join(format!("debian-{key}.img"));
    if disk.exists() {
        return Ok(disk);
    }
    let (root, target) = (text(&dirs::cache().join(format!("debian-{key}.root"))), text(&disk));
    let modules = text(&kernel.modules());
    shell(&format!(
        "root='{root}'; rm -rf \"$root\"
         debootstrap --variant=minbase --include={PACKAGES} bookworm \"$root\" > \"$root.log\" 2>&1
         {PROVISION}
         mkdir -p \"$root/lib/modules\"; cp -a '{modules}' \"$root/lib/modules/\"
         rm -rf \"$root\"/var/cache/apt/archives/*.deb \"$root\"/usr/share/doc \"$root\"/usr/share/man
         truncate -s 2G '{target}.new'
         mke2fs -q -F -t ext4 -d \"$root\" '{target}.new'
         mv '{target}.new' '{target}'
         rm -rf \"$root\""
    ))
    .context("cannot make the Debian guest; `apt-get install debootstrap`, then read the .log beside the cache")?;
    Ok(disk)
}
