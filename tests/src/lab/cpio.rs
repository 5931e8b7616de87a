//! A cpio archive in the kernel's "newc" format: what an initramfs is made of.
//!
//! Archives can be joined end to end, so that the large part is made once and the
//! small one (a certificate, a configuration) at every start.
//! Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, anyhow};

/// An archive under construction.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    entries: u32,
}

const FOLDER: u32 = 0o040_755;
const FILE: u32 = 0o100_644;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CHARACTER_DEVICE: u32 = 0o020_600;

impl Archive {
    /// An empty archive.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) -> Result<()> {
        let size = u32::try_from(content.len()).map_err(|_| anyhow!("{name} is too large for an initramfs"))?;
        let name_size = u32::try_from(name.len() + 1).map_err(|_| anyhow!("name too long: {name}"))?;
        self.entries += 1;
        let links = 1;
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, device.0, device.1, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad(4);
        self.bytes.extend_from_slice(content);
        self.pad(4);
        Ok(())
    }

    fn pad(&mut self, to: usize) {
        while !self.bytes.len().is_multiple_of(to) {
            self.bytes.push(0);
        }
    }

    fn parents(&mut self, name: &str) -> Result<()> {
        let slashes: Vec<usize> = name.match_indices('/').map(|(at, _)| at).collect();
        for at in slashes {
            self.folder(&name[..at])?;
        }
        Ok(())
    }

    /// Adds a folder and those above it. Names have no leading slash.
    ///
    /// # Errors
    /// The name is too long.
    pub fn folder(&mut self, name: &str) -> Result<()> {
        if name.is_empty() || !self.folders.insert(name.to_owned()) {
            return Ok(());
        }
        self.parents(name)?;
        self.entry(name, FOLDER, (0, 0), &[])
    }

    /// Adds a file.
    ///
    /// # Errors
    /// It is larger than 4 GiB.
    pub fn file(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.entry(name, FILE, (0, 0), content)
    }

    /// Adds an executable file.
    ///
    /// # Errors
    /// It is larger than 4 GiB.
    pub fn program(&mut self, name: &str, content: &[u8]) -> Result<()> {
        self.parents(name)?;
        self.entry(name, PROGRAM, (0, 0), content)
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// A name is too long.
    pub fn link(&mut self, name: &str, target: &str) -> Result<()> {
        self.parents(name)?;
        self.entry(name, LINK, (0, 0), target.as_bytes())
    }

    /// Adds a character device.
    ///
    /// # Errors
    /// The name is too long.
    pub fn device(&mut self, name: &str, major: u32, minor: u32) -> Result<()> {
        self.parents(name)?;
        self.entry(name, CHARACTER_DEVICE, (major, minor), &[])
    }

    /// Adds a file of this machine under the same path.
    ///
    /// # Errors
    /// It can't be read.
    pub fn copy_program(&mut self, path: &Path, name: &str) -> Result<()> {
        let content = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        self.program(name.trim_start_matches('/'), &content)
    }

    /// The finished archive.
    ///
    /// # Errors
    /// None in practice: the trailer always fits.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        self.pad(512);
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn archive_is_aligned_and_holds_each_folder_once() {
        let mut archive = Archive::new();
        archive.file("a/b/one", b"1").unwrap();
        archive.file("a/b/two", b"22").unwrap();
        let bytes = archive.finish().unwrap();
        assert_eq!(bytes.len() % 512, 0);
        let heads = bytes.windows(6).filter(|window| window == b"070701").count();
        assert_eq!(heads, 5, "a, a/b, two files and the trailer");
    }
}
