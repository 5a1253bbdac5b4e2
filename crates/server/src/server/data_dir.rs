//! The folder with the snapshots of the routes: which files there are, and how each is replaced.
//!
//! | file | contents |
//! | --- | --- |
//! | `routes.snapshot` | the last snapshot |
//! | `routes.snapshot.old` | the snapshot before `routes.snapshot` |
//! | `routes.snapshot.tmp` | a snapshot that is being written |
//! | `routes.snapshot.damaged-TIME` | a damaged snapshot; TIME is in seconds since the Unix epoch |
//! | `lock` | an empty file, which a running tracker has locked |
//!
//! A snapshot is written to the temporary file, synchronized with the disk, and renamed. So whenever the process or the
//! machine stops, the other two files are whole. The file system drops the lock when the process ends, however it ends.
//!
//! A snapshot may be whole, and still not be loaded. The file cannot be read, the snapshot has another version, or the
//! table is too small. Such a snapshot stays, and no snapshot replaces it, so that a later start can load it.

use std::fs::{self, DirBuilder, File, Metadata, TryLockError};
use std::io::{self, BufReader, BufWriter, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use nodetracker::RouteTable;
use nodetracker::snapshot::{Ages, SnapshotError, SnapshotReport, SnapshotSize};
use thiserror::Error;
use tracing::warn;

const LOCK: &str = "lock";
const SNAPSHOT: &str = "routes.snapshot";
const OLD: &str = "routes.snapshot.old";
const TEMPORARY: &str = "routes.snapshot.tmp";
const DAMAGED: &str = ".damaged-";

/// How many damaged snapshots are kept.
const KEPT_DAMAGED: usize = 4;

/// The modes of a new folder and of its files: a snapshot has all nodes, and the addresses of all proxies.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// The buffer of a file. A table writes blocks of some 128 KiB, and small blocks between them.
const BUFFER: usize = 256 << 10;

/// Why a folder cannot be used.
#[derive(Debug, Error)]
pub(super) enum OpenError {
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    #[error("another process uses {}", .0.display())]
    InUse(PathBuf),
}

/// A folder with snapshots.
#[derive(Debug)]
pub(super) struct DataDir {
    path: PathBuf,
    /// `None` if the folder could not be locked yet, for example because it is read-only.
    lock: Option<File>,
    /// Snapshots that were not loaded, and may be whole.
    kept: Vec<PathBuf>,
}

impl DataDir {
    /// Makes the folder if it is missing, and locks it. A folder that cannot be made or locked is no error here:
    /// [`prepare`](Self::prepare) reports it, and tries again.
    ///
    /// # Errors
    ///
    /// The path is not a folder, or another process has locked the folder.
    pub(super) fn open(path: PathBuf) -> Result<Self, OpenError> {
        if path.exists() && !path.is_dir() {
            return Err(OpenError::NotAFolder(path));
        }
        let mut folder = Self {
            path,
            lock: None,
            kept: Vec::new(),
        };
        match folder.lock() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => Err(OpenError::InUse(folder.path)),
            Ok(()) | Err(_) => Ok(folder),
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the folder and locks it, unless this process has locked the file that is there. The folder, or the file,
    /// may have been removed meanwhile. Then the old lock keeps no other process out.
    fn lock(&mut self) -> io::Result<()> {
        let path = self.path.join(LOCK);
        if self.lock.as_ref().is_some_and(|lock| is_at(lock, &path)) {
            return Ok(());
        }
        self.lock = None;
        DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(&self.path)?;
        let mut options = File::options();
        options.create(true).truncate(false).write(true).mode(FILE_MODE);
        let file = options.open(path)?;
        match file.try_lock() {
            Ok(()) => self.lock = Some(file),
            Err(TryLockError::WouldBlock) => {
                let reason = OpenError::InUse(self.path.clone());
                return Err(io::Error::new(ErrorKind::WouldBlock, reason));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        Ok(())
    }

    /// Loads the last snapshot, or the previous snapshot if the last snapshot cannot be loaded. Sets aside a damaged
    /// snapshot if the folder is locked, and keeps a snapshot that may be whole. Returns `None` if none was loaded.
    pub(super) fn load(&mut self, table: &RouteTable) -> Option<SnapshotReport> {
        for name in [SNAPSHOT, OLD] {
            let path = self.path.join(name);
            match read(&path, table) {
                Ok(report) => return Some(report),
                Err(SnapshotError::Read { source, .. }) if source.kind() == ErrorKind::NotFound => {}
                Err(error @ SnapshotError::NotEmpty) => {
                    warn!("{} is not loaded: {error}", path.display());
                    return None;
                }
                // Without the lock, another tracker may be about to replace the file.
                Err(error @ (SnapshotError::NotASnapshot | SnapshotError::Damaged { .. })) if self.lock.is_some() => {
                    warn!("{} cannot be used: {error}", path.display());
                    self.set_aside(name);
                }
                Err(error) => {
                    warn!("{} is kept, but is not loaded: {error}", path.display());
                    self.kept.push(path);
                }
            }
        }
        None
    }

    /// Checks that a snapshot may be written, so that a snapshot which cannot be written is known early.
    ///
    /// # Errors
    ///
    /// The folder cannot be locked, or still has a snapshot that was not loaded and may be whole.
    pub(super) fn prepare(&mut self) -> io::Result<()> {
        self.lock()?;
        // If the folder cannot be searched, the file may be there.
        let kept = self.kept.iter().find(|path| path.try_exists().unwrap_or(true));
        kept.map_or(Ok(()), |path| {
            Err(io::Error::other(format!(
                "{} was not loaded and would be lost: correct the cause and restart, or move the file away",
                path.display()
            )))
        })
    }

    /// Renames a damaged snapshot, and removes the oldest of such snapshots if there are many.
    fn set_aside(&self, name: &str) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let aside = self.path.join(format!("{name}{DAMAGED}{}", now.as_secs()));
        match fs::rename(self.path.join(name), &aside) {
            Ok(()) => warn!("{name} is set aside as {}", aside.display()),
            Err(error) => warn!("{name} cannot be set aside: {error}"),
        }
        let mut damaged = self.damaged();
        damaged.sort_unstable();
        for (_, path) in damaged.iter().rev().skip(KEPT_DAMAGED) {
            if let Err(error) = fs::remove_file(path) {
                warn!("{} cannot be removed: {error}", path.display());
            }
        }
    }

    /// The snapshots that were set aside, with their times.
    fn damaged(&self) -> Vec<(u64, PathBuf)> {
        let entries = fs::read_dir(&self.path).into_iter().flatten().flatten();
        let damaged = entries.filter_map(|entry| {
            let name = entry.file_name();
            let (snapshot, time) = name.to_str()?.split_once(DAMAGED)?;
            (snapshot == SNAPSHOT || snapshot == OLD).then(|| Some((time.parse().ok()?, entry.path())))?
        });
        damaged.collect()
    }

    /// Writes a snapshot, which replaces the last snapshot. `pace` runs after each block of some 128 KiB. Its error
    /// ends the write.
    ///
    /// # Errors
    ///
    /// As [`prepare`](Self::prepare), or the file system refuses. The previous snapshots stay.
    pub(super) fn write(
        &mut self,
        table: &RouteTable,
        pace: impl FnMut() -> io::Result<()>,
    ) -> io::Result<SnapshotSize> {
        self.prepare()?;
        let [snapshot, old, temporary] = [SNAPSHOT, OLD, TEMPORARY].map(|name| self.path.join(name));
        let size = write_file(&temporary, table, pace).inspect_err(|_| {
            // A part of a snapshot is of no use, and the disk may be full.
            let _ = fs::remove_file(&temporary);
        })?;
        match fs::rename(&snapshot, &old) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs::rename(&temporary, &snapshot)?;
        // The renames, too, are on the disk then.
        File::open(&self.path)?.sync_all()?;
        Ok(size)
    }
}

/// Reports whether a path leads to a file that is open here.
fn is_at(file: &File, path: &Path) -> bool {
    let inode = |metadata: Metadata| (metadata.dev(), metadata.ino());
    match (file.metadata(), fs::metadata(path)) {
        (Ok(ours), Ok(there)) => inode(ours) == inode(there),
        _ => false,
    }
}

fn read(path: &Path, table: &RouteTable) -> Result<SnapshotReport, SnapshotError> {
    let file = File::open(path).map_err(|source| SnapshotError::Read { offset: 0, source })?;
    table.read_snapshot_with(BufReader::with_capacity(BUFFER, file), Ages::Grace)
}

fn write_file(path: &Path, table: &RouteTable, pace: impl FnMut() -> io::Result<()>) -> io::Result<SnapshotSize> {
    // A new file, so that no link leads the snapshot elsewhere, and its mode is ours.
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(FILE_MODE)
        .open(path)?;
    let paced = Paced { file, pace };
    let mut to = BufWriter::with_capacity(BUFFER, paced);
    let size = table.write_snapshot(&mut to)?;
    to.flush()?;
    to.get_ref().file.sync_all()?;
    Ok(size)
}

/// A file that runs `pace` after each write.
struct Paced<P> {
    file: File,
    pace: P,
}

impl<P: FnMut() -> io::Result<()>> Write for Paced<P> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        (self.pace)()?;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nodetracker::Proxy;
    use tempfile::TempDir;

    use super::*;

    fn table(nodes: usize) -> RouteTable {
        let table = RouteTable::new();
        let proxy = Proxy {
            id: "proxy",
            cluster_name: "",
            addr: "proxy:1",
        };
        let proxy = table.register_proxy(&proxy).unwrap();
        for number in 0..nodes {
            table
                .add_node(&format!("node-{number}").parse().unwrap(), proxy)
                .unwrap();
        }
        table
    }

    fn open(folder: &TempDir) -> DataDir {
        DataDir::open(folder.path().into()).unwrap()
    }

    /// The number of routes that are loaded.
    fn loaded(folder: &TempDir) -> Option<usize> {
        let table = RouteTable::new();
        let report = open(folder).load(&table);
        assert_eq!(table.len(), report.map_or(0, |report| report.inserted as usize));
        report.map(|_| table.len())
    }

    /// The names of the files in a folder.
    fn files(folder: &TempDir) -> Vec<String> {
        let entries = fs::read_dir(folder.path()).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn the_last_two_snapshots_are_kept() {
        let folder = TempDir::new().unwrap();
        assert_eq!(loaded(&folder), None);
        for nodes in 1..4 {
            open(&folder).write(&table(nodes), || Ok(())).unwrap();
            assert_eq!(loaded(&folder), Some(nodes));
        }
        assert_eq!(files(&folder), [LOCK, SNAPSHOT, OLD]);
        fs::remove_file(folder.path().join(SNAPSHOT)).unwrap();
        assert_eq!(loaded(&folder), Some(2));
    }

    #[test]
    fn whatever_is_damaged_the_older_snapshot_is_loaded() {
        let folder = TempDir::new().unwrap();
        let mut bytes = Vec::new();
        table(2_000).write_snapshot(&mut bytes).unwrap();
        let mut older = Vec::new();
        table(3).write_snapshot(&mut older).unwrap();
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let mut damaged = Vec::new();
        // The header, the head of a section, a payload, the checksums and the end.
        for len in [
            0,
            1,
            8,
            12,
            23,
            24,
            30,
            37,
            60,
            bytes.len() / 2,
            bytes.len() - 33,
            bytes.len() - 4,
            bytes.len() - 1,
        ] {
            damaged.push(bytes[..len].to_vec());
        }
        for _ in 0..100 {
            let mut flipped = bytes.clone();
            flipped[random.usize(..bytes.len())] ^= 1 << random.u8(..8);
            damaged.push(flipped);
        }
        damaged.push([bytes.clone(), vec![0]].concat());
        for bytes in damaged {
            fs::write(folder.path().join(SNAPSHOT), &bytes).unwrap();
            fs::write(folder.path().join(OLD), &older).unwrap();
            assert_eq!(loaded(&folder), Some(3), "{} bytes, seed {seed}", bytes.len());
            assert!(!folder.path().join(SNAPSHOT).exists());
            // Both.
            fs::write(folder.path().join(SNAPSHOT), &bytes).unwrap();
            fs::write(folder.path().join(OLD), &bytes).unwrap();
            assert_eq!(loaded(&folder), None, "{} bytes, seed {seed}", bytes.len());
        }
        assert!(open(&folder).damaged().len() <= KEPT_DAMAGED, "{:?}", files(&folder));
    }

    #[test]
    fn the_latest_damaged_snapshots_are_kept() {
        let folder = TempDir::new().unwrap();
        for time in [5, 40, 300, 2_000, 10_000] {
            fs::write(folder.path().join(format!("{OLD}{DAMAGED}{time}")), []).unwrap();
        }
        let other = format!("{SNAPSHOT}{DAMAGED}not-a-time");
        fs::write(folder.path().join(&other), []).unwrap();
        fs::write(folder.path().join(SNAPSHOT), []).unwrap();
        assert_eq!(loaded(&folder), None);
        let mut times: Vec<_> = open(&folder).damaged().into_iter().map(|(time, _)| time).collect();
        times.sort_unstable();
        assert_eq!(&times[..3], [300, 2_000, 10_000]);
        assert_eq!(times.len(), KEPT_DAMAGED);
        assert!(folder.path().join(other).exists(), "a file that is not a snapshot");
    }

    #[test]
    fn a_full_disk_leaves_the_last_snapshot() {
        let folder = TempDir::new().unwrap();
        open(&folder).write(&table(1), || Ok(())).unwrap();
        let full = || Err(ErrorKind::StorageFull.into());
        let error = open(&folder).write(&table(2), full).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::StorageFull);
        assert_eq!(
            (files(&folder), loaded(&folder)),
            (vec![LOCK.into(), SNAPSHOT.into()], Some(1))
        );
        // There is room again.
        open(&folder).write(&table(2), || Ok(())).unwrap();
        assert_eq!(loaded(&folder), Some(2));
    }

    #[test]
    fn only_the_owner_reads_snapshots_and_no_link_leads_them_elsewhere() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("data");
        let mut folder = DataDir::open(path.clone()).unwrap();
        let other = parent.path().join("other");
        fs::write(&other, "of somebody else").unwrap();
        symlink(&other, path.join(TEMPORARY)).unwrap();
        folder.write(&table(1), || Ok(())).unwrap();
        assert_eq!(fs::read(&other).unwrap(), b"of somebody else");
        let mode = |path: &Path| fs::symlink_metadata(path).unwrap().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!([SNAPSHOT, LOCK].map(|name| mode(&path.join(name))), [0o600; 2]);
    }

    #[test]
    fn a_folder_has_one_owner_at_a_time() {
        let folder = TempDir::new().unwrap();
        let first = open(&folder);
        let second = DataDir::open(folder.path().into()).unwrap_err();
        assert!(matches!(second, OpenError::InUse(path) if path == folder.path()));
        drop(first);
        open(&folder);
    }

    #[test]
    fn a_snapshot_that_may_be_whole_is_neither_renamed_nor_replaced() {
        for case in ["the table is too small", "a later version", "unreadable"] {
            let folder = TempDir::new().unwrap();
            for nodes in [1, 3] {
                open(&folder).write(&table(nodes), || Ok(())).unwrap();
            }
            let before = files(&folder);
            let snapshot = folder.path().join(SNAPSHOT);
            let mut max_routes = 100;
            match case {
                "the table is too small" => max_routes = 2,
                "a later version" => {
                    let mut bytes = fs::read(&snapshot).unwrap();
                    bytes[8] += 1;
                    fs::write(&snapshot, bytes).unwrap();
                }
                // Nobody can read a folder as a file, not even root.
                _ => {
                    fs::remove_file(&snapshot).unwrap();
                    fs::create_dir(&snapshot).unwrap();
                }
            }
            let small = RouteTable::builder().max_routes(max_routes).build().unwrap();
            let mut data_dir = open(&folder);
            assert_eq!(data_dir.load(&small).map(|report| report.inserted), Some(1), "{case}");
            let error = data_dir.write(&small, || Ok(())).unwrap_err().to_string();
            let expected = format!("{} was not loaded and would be lost: ", snapshot.display());
            assert!(error.starts_with(&expected), "{case}: {error}");
            assert_eq!(files(&folder), before, "{case}");
            // The operator moves the file away.
            fs::rename(&snapshot, folder.path().join("elsewhere")).unwrap();
            data_dir.write(&small, || Ok(())).unwrap();
            assert!(snapshot.is_file(), "{case}");
        }
    }

    #[test]
    fn a_lock_file_that_is_removed_lets_no_two_trackers_write() {
        let folder = TempDir::new().unwrap();
        let mut first = open(&folder);
        first.write(&table(1), || Ok(())).unwrap();
        fs::remove_file(folder.path().join(LOCK)).unwrap();
        let mut second = open(&folder);
        let error = first.write(&table(2), || Ok(())).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::WouldBlock, "{error}");
        second.write(&table(3), || Ok(())).unwrap();
        drop(second);
        first.write(&table(4), || Ok(())).unwrap();
        assert!(DataDir::open(folder.path().into()).is_err());
    }

    #[test]
    fn a_folder_that_is_removed_is_made_again() {
        let parent = TempDir::new().unwrap();
        let path = parent.path().join("data");
        let mut folder = DataDir::open(path.clone()).unwrap();
        folder.write(&table(1), || Ok(())).unwrap();
        fs::remove_dir_all(&path).unwrap();
        folder.write(&table(2), || Ok(())).unwrap();
        assert!(path.join(SNAPSHOT).exists());
        assert!(DataDir::open(path).is_err(), "the new folder is locked");
    }

    #[test]
    fn nothing_is_set_aside_without_the_lock() {
        let folder = TempDir::new().unwrap();
        // Nobody can open a folder for writing, not even root.
        fs::create_dir(folder.path().join(LOCK)).unwrap();
        fs::write(folder.path().join(SNAPSHOT), "damaged").unwrap();
        let before = files(&folder);
        let mut data_dir = open(&folder);
        assert!(data_dir.load(&RouteTable::new()).is_none());
        assert_eq!(files(&folder), before);
        assert_eq!(data_dir.prepare().unwrap_err().kind(), ErrorKind::IsADirectory);
    }

    #[test]
    fn a_table_that_has_routes_stays_as_it_is() {
        let folder = TempDir::new().unwrap();
        open(&folder).write(&table(2), || Ok(())).unwrap();
        let used = table(1);
        assert!(open(&folder).load(&used).is_none());
        assert_eq!((used.len(), files(&folder)), (1, vec![LOCK.into(), SNAPSHOT.into()]));
    }
}
