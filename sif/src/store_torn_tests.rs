//! Power lost at any write: what was not synced is there, missing, torn at a sector, or came in another order.

use super::{tests::changes, *};
use kage_sif_core::Ledger;
use proptest::prelude::*;
use std::sync::{Arc, Mutex};

/// Disks write these whole or not at all.
const SECTOR: usize = 512;

/// A disk and what is in its cache.
#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    now: Vec<u8>,
    cached: Vec<(usize, Vec<u8>)>,
    /// Writes and syncs before the power is lost.
    left: u64,
}

impl Disk {
    fn powered(&mut self) -> io::Result<()> {
        self.left = self.left.checked_sub(1).ok_or_else(|| io::Error::other("no power"))?;
        Ok(())
    }

    /// What is found when the power is back.
    fn after(&self, mut random: impl FnMut() -> u64) -> Vec<u8> {
        let mut found = self.durable.clone();
        found.resize(found.len().max(self.now.len()), 0);
        let mut cached: Vec<_> = self.cached.iter().map(|write| (random(), write)).collect();
        cached.sort_by_key(|(order, _)| *order);
        for (_, (offset, data)) in cached {
            let fate = random() % 4;
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                if fate == 0 || (fate == 1 && random().is_multiple_of(2)) {
                    let at = offset + index * SECTOR;
                    found[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        found
    }
}

#[derive(Clone, Debug)]
struct Backend(Arc<Mutex<Disk>>);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().now.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let at = usize::try_from(offset).unwrap();
        out.copy_from_slice(&self.0.lock().unwrap().now[at..at + out.len()]);
        Ok(())
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.powered()?;
        disk.now.resize(usize::try_from(len).unwrap(), 0);
        Ok(())
    }
    fn sync_data(&self) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.powered()?;
        disk.durable = disk.now.clone();
        disk.cached.clear();
        Ok(())
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut disk = self.0.lock().unwrap();
        disk.powered()?;
        let at = usize::try_from(offset).unwrap();
        disk.now[at..at + data.len()].copy_from_slice(data);
        disk.cached.push((at, data.to_vec()));
        Ok(())
    }
}

fn opened(image: Vec<u8>) -> (Arc<Mutex<Disk>>, Store, Contents) {
    let disk = Disk { durable: image.clone(), now: image, cached: Vec::new(), left: u64::MAX };
    let disk = Arc::new(Mutex::new(disk));
    let backend = Backend(Arc::clone(&disk));
    let open: Opener = Box::new(move || builder().create_with_backend(backend.clone()));
    let (store, contents) = Store::open_with(PathBuf::from("disk"), open).unwrap();
    (disk, store, contents)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn power_lost_at_any_write_leaves_each_commit_whole_or_not_at_all(seed in 1..u64::MAX) {
        let mut state = seed;
        let mut random = move || {
            // xorshift64 (Marsaglia 2003).
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        let directory = tempfile::tempdir().unwrap();
        drop(Store::open(directory.path()).unwrap());
        let (mut disk, mut store, contents) = opened(fs::read(directory.path().join(FILE_NAME)).unwrap());
        let mut ledger = contents.ledger;
        let all = changes(90);
        let mut lost = 0;
        while ledger.revision.0 < 90 {
            let batch: Vec<_> =
                all.iter().filter(|change| change.revision > ledger.revision).take(5).cloned().collect();
            let mut with: Ledger = ledger.clone();
            batch.iter().for_each(|change| with.apply(change));
            disk.lock().unwrap().left = random() % 40;
            if store.commit(&batch).is_ok() {
                ledger = with.clone();
            }
            // Also after a commit that was acknowledged.
            if random() % 4 > 0 || disk.lock().unwrap().left == 0 || ledger != with {
                disk.lock().unwrap().left = 0;
                let image = disk.lock().unwrap().after(&mut random);
                drop(store);
                let contents;
                (disk, store, contents) = opened(image);
                prop_assert!(contents.ledger == ledger || contents.ledger == with, "neither before nor after");
                ledger = contents.ledger;
                lost += 1;
            }
        }
        prop_assert!(lost > 3);
    }
}
