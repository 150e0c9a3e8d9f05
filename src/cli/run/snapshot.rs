//! Snapshots: boots QEMU once, saves it, and restores it in later runs.
//!
//! The first line of the file identifies the disk and the command; QEMU's migration stream follows. QEMU writes it when
//! the guest prints that it is ready, and then continues. A file of another disk or command is replaced.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, PipeReader, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use crate::cli::qemu_text::qemu_escape;
use crate::closure::nix32;

/// Polling interval while QEMU writes the snapshot.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Whether and when to save the VM.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Snapshots")]
pub struct SnapshotArgs {
    /// Save QEMU to FILE when it prints the text of --snapshot-at, and restore it from FILE in later runs. If the disk
    /// or the command has changed, boot and save again. Writable disks must be in the same state as when it was saved
    #[arg(long, value_name = "FILE", conflicts_with = "tree")]
    snapshot: Option<PathBuf>,
    /// Text on the guest's console, which must be QEMU's stdout, that triggers the snapshot
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "lazystore: snapshot",
        requires = "snapshot"
    )]
    snapshot_at: String,
}

/// A snapshot to make or to restore.
pub struct Snapshot {
    file: PathBuf,
    /// First line of the file.
    line: String,
    /// Path of QEMU's QMP socket.
    control: PathBuf,
    /// The text that triggers the snapshot.
    mark: Vec<u8>,
    /// The snapshot to restore, positioned after its first line; `None` if one is to be made.
    saved: Option<File>,
}

impl SnapshotArgs {
    pub fn is_wanted(&self) -> bool {
        self.snapshot.is_some()
    }

    /// Looks for a snapshot of this disk and `command`. `control` is the path for QEMU's QMP socket.
    pub fn find(&self, disk: &str, command: &[OsString], control: &Path) -> Option<Snapshot> {
        let file = self.snapshot.clone()?;
        let line = first_line(disk, command);
        let saved = open(&file, &line);
        Some(Snapshot {
            file,
            line,
            control: control.to_owned(),
            mark: self.snapshot_at.clone().into_bytes(),
            saved,
        })
    }
}

/// Returns the first line of snapshots of this disk and command, with the current version of QEMU.
fn first_line(disk: &str, command: &[OsString]) -> String {
    let version = command.first().and_then(|program| {
        let output = Command::new(program).arg("--version").output();
        Some(output.ok()?.stdout)
    });
    let mut hash = Sha256::new();
    let words = command.iter().map(|word| word.as_bytes());
    for word in words.chain([disk.as_bytes(), &version.unwrap_or_default()]) {
        hash.update((word.len() as u64).to_le_bytes());
        hash.update(word);
    }
    format!("lazystore snapshot 2 {}\n", nix32(&hash.finalize()))
}

/// Opens the file and seeks to the end of its first line, if that is `line`.
fn open(path: &Path, line: &str) -> Option<File> {
    let mut file = File::open(path).ok()?;
    let mut found = String::new();
    let limit = line.len() as u64;
    BufReader::new(Read::by_ref(&mut file).take(limit))
        .read_line(&mut found)
        .ok()?;
    file.seek(SeekFrom::Start(limit)).ok()?;
    (found == line).then_some(file)
}

impl Snapshot {
    pub fn is_saved(&self) -> bool {
        self.saved.is_some()
    }

    /// Returns additional arguments for QEMU.
    pub fn arguments(&self) -> Vec<OsString> {
        match &self.saved {
            Some(file) => vec![
                "-incoming".into(),
                format!("fd:{}", file.as_raw_fd()).into(),
            ],
            None => {
                let place = qemu_escape(&self.control);
                let server = format!("unix:{place},server=on,wait=off");
                // The VM is stopped while it is saved. This keeps that out of the snapshot, so that a restored VM runs.
                let global = "migration.store-global-state=off";
                vec![
                    "-qmp".into(),
                    server.into(),
                    "-global".into(),
                    global.into(),
                ]
            }
        }
    }

    /// Called in the process that executes QEMU: lets it inherit the file.
    pub fn pass_on(&self) -> io::Result<()> {
        let flags = rustix::io::FdFlags::empty();
        let kept = self
            .saved
            .as_ref()
            .map(|file| rustix::io::fcntl_setfd(file, flags));
        Ok(kept.unwrap_or(Ok(()))?)
    }

    /// Starts a thread that copies QEMU's output to stdout and makes the snapshot when the mark appears.
    pub fn watch(self, output: PipeReader) -> io::Result<thread::JoinHandle<()>> {
        let thread = thread::Builder::new().name("snapshot".to_owned());
        thread.spawn(move || self.copy(output))
    }

    fn copy(&self, mut output: PipeReader) {
        let (mut seen, mut buffer) = (Some(Vec::new()), [0; 4096]);
        while let Ok(len @ 1..) = output.read(&mut buffer) {
            // Errors are ignored: QEMU continues even if stdout is closed.
            let _ = io::stdout().write_all(&buffer[..len]);
            let _ = io::stdout().flush();
            let Some(text) = &mut seen else { continue };
            text.extend_from_slice(&buffer[..len]);
            if text
                .windows(self.mark.len().max(1))
                .any(|part| part == self.mark)
            {
                seen = None;
                self.save();
            } else {
                let old = text.len().saturating_sub(self.mark.len());
                text.drain(..old);
            }
        }
        if seen.is_some() {
            tracing::warn!(
                "the VM ended without printing \"{}\", so no snapshot was made",
                String::from_utf8_lossy(&self.mark)
            );
        }
    }

