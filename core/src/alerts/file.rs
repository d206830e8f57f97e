//! The file of alerts: one JSON line each, rotated by size, so that there is a trace when everything else is away.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// It is put aside when it is larger than this.
const MAX_BYTES: u64 = 10 << 20;
/// Files put aside that are kept: `.1` is the newest.
const KEPT: usize = 5;

/// Appends `line` to the file at `path`, which is made with its folder when it is not there.
pub fn append(path: &Path, line: &str) -> std::io::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    if std::fs::metadata(path).is_ok_and(|m| m.len() > MAX_BYTES) {
        rotate(path);
    }
    let mut file: File = OpenOptions::new().create(true).append(true).open(path)?;
    let before = file.metadata()?.len();
    // One write, so that two programs do not mix their lines.
    if let Err(error) = file.write_all(format!("{line}\n").as_bytes()) {
        // A full disk takes the beginning of a line: what is written when there is room again must be a line of its own.
        let _ = file.set_len(before);
        return Err(error);
    }
    file.sync_data()
}

fn rotate(path: &Path) {
    let numbered = |n: usize| PathBuf::from(format!("{}.{n}", path.display()));
    for n in (1..KEPT).rev() {
        // One that is missing is none to be moved.
        let _ = std::fs::rename(numbered(n), numbered(n + 1));
    }
    let _ = std::fs::rename(path, numbered(1));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_appended_and_a_large_file_is_put_aside() {
        let folder = std::env::temp_dir().join(format!("arbees-alerts-{}", std::process::id()));
        let path = folder.join("deep/alerts.log");
        append(&path, "one").unwrap();
        append(&path, "two").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "one\ntwo\n");
        File::options().write(true).open(&path).unwrap().set_len(MAX_BYTES + 1).unwrap();
        append(&path, "three").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
        assert!(path.with_extension("log.1").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }
}