    /// Makes the snapshot. Errors are logged and do not end the VM.
    fn save(&self) {
        // Several VMs may save at the same time; the last rename wins.
        let part = self
            .file
            .with_added_extension(std::process::id().to_string());
        let saved = self
            .save_to(&part)
            .and_then(|()| fs::rename(&part, &self.file));
        match saved {
            Ok(()) => tracing::info!(file = %self.file.display(), "the VM has been saved"),
            Err(error) => {
                tracing::error!("cannot save the VM in {}: {error}", self.file.display());
                let _ = fs::remove_file(&part);
            }
        }
    }

    fn save_to(&self, part: &Path) -> io::Result<()> {
        // The file contains the guest's memory, so only the owner may read it.
        let mut options = File::options();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(part)?;
        file.write_all(self.line.as_bytes())?;
        let mut qemu = Control::connect(&self.control)?;
        let written = qemu.write_to(&file);
        // The VM continues even if writing failed.
        let resumed = qemu.run("cont", json!({}), None).map(|_| ());
        written.and(resumed)
    }
}

/// A QMP connection to QEMU (docs/interop/qmp-spec.rst).
struct Control(BufReader<UnixStream>);

impl Control {
    fn connect(path: &Path) -> io::Result<Self> {
        let mut control = Self(BufReader::new(UnixStream::connect(path)?));
        control.read()?;
        control.run("qmp_capabilities", json!({}), None)?;
        Ok(control)
    }

    /// Writes the VM's state to `file` at its current position. Leaves the VM stopped.
    fn write_to(&mut self, file: &File) -> io::Result<()> {
        // With a running VM, emulators (TCG) have saved memory that did not match the CPU: the restored guest waited for a lock
        // forever.
        self.run("stop", json!({}), None)?;
        let limits = json!({"max-bandwidth": 1_u64 << 40});
        self.run("migrate-set-parameters", limits, None)?;
        self.run("getfd", json!({"fdname": "snapshot"}), Some(file))?;
        self.run("migrate", json!({"uri": "fd:snapshot"}), None)?;
        loop {
            let state = self.run("query-migrate", json!({}), None)?;
            match state["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("failed" | "cancelled") => {
                    return Err(io::Error::other(state["error-desc"].to_string()));
                }
                _ => thread::sleep(POLL_INTERVAL),
            }
        }
    }

    /// Runs a command, optionally with a descriptor, and returns its result. Events are ignored.
    fn run(&mut self, command: &str, arguments: Value, file: Option<&File>) -> io::Result<Value> {
        let line = json!({"execute": command, "arguments": arguments}).to_string() + "\n";
        match file {
            Some(file) => {
                let stream = self.0.get_ref();
                stream.send_with_fd(line.as_bytes(), file.as_raw_fd())?;
            }
            None => self.0.get_mut().write_all(line.as_bytes())?,
        }
        loop {
            let mut answer = self.read()?;
            if let Some(returned) = answer.get_mut("return") {
                return Ok(returned.take());
            }
            if let Some(error) = answer.get("error") {
                return Err(io::Error::other(format!(
                    "QEMU returned the error {}",
                    error["desc"]
                )));
            }
        }
    }

    fn read(&mut self) -> io::Result<Value> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(serde_json::from_str(&line)?)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Answers QMP commands until the client disconnects. Returns their names.
    fn answer(listener: &UnixListener) -> Vec<String> {
        let (stream, _) = listener.accept().unwrap();
        let mut client = BufReader::new(stream);
        client.get_mut().write_all(b"{\"QMP\": {}}\n").unwrap();
        let mut names = Vec::new();
        let mut line = String::new();
        while client.read_line(&mut line).unwrap() > 0 {
            let command: Value = serde_json::from_str(&line).unwrap();
            names.push(command["execute"].as_str().unwrap().to_owned());
            let answer = b"{\"return\": {\"status\": \"completed\"}}\n";
            client.get_mut().write_all(answer).unwrap();
            line.clear();
        }
        names
    }

    /// Regression: a VM was saved while it ran, and hung whenever it was restored.
    #[test]
    fn a_vm_is_stopped_while_it_is_saved() {
        let dir = tempfile::tempdir().unwrap();
        let snapshot = Snapshot {
            file: dir.path().join("file"),
            line: "line\n".to_owned(),
            control: dir.path().join("control"),
            mark: Vec::new(),
            saved: None,
        };
        let listener = UnixListener::bind(&snapshot.control).unwrap();
        let qemu = thread::spawn(move || answer(&listener));
        snapshot.save();
        let names = qemu.join().unwrap();
        let place = |name: &str| names.iter().position(|found| found == name).unwrap();
        assert!(place("stop") < place("migrate"), "{names:?}");
        assert!(place("query-migrate") < place("cont"), "{names:?}");
        assert_eq!(fs::read(&snapshot.file).unwrap(), b"line\n");
    }
}
